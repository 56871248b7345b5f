// A checkpoint that a child of an earlier attempt left: as a file, which is taken only as it was saved, and as the state of
// estimators, which are either loaded or left as they were.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/calibrate/range_estimator.h"
#include "engine/functions/file_checkpoints.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::engine {
namespace {

std::vector<std::unique_ptr<RangeEstimator>> NewEstimators() {
  std::vector<std::unique_ptr<RangeEstimator>> estimators;
  for (const auto algorithm : {ActivationConfig::Algorithm::kIfmr, ActivationConfig::Algorithm::kHfmg}) {
    ActivationConfig config;
    config.algorithm = algorithm;
    config.bins = 16;
    estimators.push_back(NewRangeEstimator(config));
  }
  return estimators;
}

void LoadState(absl::string_view bytes) {
  const std::vector<std::unique_ptr<RangeEstimator>> estimators = NewEstimators();
  const std::string before = SaveEstimators(estimators);
  if (!LoadEstimators(bytes, estimators)) {
    Require(SaveEstimators(estimators) == before, "estimators that cannot be loaded are as before");
    return;
  }
  const std::string saved = SaveEstimators(estimators);
  const std::vector<std::unique_ptr<RangeEstimator>> others = NewEstimators();
  Require(LoadEstimators(saved, others), "what was loaded can be saved and loaded");
}

void Run(absl::string_view bytes) {
  static InputFolder folder;
  folder.Write("found", bytes);
  FileCheckpoints checkpoints(folder.path(), [](const std::string& line) { Require(!line.empty(), "a line for the log"); });
  Require(!checkpoints.Load("found").has_value(), "a file without its digest is not taken");
  checkpoints.Save("saved", std::string(bytes));
  Require(checkpoints.Load("saved") == std::string(bytes), "what is saved can be loaded");
  LoadState(bytes);
}

}  // namespace
}  // namespace modelpress::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::engine::Run(modelpress::AsText(data, size));
  return 0;
}
