// What the files of a model will contain, byte for byte, without any tensor data in memory.
#ifndef MODELPRESS_ENGINE_MODEL_LAYOUT_H_
#define MODELPRESS_ENGINE_MODEL_LAYOUT_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/model/payload.h"
#include "engine/model/writer.h"

namespace modelpress::engine {

// A run of bytes that are at hand, or else a payload.
struct Piece {
  std::string bytes;
  PayloadPtr payload;  // null: `bytes`
  std::string layer;   // name of the payload's tensor, for errors

  uint64_t size() const { return payload == nullptr ? bytes.size() : payload->size(); }
};

// The content of a file or of a protobuf message.
class Content {
 public:
  uint64_t size() const { return size_; }
  const std::vector<Piece>& pieces() const { return pieces_; }

  void Add(absl::string_view bytes);
  void Add(PayloadPtr payload, const std::string& layer);
  void Add(Content content);
  // Adds protobuf field `number` with the message `content`.
  void AddMessage(uint32_t number, Content content);

 private:
  std::vector<Piece> pieces_;
  uint64_t size_ = 0;
};

struct FilePlan {
  std::string name;
  Content content;
};

// The model's file, then its external data files in the order of the initializers. The model's file is what protobuf would
// serialize from the same model in one ModelProto. `taken`: names in the output folder; those of new external files are added.
// MODEL_LIMIT: the model is too large for protobuf even without the tensors that can be moved out.
absl::StatusOr<std::vector<FilePlan>> PlanModel(const ModelFile& file, uint64_t externalize_at, std::set<std::string>& taken);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_MODEL_LAYOUT_H_
