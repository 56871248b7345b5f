// Rewrite plans as files: protobuf's JSON form with the field names of the .proto (docs/spec/qat.md section 16.2).
#ifndef MODELPRESS_ENGINE_RETRAIN_PLAN_JSON_H_
#define MODELPRESS_ENGINE_RETRAIN_PLAN_JSON_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "modelpress/v1/rewrite_plan.pb.h"

namespace modelpress::engine {

// The same plan gives the same bytes.
absl::StatusOr<std::string> PrintRewritePlan(const v1::RewritePlan& plan);

// REQUEST_INVALID with the file: no rewrite plan. Fields that a newer service may have added are ignored.
absl::StatusOr<v1::RewritePlan> ParseRewritePlan(absl::string_view json, const std::string& file);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RETRAIN_PLAN_JSON_H_
