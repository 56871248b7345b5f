#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "engine/model/element_type.h"
#include "engine/model/model.h"
#include "engine/model/wire.h"
#include "google/protobuf/io/coded_stream.h"

namespace modelpress::engine {
namespace {

// The messages of onnx.proto that hold messages; all others are kLeaf.
enum class Kind {
  kLeaf,
  kModel,
  kTraining,
  kFunction,
  kGraph,
  kNode,
  kAttribute,
  kTensor,
  kSparse,
  kValueInfo,
  kType,
  kElementType,
  kShapedType,
  kShape,
  kAnnotation
};

struct Child {
  Kind parent;
  uint32_t number;
  Kind kind;
  bool is_item = false;  // counts for ModelLimits.max_items
};

constexpr uint32_t kModelGraph = 7;
constexpr uint32_t kGraphNode = 1, kGraphInitializer = 5, kGraphSparseInitializer = 15;
constexpr uint32_t kNodeAttribute = 5;
constexpr uint32_t kAttributeTensor = 5;

// Every message field of every message of onnx.proto.
constexpr Child kChildren[] = {
    {Kind::kModel, kModelGraph, Kind::kGraph},
    {Kind::kModel, 8, Kind::kLeaf},
    {Kind::kModel, 14, Kind::kLeaf},
    {Kind::kModel, 20, Kind::kTraining},
    {Kind::kModel, 25, Kind::kFunction},
    {Kind::kTraining, 1, Kind::kGraph},
    {Kind::kTraining, 2, Kind::kGraph},
    {Kind::kTraining, 3, Kind::kLeaf},
    {Kind::kTraining, 4, Kind::kLeaf},
    {Kind::kFunction, 7, Kind::kNode, true},
    {Kind::kFunction, 9, Kind::kLeaf},
    {Kind::kFunction, 11, Kind::kAttribute},
    {Kind::kFunction, 12, Kind::kValueInfo},
    {Kind::kFunction, 14, Kind::kLeaf},
    {Kind::kGraph, kGraphNode, Kind::kNode, true},
    {Kind::kGraph, kGraphInitializer, Kind::kTensor, true},
    {Kind::kGraph, 11, Kind::kValueInfo},
    {Kind::kGraph, 12, Kind::kValueInfo},
    {Kind::kGraph, 13, Kind::kValueInfo},
    {Kind::kGraph, 14, Kind::kAnnotation},
    {Kind::kGraph, kGraphSparseInitializer, Kind::kSparse, true},
    {Kind::kGraph, 16, Kind::kLeaf},
    {Kind::kNode, kNodeAttribute, Kind::kAttribute},
    {Kind::kNode, 9, Kind::kLeaf},
    {Kind::kAttribute, kAttributeTensor, Kind::kTensor},
    {Kind::kAttribute, 6, Kind::kGraph},
    {Kind::kAttribute, 10, Kind::kTensor},
    {Kind::kAttribute, 11, Kind::kGraph},
    {Kind::kAttribute, 14, Kind::kType},
    {Kind::kAttribute, 15, Kind::kType},
    {Kind::kAttribute, 22, Kind::kSparse},
    {Kind::kAttribute, 23, Kind::kSparse},
    {Kind::kTensor, 3, Kind::kLeaf},
    {Kind::kTensor, 13, Kind::kLeaf},
    {Kind::kTensor, 16, Kind::kLeaf},
    {Kind::kSparse, 1, Kind::kTensor},
    {Kind::kSparse, 2, Kind::kTensor},
    {Kind::kValueInfo, 2, Kind::kType},
    {Kind::kValueInfo, 4, Kind::kLeaf},
    {Kind::kAnnotation, 2, Kind::kLeaf},
    {Kind::kType, 1, Kind::kShapedType},
    {Kind::kType, 4, Kind::kElementType},
    {Kind::kType, 5, Kind::kElementType},
    {Kind::kType, 7, Kind::kLeaf},
    {Kind::kType, 8, Kind::kShapedType},
    {Kind::kType, 9, Kind::kElementType},
    {Kind::kElementType, 1, Kind::kType},  // of a sequence or an optional
    {Kind::kElementType, 2, Kind::kType},  // of a map
    {Kind::kShapedType, 2, Kind::kShape},
    {Kind::kShape, 1, Kind::kLeaf},
};

const Child* FindChild(Kind parent, uint32_t number) {
  const auto* it = std::find_if(std::begin(kChildren), std::end(kChildren),
                                [&](const Child& child) { return child.parent == parent && child.number == number; });
  return it == std::end(kChildren) ? nullptr : it;
}

// What a message or string costs in memory beside its bytes on the wire, about: two bytes can make an empty message.
constexpr uint64_t kObjectBytes = 32;

// The elements of a tensor while its fields are read: one run of the file as long as it comes in one piece.
struct RawField {
  Bytes run;
  std::string joined;  // used if there was more than one piece
  bool is_joined = false;
};

// The location of external data, relative to the model's folder, without "." components.
absl::StatusOr<std::string> CleanLocation(absl::string_view location) {
  auto error = [&](absl::string_view why) {
    return MakeError(v1::MODEL_EXTERNAL_DATA,
                     absl::StrCat("the external data location '", location, "' ", why, "; use a path below the model's folder"));
  };
  if (location.empty() || location[0] == '/') {
    return error("is no relative path");
  }
  if (location.find('\\') != absl::string_view::npos || location.find('\0') != absl::string_view::npos) {
    return error("contains a backslash or a null character");
  }
  std::vector<absl::string_view> parts;
  for (absl::string_view part : absl::StrSplit(location, '/')) {
    if (part == "..") {
      return error("contains '..'");
    }
    if (!part.empty() && part != ".") {
      parts.push_back(part);
    }
  }
  if (parts.empty()) {
    return error("names no file");
  }
  return absl::StrJoin(parts, "/");
}

// Who calls functions of the model itself inlines them, nested calls too: a few of them can stand for more nodes than fit
// anywhere, and one that calls itself for endlessly many. So the calls are followed here first.
class FunctionCalls {
 public:
  FunctionCalls(const Model& model, const ModelLimits& limits) : model_(model), limits_(limits) {
    for (const onnx::FunctionProto& function : model.shell.functions()) {
      functions_[KeyOf(function.domain(), function.name(), function.overload())].function = &function;
    }
  }

  // GRAPH_INVALID: a function calls itself, however indirectly. MODEL_LIMIT: too many calls within calls, or too many nodes.
  absl::Status Check() {
    if (functions_.empty()) {
      return absl::OkStatus();
    }
    for (auto& [key, callee] : functions_) {
      MP_RETURN_IF_ERROR(Measure(callee).status());
    }
    Size size;
    for (const Node& node : model_.nodes) {
      MP_RETURN_IF_ERROR(AddNode(node.proto, size));
    }
    return absl::OkStatus();
  }

 private:
  using Key = std::tuple<std::string, std::string, std::string>;
  struct Size {
    uint64_t nodes = 0;
    int depth = 0;  // of calls within calls
  };
  struct Callee {
    const onnx::FunctionProto* function = nullptr;
    std::optional<Size> size;  // once it is known
    bool is_open = false;      // being measured
  };

  // The default domain has two names.
  static Key KeyOf(const std::string& domain, const std::string& name, const std::string& overload) {
    return {domain == "ai.onnx" ? "" : domain, name, overload};
  }

  absl::StatusOr<Size> Measure(Callee& callee) {
    const onnx::FunctionProto& function = *callee.function;
    const ErrorPlace place = {.layer = function.name()};
    if (callee.is_open) {
      return MakeError(v1::GRAPH_INVALID, "the function calls itself", place);
    }
    if (!callee.size.has_value()) {
      if (++open_ > limits_.max_depth) {  // before the next takes its share of the stack
        return TooDeep(place);
      }
      callee.is_open = true;
      Size size;
      for (const onnx::NodeProto& node : function.node()) {
        MP_RETURN_IF_ERROR(AddNode(node, size));
      }
      --open_;
      callee.is_open = false;
      ++size.depth;
      callee.size = size;
    }
    return callee.size->depth > limits_.max_depth ? absl::StatusOr<Size>(TooDeep(place)) : *callee.size;
  }

  absl::Status TooDeep(const ErrorPlace& place) const {
    return MakeError(v1::MODEL_LIMIT, absl::StrCat("functions call functions more than ", limits_.max_depth, " levels deep"),
                     place);
  }

  absl::Status Add(uint64_t nodes, Size& size) const {
    size.nodes += nodes;  // of two numbers that are at most max_items
    return size.nodes > limits_.max_items
               ? MakeError(v1::MODEL_LIMIT, absl::StrCat("the model has more than ", limits_.max_items,
                                                         " nodes once the calls of its functions are inlined"))
               : absl::OkStatus();
  }

  // The node itself and what is inlined for it, in its subgraphs too.
  absl::Status AddNode(const onnx::NodeProto& node, Size& size) {
    MP_RETURN_IF_ERROR(Add(1, size));
    if (auto it = functions_.find(KeyOf(node.domain(), node.op_type(), node.overload())); it != functions_.end()) {
      MP_ASSIGN_OR_RETURN(const Size inlined, Measure(it->second));
      size.depth = std::max(size.depth, inlined.depth);
      MP_RETURN_IF_ERROR(Add(inlined.nodes, size));
    }
    for (const onnx::AttributeProto& attribute : node.attribute()) {
      for (const onnx::NodeProto& inner : attribute.g().node()) {
        MP_RETURN_IF_ERROR(AddNode(inner, size));
      }
      for (const onnx::GraphProto& graph : attribute.graphs()) {
        for (const onnx::NodeProto& inner : graph.node()) {
          MP_RETURN_IF_ERROR(AddNode(inner, size));
        }
      }
    }
    return absl::OkStatus();
  }

  const Model& model_;
  const ModelLimits& limits_;
  std::map<Key, Callee> functions_;
  int open_ = 0;  // functions being measured
};

class Reader {
 public:
  Reader(const FileSet& files, const std::string& name, const ModelLimits& limits)
      : files_(files), name_(name), folder_(name.substr(0, name.rfind('/') + 1)), limits_(limits) {}

  absl::StatusOr<Model> Read();

 private:
  // Walks `message`; take(field) returns true for the fields it has dealt with, all others are merged into `rest`.
  template <typename Take>
  absl::Status Split(Bytes message, Kind kind, int depth, google::protobuf::MessageLite& rest, Take take);
  // Parses fields of a message of `kind` into `message`. The one way into protobuf objects: limits are checked here.
  absl::Status Merge(Bytes fields, Kind kind, int depth, google::protobuf::MessageLite& message);
  absl::Status Account(Bytes message, Kind kind, int depth);
  absl::Status Charge(uint64_t bytes);
  absl::Status CountItem();
  absl::Status CheckDepth(int depth) const;

  absl::Status ReadGraph(Bytes message, Model& model);
  absl::Status ReadNode(Bytes message, Node& node);
  // `messages`: all occurrences of the tensor's field, merged like protobuf does.
  absl::Status ReadTensor(absl::Span<const Bytes> messages, int depth, Tensor& tensor);
  absl::Status ReadTensorData(std::map<DataField, RawField>& fields, Tensor& tensor);
  absl::Status AddPiece(RawField& field, bool append, Bytes piece);

  // Where the external data of `header` lies, `header` freed of it. No file: it is missing, and noted.
  absl::StatusOr<FileRange> ResolveExternal(onnx::TensorProto& header);
  // Loads external data into messages that are kept as a whole, and checks their tensors.
  absl::Status Finish(onnx::TensorProto& tensor);
  absl::Status Finish(onnx::SparseTensorProto& sparse);
  absl::Status Finish(onnx::AttributeProto& attribute);
  absl::Status Finish(onnx::NodeProto& node);
  absl::Status Finish(onnx::GraphProto& graph);
  absl::Status Finish(onnx::FunctionProto& function);
  absl::Status Finish(onnx::TrainingInfoProto& training);
  absl::Status CheckName(absl::string_view name) const;
  absl::Status CheckValueNames(const onnx::GraphProto& graph) const;
  // Names and numbers of what a node has.
  absl::Status CheckNode(const onnx::NodeProto& node) const;
  template <typename Messages>
  absl::Status FinishAll(Messages* messages);

  absl::Status Unreadable(const uint8_t* position, absl::string_view why) const {
    return MakeError(v1::MODEL_UNREADABLE, absl::StrCat(why, " at byte ", position - file_->mapping().data()), {.file = name_});
  }
  absl::Status OverLimit(absl::string_view what, uint64_t limit) const {
    return MakeError(v1::MODEL_LIMIT, absl::StrCat("the model has more than ", limit, " ", what), {.file = name_});
  }
  absl::Status AtTensor(const absl::Status& status, const onnx::TensorProto& header) const {
    return AtPlace(status, {.file = name_, .layer = header.name()});
  }

  const FileSet& files_;
  const std::string& name_;
  const std::string folder_;  // of the model, with the final '/'
  const ModelLimits& limits_;
  std::shared_ptr<const InputFile> file_;
  uint64_t items_ = 0;
  uint64_t inline_bytes_ = 0;
  std::map<std::string, std::shared_ptr<const InputFile>> external_files_;
  std::set<std::string> missing_;
};

absl::Status Reader::Charge(uint64_t bytes) {
  if (bytes > limits_.max_inline_bytes - inline_bytes_) {
    return OverLimit("bytes outside large tensors", limits_.max_inline_bytes);
  }
  inline_bytes_ += bytes;
  return absl::OkStatus();
}

absl::Status Reader::CountItem() {
  return ++items_ > limits_.max_items ? OverLimit("nodes and initializers", limits_.max_items) : absl::OkStatus();
}

absl::Status Reader::CheckDepth(int depth) const {
  return depth > limits_.max_depth ? OverLimit("levels of nested messages", limits_.max_depth) : absl::OkStatus();
}

absl::Status Reader::Account(Bytes message, Kind kind, int depth) {
  MP_RETURN_IF_ERROR(CheckDepth(depth));
  FieldCursor cursor(message);
  WireField field;
  while (!cursor.done()) {
    if (!cursor.Next(field)) {
      return Unreadable(cursor.position(), "the file is no ONNX model or is damaged: bad field");
    }
    if (field.type != WireType::kLength) {
      continue;
    }
    MP_RETURN_IF_ERROR(Charge(kObjectBytes));
    const Child* child = FindChild(kind, field.number);
    if (child == nullptr) {
      continue;
    }
    if (child->is_item) {
      MP_RETURN_IF_ERROR(CountItem());
    }
    MP_RETURN_IF_ERROR(Account(field.content, child->kind, depth + 1));
  }
  return absl::OkStatus();
}

absl::Status Reader::Merge(Bytes fields, Kind kind, int depth, google::protobuf::MessageLite& message) {
  if (fields.empty()) {
    return absl::OkStatus();
  }
  MP_RETURN_IF_ERROR(Charge(fields.size()));
  MP_RETURN_IF_ERROR(Account(fields, kind, depth));
  if (fields.size() > std::numeric_limits<int>::max()) {
    return OverLimit("bytes in one message", std::numeric_limits<int>::max());
  }
  google::protobuf::io::CodedInputStream stream(fields.data(), static_cast<int>(fields.size()));
  stream.SetRecursionLimit(limits_.max_depth + 1);  // Account has checked it
  if (!message.MergePartialFromCodedStream(&stream) || !stream.ConsumedEntireMessage()) {
    return Unreadable(fields.data(), "the file is no ONNX model or is damaged: bad message");
  }
  return absl::OkStatus();
}

template <typename Take>
absl::Status Reader::Split(Bytes message, Kind kind, int depth, google::protobuf::MessageLite& rest, Take take) {
  MP_RETURN_IF_ERROR(CheckDepth(depth));
  FieldCursor cursor(message);
  WireField field;
  const uint8_t* run = message.data();  // start of the fields that go to `rest`
  while (!cursor.done()) {
    if (!cursor.Next(field)) {
      return Unreadable(cursor.position(), "the file is no ONNX model or is damaged: bad field");
    }
    MP_ASSIGN_OR_RETURN(bool taken, take(field));
    if (taken) {
      MP_RETURN_IF_ERROR(Merge({run, static_cast<size_t>(field.whole.data() - run)}, kind, depth, rest));
      run = field.whole.data() + field.whole.size();
    }
  }
  return Merge({run, static_cast<size_t>(message.data() + message.size() - run)}, kind, depth, rest);
}

absl::StatusOr<Model> Reader::Read() {
  MP_ASSIGN_OR_RETURN(file_, files_.Open(name_));
  Model model;
  bool has_graph = false;
  MP_RETURN_IF_ERROR(Split(file_->mapping(), Kind::kModel, 1, model.shell, [&](const WireField& field) -> absl::StatusOr<bool> {
    if (field.number != kModelGraph || field.type != WireType::kLength) {
      return false;
    }
    has_graph = true;
    MP_RETURN_IF_ERROR(ReadGraph(field.content, model));
    return true;
  }));
  if (!has_graph) {
    return MakeError(v1::MODEL_UNREADABLE, "the file is no ONNX model: it has no graph", {.file = name_});
  }
  MP_RETURN_IF_ERROR(FinishAll(model.shell.mutable_functions()));
  MP_RETURN_IF_ERROR(FinishAll(model.shell.mutable_training_info()));
  MP_RETURN_IF_ERROR(CheckValueNames(model.shell.graph()));
  MP_RETURN_IF_ERROR(AtPlace(FunctionCalls(model, limits_).Check(), {.file = name_}));
  if (!missing_.empty()) {
    return WithMetadata(
        MakeError(v1::FILE_NOT_FOUND,
                  absl::StrCat("the model's external data is missing; upload ", absl::StrJoin(missing_, ", ")), {.file = name_}),
        "missing", absl::StrJoin(missing_, "\n"));
  }
  for (const auto& [path, file] : external_files_) {
    model.external_files.push_back(path);
  }
  return model;
}

absl::Status Reader::ReadGraph(Bytes message, Model& model) {
  return Split(message, Kind::kGraph, 2, *model.shell.mutable_graph(), [&](const WireField& field) -> absl::StatusOr<bool> {
    const Child* child = FindChild(Kind::kGraph, field.number);
    if (field.type != WireType::kLength || child == nullptr || !child->is_item) {
      return false;
    }
    MP_RETURN_IF_ERROR(CountItem());
    switch (child->kind) {
      case Kind::kNode:
        MP_RETURN_IF_ERROR(ReadNode(field.content, model.nodes.emplace_back()));
        break;
      case Kind::kTensor:
        MP_RETURN_IF_ERROR(ReadTensor({field.content}, 3, model.initializers.emplace_back()));
        break;
      default: {
        onnx::SparseTensorProto& sparse = model.sparse_initializers.emplace_back();
        MP_RETURN_IF_ERROR(Merge(field.content, Kind::kSparse, 3, sparse));
        MP_RETURN_IF_ERROR(Finish(sparse));
        break;
      }
    }
    return true;
  });
}

absl::Status Reader::ReadNode(Bytes message, Node& node) {
  MP_RETURN_IF_ERROR(Split(message, Kind::kNode, 3, node.proto, [&](const WireField& field) -> absl::StatusOr<bool> {
    if (field.number != kNodeAttribute || field.type != WireType::kLength) {
      return false;
    }
    MP_RETURN_IF_ERROR(Charge(kObjectBytes));
    if (node.proto.attribute_size() == kMaxNodeAttributes) {
      return OverLimit("attributes of one node", kMaxNodeAttributes);
    }
    onnx::AttributeProto& attribute = *node.proto.add_attribute();
    std::vector<Bytes> tensors;
    MP_RETURN_IF_ERROR(Split(field.content, Kind::kAttribute, 4, attribute, [&](const WireField& part) -> absl::StatusOr<bool> {
      if (part.number != kAttributeTensor || part.type != WireType::kLength) {
        return false;
      }
      MP_RETURN_IF_ERROR(Charge(kObjectBytes));
      tensors.push_back(part.content);
      return true;
    }));
    MP_RETURN_IF_ERROR(Finish(attribute));
    if (tensors.empty()) {
      return true;
    }
    Tensor tensor;
    MP_RETURN_IF_ERROR(ReadTensor(tensors, 5, tensor));
    if (tensor.external || (tensor.payload != nullptr && tensor.payload->size() >= limits_.stream_threshold)) {
      node.tensors.emplace_back(node.proto.attribute_size() - 1, std::move(tensor));
    } else {
      MP_ASSIGN_OR_RETURN(*attribute.mutable_t(), ToProto(tensor));
    }
    return true;
  }));
  return CheckNode(node.proto);
}

absl::Status Reader::CheckName(absl::string_view name) const {
  return name.size() > kMaxModelNameBytes ? OverLimit("bytes in one name", kMaxModelNameBytes) : absl::OkStatus();
}

absl::Status Reader::CheckValueNames(const onnx::GraphProto& graph) const {
  for (const auto* values : {&graph.input(), &graph.output(), &graph.value_info()}) {
    for (const onnx::ValueInfoProto& value : *values) {
      MP_RETURN_IF_ERROR(CheckName(value.name()));
    }
  }
  return absl::OkStatus();
}

absl::Status Reader::CheckNode(const onnx::NodeProto& node) const {
  if (node.attribute_size() > kMaxNodeAttributes) {
    return OverLimit("attributes of one node", kMaxNodeAttributes);
  }
  if (node.input_size() > kMaxNodeValues || node.output_size() > kMaxNodeValues) {
    return OverLimit("inputs or outputs of one node", kMaxNodeValues);
  }
  for (const onnx::AttributeProto& attribute : node.attribute()) {
    // ONNX Runtime divides by them before it looks at them, and dies of it.
    const bool is_divisor = attribute.name() == "strides" || attribute.name() == "dilations" ||
                            attribute.name() == "kernel_shape" || attribute.name() == "group";
    const bool is_positive = std::all_of(attribute.ints().begin(), attribute.ints().end(), [](int64_t i) { return i > 0; }) &&
                             (!attribute.has_i() || attribute.i() > 0);
    if (is_divisor && !is_positive && (node.domain().empty() || node.domain() == "ai.onnx")) {
      return MakeError(v1::GRAPH_INVALID, absl::StrCat("the attribute '", attribute.name(), "' has a value that is not positive"),
                       {.file = name_, .layer = node.name()});
    }
  }
  for (const std::string* name : {&node.name(), &node.op_type(), &node.domain()}) {
    MP_RETURN_IF_ERROR(CheckName(*name));
  }
  for (const auto* names : {&node.input(), &node.output()}) {
    for (const std::string& name : *names) {
      MP_RETURN_IF_ERROR(CheckName(name));
    }
  }
  return absl::OkStatus();
}

absl::Status Reader::AddPiece(RawField& field, bool append, Bytes piece) {
  if (!append || (!field.is_joined && field.run.empty())) {
    field = {.run = piece};
    return absl::OkStatus();
  }
  if (!field.is_joined) {
    MP_RETURN_IF_ERROR(Charge(field.run.size()));
    field.joined.assign(field.run.begin(), field.run.end());
    field.is_joined = true;
  }
  MP_RETURN_IF_ERROR(Charge(piece.size()));
  field.joined.append(piece.begin(), piece.end());
  return absl::OkStatus();
}

absl::Status Reader::ReadTensor(absl::Span<const Bytes> messages, int depth, Tensor& tensor) {
  std::map<DataField, RawField> fields;
  for (Bytes message : messages) {
    MP_RETURN_IF_ERROR(Split(message, Kind::kTensor, depth, tensor.header, [&](const WireField& part) -> absl::StatusOr<bool> {
      const auto field = static_cast<DataField>(part.number);
      WireType single = WireType::kVarint;  // the wire type of one value that is not packed
      switch (field) {
        case DataField::kRaw:
          single = WireType::kLength;
          break;
        case DataField::kFloat:
          single = WireType::kFixed32;
          break;
        case DataField::kDouble:
          single = WireType::kFixed64;
          break;
        case DataField::kInt32:
        case DataField::kInt64:
        case DataField::kUint64:
          break;
        default:
          return false;
      }
      if (part.type != WireType::kLength && part.type != single) {
        return false;
      }
      MP_RETURN_IF_ERROR(AddPiece(fields[field], field != DataField::kRaw, part.content));
      return true;
    }));
  }
  MP_RETURN_IF_ERROR(CheckName(tensor.name()));
  return AtTensor(ReadTensorData(fields, tensor), tensor.header);
}

absl::Status Reader::ReadTensorData(std::map<DataField, RawField>& fields, Tensor& tensor) {
  std::erase_if(fields, [](const auto& entry) {
    return entry.first != DataField::kRaw && entry.second.run.empty() && !entry.second.is_joined;
  });
  const bool has_strings = tensor.header.string_data_size() > 0;
  if (fields.size() + (has_strings ? 1 : 0) > 1) {
    return MakeError(v1::TENSOR_INVALID, "the tensor has data in more than one field");
  }
  if (tensor.header.data_location() == onnx::TensorProto::EXTERNAL) {
    if (!fields.empty() || has_strings) {
      return MakeError(v1::MODEL_EXTERNAL_DATA, "the tensor has external data and data in the model as well");
    }
    MP_ASSIGN_OR_RETURN(FileRange range, ResolveExternal(tensor.header));
    tensor.external = true;
    tensor.field = DataField::kRaw;
    if (range.file == nullptr) {
      return absl::OkStatus();  // reported with all other missing files
    }
    tensor.payload = std::make_shared<FilePayload>(std::move(range));
  } else if (has_strings) {
    tensor.field = DataField::kString;
  } else if (!fields.empty()) {
    auto& [field, data] = *fields.begin();
    tensor.field = field;
    if (data.is_joined) {
      tensor.payload = std::make_shared<MemoryPayload>(std::move(data.joined));
    } else if (data.run.size() < limits_.stream_threshold) {
      MP_RETURN_IF_ERROR(Charge(data.run.size()));
      tensor.payload = std::make_shared<MemoryPayload>(std::string(data.run.begin(), data.run.end()));
    } else {
      const auto offset = static_cast<uint64_t>(data.run.data() - file_->mapping().data());
      tensor.payload = std::make_shared<FilePayload>(FileRange{.file = file_, .offset = offset, .size = data.run.size()});
    }
  }

  uint64_t amount = tensor.header.string_data_size();
  if (tensor.payload != nullptr) {
    if (const int value_bytes = FixedValueBytes(tensor.field); value_bytes > 0) {
      if (tensor.payload->size() % value_bytes != 0) {
        return MakeError(v1::TENSOR_INVALID, "the packed values end in the middle of a value");
      }
      amount = tensor.payload->size() / value_bytes;
    } else {
      uint64_t value = 0;
      for (VarintReader reader(*tensor.payload); !reader.done(); ++amount) {
        MP_RETURN_IF_ERROR(reader.Next(value));
      }
    }
  }
  return CheckData(tensor.header, tensor.field, amount, limits_.max_dims);
}

absl::StatusOr<FileRange> Reader::ResolveExternal(onnx::TensorProto& header) {
  std::string location;
  std::string offset_text = "0";
  std::string length_text;
  for (const onnx::StringStringEntryProto& entry : header.external_data()) {
    std::string* value = entry.key() == "location" ? &location
                         : entry.key() == "offset" ? &offset_text
                         : entry.key() == "length" ? &length_text
                                                   : nullptr;  // checksum, ...: of no use here
    if (value != nullptr) {
      *value = entry.value();
    }
  }
  header.clear_external_data();
  header.clear_data_location();
  MP_RETURN_IF_ERROR(CheckName(location));
  MP_ASSIGN_OR_RETURN(std::string path, CleanLocation(location));
  path = folder_ + path;
  if (!files_.Contains(path)) {
    missing_.insert(path);
    return FileRange{};
  }
  std::shared_ptr<const InputFile>& file = external_files_[path];
  if (file == nullptr) {
    if (external_files_.size() > limits_.max_external_files) {
      return OverLimit("files of external data", limits_.max_external_files);
    }
    MP_ASSIGN_OR_RETURN(file, files_.Open(path));
  }
  auto error = [&](absl::string_view why) {
    return MakeError(v1::MODEL_EXTERNAL_DATA,
                     absl::StrCat("the external data in ", path, " at offset '", offset_text, "', length '", length_text, "' ",
                                  why, " (the file has ", file->size(), " bytes)"));
  };
  FileRange range = {.file = file};
  if (!absl::SimpleAtoi(offset_text, &range.offset) || (!length_text.empty() && !absl::SimpleAtoi(length_text, &range.size))) {
    return error("has a position that is no number");
  }
  if (range.offset > file->size()) {
    return error("starts behind the end of the file");
  }
  if (length_text.empty()) {
    range.size = file->size() - range.offset;
  }
  if (range.size > file->size() - range.offset) {
    return error("ends behind the end of the file");
  }
  return range;
}

template <typename Messages>
absl::Status Reader::FinishAll(Messages* messages) {
  for (auto& message : *messages) {
    MP_RETURN_IF_ERROR(Finish(message));
  }
  return absl::OkStatus();
}

absl::Status Reader::Finish(onnx::TensorProto& tensor) {
  auto finish = [&]() -> absl::Status {
    MP_RETURN_IF_ERROR(CheckName(tensor.name()));
    const bool external = tensor.data_location() == onnx::TensorProto::EXTERNAL;
    if (external) {
      MP_ASSIGN_OR_RETURN(FileRange range, ResolveExternal(tensor));
      if (range.file == nullptr) {
        return absl::OkStatus();  // reported with all other missing files
      }
      MP_RETURN_IF_ERROR(Charge(range.size));
      std::string data(range.size, '\0');
      MP_RETURN_IF_ERROR(range.file->ReadAt(range.offset, {reinterpret_cast<uint8_t*>(data.data()), data.size()}));
      tensor.set_raw_data(std::move(data));
    }
    const std::pair<DataField, uint64_t> amounts[] = {
        {DataField::kRaw, tensor.raw_data().size()},    {DataField::kFloat, tensor.float_data_size()},
        {DataField::kInt32, tensor.int32_data_size()},  {DataField::kString, tensor.string_data_size()},
        {DataField::kInt64, tensor.int64_data_size()},  {DataField::kDouble, tensor.double_data_size()},
        {DataField::kUint64, tensor.uint64_data_size()}};
    std::pair<DataField, uint64_t> found = {tensor.has_raw_data() ? DataField::kRaw : DataField::kNone, 0};
    for (const auto& amount : amounts) {
      if (amount.second > 0 && found.second > 0) {
        return MakeError(external ? v1::MODEL_EXTERNAL_DATA : v1::TENSOR_INVALID, "the tensor has data in more than one place");
      }
      found = amount.second > 0 ? amount : found;
    }
    return CheckData(tensor, found.first, found.second, limits_.max_dims);
  };
  return AtTensor(finish(), tensor);
}

absl::Status Reader::Finish(onnx::SparseTensorProto& sparse) {
  if (sparse.has_values()) {
    MP_RETURN_IF_ERROR(Finish(*sparse.mutable_values()));
  }
  return sparse.has_indices() ? Finish(*sparse.mutable_indices()) : absl::OkStatus();
}

absl::Status Reader::Finish(onnx::AttributeProto& attribute) {
  if (attribute.has_t()) {
    MP_RETURN_IF_ERROR(Finish(*attribute.mutable_t()));
  }
  if (attribute.has_g()) {
    MP_RETURN_IF_ERROR(Finish(*attribute.mutable_g()));
  }
  if (attribute.has_sparse_tensor()) {
    MP_RETURN_IF_ERROR(Finish(*attribute.mutable_sparse_tensor()));
  }
  MP_RETURN_IF_ERROR(FinishAll(attribute.mutable_tensors()));
  MP_RETURN_IF_ERROR(FinishAll(attribute.mutable_graphs()));
  return FinishAll(attribute.mutable_sparse_tensors());
}

absl::Status Reader::Finish(onnx::NodeProto& node) {
  MP_RETURN_IF_ERROR(CheckNode(node));
  return FinishAll(node.mutable_attribute());
}

absl::Status Reader::Finish(onnx::GraphProto& graph) {
  MP_RETURN_IF_ERROR(CheckValueNames(graph));
  MP_RETURN_IF_ERROR(FinishAll(graph.mutable_node()));
  MP_RETURN_IF_ERROR(FinishAll(graph.mutable_initializer()));
  return FinishAll(graph.mutable_sparse_initializer());
}

absl::Status Reader::Finish(onnx::FunctionProto& function) {
  MP_RETURN_IF_ERROR(FinishAll(function.mutable_attribute_proto()));
  return FinishAll(function.mutable_node());
}

absl::Status Reader::Finish(onnx::TrainingInfoProto& training) {
  if (training.has_initialization()) {
    MP_RETURN_IF_ERROR(Finish(*training.mutable_initialization()));
  }
  return training.has_algorithm() ? Finish(*training.mutable_algorithm()) : absl::OkStatus();
}

}  // namespace

absl::StatusOr<Model> ReadModel(const FileSet& files, const std::string& name, const ModelLimits& limits) {
  return Reader(files, name, limits).Read();
}

}  // namespace modelpress::engine
