// What a long stage of a call leaves behind, so that a later attempt at the same call goes on where an earlier one was killed.
#ifndef MODELPRESS_ENGINE_BASE_CHECKPOINTS_H_
#define MODELPRESS_ENGINE_BASE_CHECKPOINTS_H_

#include <functional>
#include <limits>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"

namespace modelpress::engine {

// Finished parts of long stages, kept over attempts at the same call. Whatever is loaded gives the same bytes as computing it
// again.
class Checkpoints {
 public:
  virtual ~Checkpoints() = default;
  // What was saved last under `key` (1 to 100 of a-z, 0-9, "-" and "."); nullopt if nothing was, or only what cannot be trusted:
  // damaged bytes, those of another version of the engine.
  virtual std::optional<std::string> Load(const std::string& key) = 0;
  // Complete or not at all, whenever the process is killed. One that cannot be saved is no error of the call: it is logged.
  virtual void Save(const std::string& key, const std::string& bytes) = 0;
};

// The place of one stage in them. What is kept are messages of checkpoint.proto.
struct StageCheckpoint {
  Checkpoints* checkpoints = nullptr;  // nullptr: none are kept
  std::string key = {};
  std::function<void(const std::string& line)> log = [](const std::string&) {};

  bool is_kept() const { return checkpoints != nullptr; }
  // The place of one of the stage's parts.
  StageCheckpoint Part(int index) const { return {checkpoints, absl::StrCat(key, ".", index), log}; }

  template <typename Message>
  std::optional<Message> Load() const {
    const std::optional<std::string> bytes = checkpoints == nullptr ? std::nullopt : checkpoints->Load(key);
    std::optional<Message> message;
    if (bytes.has_value() && !message.emplace().ParseFromString(*bytes)) {
      message.reset();
      Ignore();
    }
    return message;
  }
  template <typename Message>
  void Save(const Message& message) const {
    if (checkpoints != nullptr && message.ByteSizeLong() <= std::numeric_limits<int>::max()) {  // protobuf's limit
      checkpoints->Save(key, message.SerializeAsString());
    }
  }
  // Says that what was loaded is not what this stage would have saved.
  void Ignore() const { log(absl::StrCat("checkpoint ", key, " does not fit this call and is ignored")); }
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_BASE_CHECKPOINTS_H_
