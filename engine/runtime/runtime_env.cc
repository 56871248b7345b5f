#include "engine/runtime/runtime_env.h"

#include <iostream>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "onnx/defs/schema.h"

namespace modelpress::engine {
namespace {

// What ONNX Runtime has to say is in its exceptions.
void ORT_API_CALL DropLogMessage(void*, OrtLoggingLevel, const char*, const char*, const char*, const char*) {}

}  // namespace

Ort::Env& RuntimeEnv() {
  static Ort::Env* env = [] {
    std::streambuf* const cerr_buffer = std::cerr.rdbuf(nullptr);
    const absl::Cleanup restore = [cerr_buffer] { std::cerr.rdbuf(cerr_buffer); };
    auto created = std::make_unique<Ort::Env>(ORT_LOGGING_LEVEL_ERROR, "modelpress", DropLogMessage, nullptr);
    onnx::OpSchemaRegistry::Schema("Conv");  // any look-up registers onnx's schemas
    return created.release();
  }();
  return *env;
}

}  // namespace modelpress::engine
