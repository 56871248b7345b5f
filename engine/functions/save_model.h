// save_model(modfied_onnx_file, record_file, save_path): the last step of post-training quantization (docs/spec/save.md).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_SAVE_MODEL_H_
#define MODELPRESS_ENGINE_FUNCTIONS_SAVE_MODEL_H_

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/base/status.h"
#include "engine/formats/record.h"
#include "engine/functions/functions.h"
#include "engine/graph/graph.h"
#include "engine/model/model.h"
#include "nlohmann/json.hpp"

namespace modelpress::engine {

// What a function that ends with save_model adds to its report.
struct ReportExtension {
  std::string function;               // the report's function
  std::set<std::string> inputs;       // the caller's files that were read, in place of the two that save_model reads
  std::vector<std::string> warnings;  // of the steps before
  std::set<std::string> deviations;   // from the reference, in the steps before
  bool html = false;                  // write <save_path>_report.html too
  // If set, called with the report, complete but for its outputs, the fake-quant model as it was written, and what has been
  // written.
  std::function<absl::Status(const Model& fake_quant, absl::Span<const WrittenFile> files, nlohmann::ordered_json& report)>
      extend;
};

// Reads `modified_onnx_file` and `record_file` from context.files and writes <save_path>_deploy_model.onnx,
// <save_path>_fake_quant_model.onnx, their external data files and <save_path>_report.json below context.output_root. All files
// appear or none. Errors: everything that models, records and disks can be wrong in; see Reason.
absl::StatusOr<SavedModels> SaveModel(const CallContext& context, const std::string& modified_onnx_file,
                                      const std::string& record_file, const std::string& save_path,
                                      const ReportExtension* extension = nullptr);

// A graph and the record file with the factors of its layers.
struct GraphToSave {
  Graph graph;
  ParsedRecord record;
  absl::flat_hash_set<std::string> float16_layers;  // op_data_type "float16"
  ErrorPlace graph_place;                           // request field and file that each came from
  ErrorPlace record_place;
};

// The part of SaveModel behind reading, for every function that ends with it.
absl::StatusOr<SavedModels> SaveGraph(const CallContext& context, GraphToSave source, const SavePath& path,
                                      const ReportExtension& extension);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_SAVE_MODEL_H_
