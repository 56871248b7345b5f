// save_model(modfied_onnx_file, record_file, save_path): the last step of post-training quantization (docs/spec/save.md).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_SAVE_MODEL_H_
#define MODELPRESS_ENGINE_FUNCTIONS_SAVE_MODEL_H_

#include <string>

#include "absl/status/statusor.h"
#include "engine/functions/functions.h"

namespace modelpress::engine {

// Reads `modified_onnx_file` and `record_file` from context.files and writes <save_path>_deploy_model.onnx,
// <save_path>_fake_quant_model.onnx, their external data files and <save_path>_report.json below context.output_root. All files
// appear or none. Errors: everything that models, records and disks can be wrong in; see Reason.
absl::StatusOr<SavedModels> SaveModel(const CallContext& context, const std::string& modified_onnx_file,
                                      const std::string& record_file, const std::string& save_path);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_SAVE_MODEL_H_
