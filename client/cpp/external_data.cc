#include "client/cpp/external_data.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "client/cpp/local_path.h"
#include "client/cpp/status.h"

namespace modelpress::client {
namespace {

// The messages of onnx.proto on the way to a tensor.
enum class Message { kModel, kTraining, kFunction, kGraph, kNode, kAttribute, kSparseTensor, kTensor };

struct Edge {
  Message parent;
  uint32_t field;
  Message child;
};

// Field numbers of onnx.proto (IR version 10).
constexpr std::array kEdges = {
    Edge{Message::kModel, 7, Message::kGraph},              // graph
    Edge{Message::kModel, 20, Message::kTraining},          // training_info
    Edge{Message::kModel, 25, Message::kFunction},          // functions
    Edge{Message::kTraining, 1, Message::kGraph},           // initialization
    Edge{Message::kTraining, 2, Message::kGraph},           // algorithm
    Edge{Message::kFunction, 7, Message::kNode},            // node
    Edge{Message::kFunction, 11, Message::kAttribute},      // attribute_proto
    Edge{Message::kGraph, 1, Message::kNode},               // node
    Edge{Message::kGraph, 5, Message::kTensor},             // initializer
    Edge{Message::kGraph, 15, Message::kSparseTensor},      // sparse_initializer
    Edge{Message::kNode, 5, Message::kAttribute},           // attribute
    Edge{Message::kAttribute, 5, Message::kTensor},         // t
    Edge{Message::kAttribute, 6, Message::kGraph},          // g
    Edge{Message::kAttribute, 10, Message::kTensor},        // tensors
    Edge{Message::kAttribute, 11, Message::kGraph},         // graphs
    Edge{Message::kAttribute, 22, Message::kSparseTensor},  // sparse_tensor
    Edge{Message::kAttribute, 23, Message::kSparseTensor},  // sparse_tensors
    Edge{Message::kSparseTensor, 1, Message::kTensor},      // values
    Edge{Message::kSparseTensor, 2, Message::kTensor},      // indices
};
constexpr uint32_t kTensorExternalData = 13;
constexpr uint32_t kTensorDataLocation = 14;
constexpr uint64_t kDataLocationExternal = 1;
constexpr uint32_t kEntryKey = 1;
constexpr uint32_t kEntryValue = 2;
constexpr int kMaxDepth = 100;  // protobuf's own limit

struct Field {
  uint32_t number = 0;
  uint64_t varint = 0;                     // wire type 0
  std::optional<absl::string_view> bytes;  // wire type 2
};

// Takes the fields of one message off the front of its bytes.
class Reader {
 public:
  explicit Reader(absl::string_view bytes) : rest_(bytes) {}
  bool done() const { return rest_.empty(); }

  // Nothing if the bytes are malformed.
  std::optional<Field> Next() {
    std::optional<uint64_t> tag = Varint();
    if (!tag.has_value() || *tag > UINT32_MAX || *tag >> 3 == 0) {
      return std::nullopt;
    }
    Field field{.number = static_cast<uint32_t>(*tag >> 3)};
    switch (*tag & 7) {
      case 0: {
        std::optional<uint64_t> value = Varint();
        if (!value.has_value()) {
          return std::nullopt;
        }
        field.varint = *value;
        return field;
      }
      case 1:
        return Skip(8) ? std::optional(field) : std::nullopt;
      case 2: {
        std::optional<uint64_t> size = Varint();
        if (!size.has_value() || *size > rest_.size()) {
          return std::nullopt;
        }
        field.bytes = rest_.substr(0, *size);
        rest_.remove_prefix(*size);
        return field;
      }
      case 5:
        return Skip(4) ? std::optional(field) : std::nullopt;
      default:  // groups, which ONNX never had, and invalid types
        return std::nullopt;
    }
  }

 private:
  std::optional<uint64_t> Varint() {
    uint64_t value = 0;
    for (int i = 0; i < 10 && i < rest_.size(); ++i) {
      auto byte = static_cast<unsigned char>(rest_[i]);
      value |= static_cast<uint64_t>(byte & 0x7F) << (7 * i);
      if ((byte & 0x80) == 0) {
        rest_.remove_prefix(i + 1);
        return value;
      }
    }
    return std::nullopt;
  }

  bool Skip(size_t count) {
    if (count > rest_.size()) {
      return false;
    }
    rest_.remove_prefix(count);
    return true;
  }

  absl::string_view rest_;
};

class Scanner {
 public:
  explicit Scanner(const std::string& file) : file_(file) {}

  absl::Status Scan(Message message, absl::string_view bytes, int depth) {
    if (depth > kMaxDepth) {
      return LocalError(absl::StatusCode::kInvalidArgument, v1::MODEL_LIMIT,
                        absl::StrCat("messages are nested deeper than ", kMaxDepth, "; flatten the model's subgraphs"), file_);
    }
    if (message == Message::kTensor) {
      return ScanTensor(bytes);
    }
    for (Reader reader(bytes); !reader.done();) {
      std::optional<Field> field = reader.Next();
      if (!field.has_value()) {
        return Unreadable();
      }
      const auto* edge = std::find_if(kEdges.begin(), kEdges.end(),
                                      [&](const Edge& e) { return e.parent == message && e.field == field->number; });
      if (edge != kEdges.end() && field->bytes.has_value()) {
        MPC_RETURN_IF_ERROR(Scan(edge->child, *field->bytes, depth + 1));
      }
    }
    return absl::OkStatus();
  }

  std::vector<std::string> TakeLocations() { return std::move(locations_); }

 private:
  absl::Status ScanTensor(absl::string_view bytes) {
    bool external = false;
    std::optional<absl::string_view> location;
    for (Reader reader(bytes); !reader.done();) {
      std::optional<Field> field = reader.Next();
      if (!field.has_value()) {
        return Unreadable();
      }
      if (field->number == kTensorDataLocation && !field->bytes.has_value()) {
        external = field->varint == kDataLocationExternal;
      } else if (field->number == kTensorExternalData && field->bytes.has_value()) {
        MPC_RETURN_IF_ERROR(ScanEntry(*field->bytes, location));
      }
    }
    return external ? Add(location.value_or("")) : absl::OkStatus();
  }

  absl::Status ScanEntry(absl::string_view bytes, std::optional<absl::string_view>& location) {
    absl::string_view key;
    absl::string_view value;
    for (Reader reader(bytes); !reader.done();) {
      std::optional<Field> field = reader.Next();
      if (!field.has_value()) {
        return Unreadable();
      }
      if (field->number == kEntryKey && field->bytes.has_value()) {
        key = *field->bytes;
      } else if (field->number == kEntryValue && field->bytes.has_value()) {
        value = *field->bytes;
      }
    }
    if (key == "location") {
      location = value;
    }
    return absl::OkStatus();
  }

  absl::Status Add(absl::string_view location) {
    std::vector<std::string> components;
    for (absl::string_view component : absl::StrSplit(location, '/')) {
      if (component != "." && !component.empty()) {
        components.emplace_back(component);
      }
    }
    if (components.empty() || location.front() == '/' ||
        std::find(components.begin(), components.end(), "..") != components.end()) {
      return LocalError(
          absl::StatusCode::kInvalidArgument, v1::MODEL_EXTERNAL_DATA,
          absl::StrCat("the external data location '", location,
                       "' is not a path inside the model's folder; store the data beside the model and export it again"),
          file_);
    }
    for (const std::string& component : components) {
      MPC_RETURN_IF_ERROR(CheckName(component, absl::StrCat(file_, ": external data '", location, "'")));
    }
    std::string normal = absl::StrJoin(components, "/");
    if (seen_.insert(normal).second) {
      locations_.push_back(std::move(normal));
    }
    return absl::OkStatus();
  }

  absl::Status Unreadable() const {
    return LocalError(absl::StatusCode::kInvalidArgument, v1::MODEL_UNREADABLE, "is no ONNX model or is cut off; export it again",
                      file_);
  }

  const std::string& file_;
  absl::flat_hash_set<std::string> seen_;
  std::vector<std::string> locations_;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> FindExternalData(absl::string_view model, const std::string& file) {
  Scanner scanner(file);
  MPC_RETURN_IF_ERROR(scanner.Scan(Message::kModel, model, 0));
  return scanner.TakeLocations();
}

}  // namespace modelpress::client
