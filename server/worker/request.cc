#include "server/worker/request.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "modelpress/v1/compression.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/names.h"

namespace modelpress::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

absl::Status NameOutput(v1::File& file, const std::string& workspace_id, const std::vector<OutputFile>& outputs) {
  auto output = std::ranges::find(outputs, file.name(), &OutputFile::path);
  if (output == outputs.end()) {
    return MakeError(v1::INTERNAL_ERROR, absl::StrCat("the engine's answer names '", file.name(), "', which it did not write"));
  }
  file.set_name(FormatFileName(workspace_id, output->path));
  file.set_sha256(output->sha256);
  file.set_size_bytes(output->size_bytes);
  return absl::OkStatus();
}

}  // namespace

absl::Duration ExecutionTimeout(const google::protobuf::Any& request) {
  const std::unique_ptr<Message> message = UnpackAny(request);
  const FieldDescriptor* field = message == nullptr ? nullptr : message->GetDescriptor()->FindFieldByName("options");
  if (field == nullptr || field->message_type() != v1::CallOptions::descriptor()) {
    return absl::InfiniteDuration();
  }
  const auto& options = static_cast<const v1::CallOptions&>(message->GetReflection()->GetMessage(*message, field));
  return options.has_execution_timeout() ? FromProto(options.execution_timeout()) : absl::InfiniteDuration();
}

absl::StatusOr<google::protobuf::Any> NameOutputs(const google::protobuf::Any& response, const std::string& workspace_id,
                                                  const std::vector<OutputFile>& outputs) {
  return EditFiles(response, [&](v1::File& file) { return NameOutput(file, workspace_id, outputs); });
}

}  // namespace modelpress::server
