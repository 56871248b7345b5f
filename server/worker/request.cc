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
using google::protobuf::Reflection;

// The message in `any`; nullptr if it is of no type known to this program, or malformed.
std::unique_ptr<Message> Unpack(const google::protobuf::Any& any) {
  const std::string name = any.type_url().substr(any.type_url().rfind('/') + 1);
  const auto* descriptor = google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(name);
  if (descriptor == nullptr) {
    return nullptr;
  }
  std::unique_ptr<Message> message(google::protobuf::MessageFactory::generated_factory()->GetPrototype(descriptor)->New());
  return message->ParseFromString(any.value()) ? std::move(message) : nullptr;
}

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
  const std::unique_ptr<Message> message = Unpack(request);
  const FieldDescriptor* field = message == nullptr ? nullptr : message->GetDescriptor()->FindFieldByName("options");
  if (field == nullptr || field->message_type() != v1::CallOptions::descriptor()) {
    return absl::InfiniteDuration();
  }
  const auto& options = static_cast<const v1::CallOptions&>(message->GetReflection()->GetMessage(*message, field));
  return options.has_execution_timeout() ? FromProto(options.execution_timeout()) : absl::InfiniteDuration();
}

absl::StatusOr<google::protobuf::Any> NameOutputs(const google::protobuf::Any& response, const std::string& workspace_id,
                                                  const std::vector<OutputFile>& outputs) {
  const std::unique_ptr<Message> message = Unpack(response);
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
      MP_RETURN_IF_ERROR(
          NameOutput(static_cast<v1::File&>(*reflection.MutableMessage(message.get(), field)), workspace_id, outputs));
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(*message, field); ++i) {
      MP_RETURN_IF_ERROR(
          NameOutput(static_cast<v1::File&>(*reflection.MutableRepeatedMessage(message.get(), field, i)), workspace_id, outputs));
    }
  }
  google::protobuf::Any named;
  named.PackFrom(*message);
  return named;
}

}  // namespace modelpress::server
