// Weights as safetensors (https://github.com/huggingface/safetensors): an 8-byte length, a JSON header, the tensors' bytes.
#ifndef MODELPRESS_ENGINE_FORMATS_SAFETENSORS_H_
#define MODELPRESS_ENGINE_FORMATS_SAFETENSORS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/file_set.h"
#include "engine/model/model.h"

namespace modelpress::engine {

// Reads the header of `file`; the tensors' data stays in the file (their payloads are runs of it), in the order of the header.
// Element types: F64, F32, F16, BF16, I8 to I64, U8 to U64, BOOL. The entry __metadata__ is skipped.
// WEIGHTS_INVALID with the file (and the tensor as layer): truncated, a header over kMaxSafetensorsHeader or not JSON, a repeated
// name, an unknown type or key, more tensors or dims than ModelLimits allow, a shape that does not fit its bytes, runs that
// overlap, leave holes or end beyond the file.
absl::StatusOr<std::vector<Tensor>> ReadSafetensors(std::shared_ptr<const InputFile> file);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FORMATS_SAFETENSORS_H_
