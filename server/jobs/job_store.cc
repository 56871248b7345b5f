#include "server/jobs/job_store.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace modelpress::server {

bool IsFinal(v1::OperationMetadata::State state) {
  return state == v1::OperationMetadata::SUCCEEDED || state == v1::OperationMetadata::FAILED ||
         state == v1::OperationMetadata::CANCELLED;
}

bool Job::done() const { return IsFinal(metadata.state()); }

google::longrunning::Operation ToOperation(const Job& job) {
  google::longrunning::Operation operation;
  operation.set_name(absl::StrCat("operations/", job.id));
  operation.mutable_metadata()->PackFrom(job.metadata);
  operation.set_done(job.done());
  if (job.error.has_value()) {
    *operation.mutable_error() = *job.error;
  } else if (job.response.has_value()) {
    *operation.mutable_response() = *job.response;
  }
  return operation;
}

google::rpc::Status CancelledError() {
  absl::Status status = MakeError(v1::OPERATION_CANCELLED, "the operation was cancelled on request");
  google::rpc::Status error;
  error.set_code(static_cast<int>(status.code()));
  error.set_message(std::string(status.message()));
  status.ForEachPayload([&error](absl::string_view type_url, const absl::Cord& payload) {
    google::protobuf::Any& detail = *error.add_details();
    detail.set_type_url(std::string(type_url));
    detail.set_value(std::string(payload));
  });
  return error;
}

absl::Status CheckOutcome(const Outcome& outcome) {
  bool succeeded = outcome.state == v1::OperationMetadata::SUCCEEDED;
  if (!IsFinal(outcome.state) || outcome.response.has_value() != succeeded || outcome.error.has_value() == succeeded ||
      (!succeeded && !outcome.outputs.empty())) {
    return MakeError(
        v1::INTERNAL_ERROR,
        absl::StrCat("an operation cannot end ", v1::OperationMetadata::State_Name(outcome.state),
                     outcome.response.has_value() ? " with" : " without", " a response, ",
                     outcome.error.has_value() ? "with" : "without", " an error and with ", outcome.outputs.size(), " outputs"));
  }
  return absl::OkStatus();
}

}  // namespace modelpress::server
