// Does ONNX Runtime take a model? Loads without the weights: big initializers become graph inputs of the same type and shape, so
// that the whole graph is resolved (operators, types, shapes) at a cost that does not grow with the weights.
#ifndef MODELPRESS_ENGINE_RUNTIME_LOAD_CHECK_H_
#define MODELPRESS_ENGINE_RUNTIME_LOAD_CHECK_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/model/model.h"

namespace modelpress::engine {

// Prepares ONNX Runtime in this process: first thing in main of the child, before threads start. Safe to call again. Debian's
// onnx and onnxruntime share one schema registry and each registers everything, so whichever comes second prints some 1,100 lines
// to std::cerr; this does both with std::cerr's buffer set aside.
void InitializeRuntime();

// Refused: an INVALID_ARGUMENT status without reason whose text is ONNX Runtime's. RESOURCE_EXHAUSTED, without reason too, where
// more than 1 GiB is left without the big tensors. An error of reading a tensor is passed on. `stream_threshold`: initializers,
// and tensors of Constant nodes, of more bytes than that become graph inputs.
absl::Status CheckLoads(const Model& model, uint64_t stream_threshold = 64 << 10);

// Whether ONNX Runtime takes `made`, a `what` ("pruned model") made of `source`. OUTPUT_INVALID: it does not. Where it refuses
// `source` too (an operator that it does not know), that is not the engine's doing: a warning is returned. Else "".
absl::StatusOr<std::string> CheckStillLoads(const Model& made, const Model& source, absl::string_view what);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RUNTIME_LOAD_CHECK_H_
