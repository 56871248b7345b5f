#include "server/jobs/job_store.h"

#include <memory>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"

namespace modelpress::server {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

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
  return StoredError(MakeError(v1::OPERATION_CANCELLED, "the operation was cancelled on request"));
}

google::rpc::Status StoredError(const absl::Status& status) {
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

std::unique_ptr<Message> UnpackAny(const google::protobuf::Any& any) {
  const std::string name = any.type_url().substr(any.type_url().rfind('/') + 1);
  const auto* descriptor = google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(name);
  if (descriptor == nullptr) {
    return nullptr;
  }
  std::unique_ptr<Message> message(google::protobuf::MessageFactory::generated_factory()->GetPrototype(descriptor)->New());
  return message->ParseFromString(any.value()) ? std::move(message) : nullptr;
}

absl::StatusOr<google::protobuf::Any> EditFiles(const google::protobuf::Any& response,
                                                absl::FunctionRef<absl::Status(v1::File&)> edit) {
  const std::unique_ptr<Message> message = UnpackAny(response);
  if (message == nullptr) {
    return MakeError(v1::INTERNAL_ERROR, absl::StrCat("the engine's answer is no known message: ", response.type_url()));
  }
  const Reflection& reflection = *message->GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(*message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->message_type() != v1::File::descriptor()) {
      continue;
    }
    if (!field->is_repeated()) {
      MP_RETURN_IF_ERROR(edit(static_cast<v1::File&>(*reflection.MutableMessage(message.get(), field))));
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(*message, field); ++i) {
      MP_RETURN_IF_ERROR(edit(static_cast<v1::File&>(*reflection.MutableRepeatedMessage(message.get(), field, i))));
    }
  }
  google::protobuf::Any edited;
  edited.PackFrom(*message);
  return edited;
}

}  // namespace modelpress::server
