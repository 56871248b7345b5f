// What all of modelpress's uses of ONNX Runtime share.
#ifndef MODELPRESS_ENGINE_RUNTIME_RUNTIME_ENV_H_
#define MODELPRESS_ENGINE_RUNTIME_RUNTIME_ENV_H_

#include "onnxruntime_cxx_api.h"

namespace modelpress::engine {

// ONNX Runtime's environment of this process, made at the first call (see InitializeRuntime) and never destroyed, since it must
// outlive every session. Throws what ONNX Runtime throws.
Ort::Env& RuntimeEnv();

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RUNTIME_RUNTIME_ENV_H_
