#include "engine/retrain/plan_json.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/json_util.h"
#include "google/protobuf/util/type_resolver.h"
#include "google/protobuf/util/type_resolver_util.h"

namespace modelpress::engine {

absl::StatusOr<std::string> PrintRewritePlan(const v1::RewritePlan& plan) {
  // MessageToJsonString would print maps in an order that differs from run to run.
  std::string binary;
  {
    google::protobuf::io::StringOutputStream stream(&binary);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    plan.SerializeToCodedStream(&coded);
  }
  constexpr char kPrefix[] = "type.googleapis.com";
  const std::unique_ptr<google::protobuf::util::TypeResolver> types(
      google::protobuf::util::NewTypeResolverForDescriptorPool(kPrefix, v1::RewritePlan::descriptor()->file()->pool()));
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto printed = google::protobuf::util::BinaryToJsonString(types.get(), absl::StrCat(kPrefix, "/", plan.GetTypeName()),
                                                                  binary, &json, options);
  if (!printed.ok()) {
    return MakeError(v1::INTERNAL_ERROR, absl::StrCat("cannot print the rewrite plan: ", std::string(printed.message())));
  }
  return json;
}

absl::StatusOr<v1::RewritePlan> ParseRewritePlan(absl::string_view json, const std::string& file) {
  if (json.size() > kMaxPlanBytes) {
    return MakeError(v1::REQUEST_INVALID,
                     absl::StrCat("the rewrite plan has ", json.size(), " bytes; at most ", kMaxPlanBytes, " are read"),
                     {.file = file});
  }
  v1::RewritePlan plan;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto parsed = google::protobuf::util::JsonStringToMessage({json.data(), json.size()}, &plan, options);
  if (!parsed.ok() || plan.config().empty()) {
    return MakeError(v1::REQUEST_INVALID, "not a rewrite plan as the create and restore functions write it", {.file = file});
  }
  return plan;
}

}  // namespace modelpress::engine
