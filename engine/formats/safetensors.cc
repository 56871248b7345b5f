#include "engine/formats/safetensors.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "engine/formats/text_format.h"
#include "engine/model/element_type.h"
#include "nlohmann/json.hpp"

namespace modelpress::engine {
namespace {

using onnx::TensorProto;

constexpr uint64_t kLengthBytes = 8;
constexpr char kMetadata[] = "__metadata__";

constexpr std::pair<absl::string_view, TensorProto::DataType> kTypes[] = {
    {"F64", TensorProto::DOUBLE}, {"F32", TensorProto::FLOAT},  {"F16", TensorProto::FLOAT16}, {"BF16", TensorProto::BFLOAT16},
    {"I8", TensorProto::INT8},    {"I16", TensorProto::INT16},  {"I32", TensorProto::INT32},   {"I64", TensorProto::INT64},
    {"U8", TensorProto::UINT8},   {"U16", TensorProto::UINT16}, {"U32", TensorProto::UINT32},  {"U64", TensorProto::UINT64},
    {"BOOL", TensorProto::BOOL},
};

// What the header says about a tensor.
struct Entry {
  TensorProto header;
  bool has_shape = false;
  bool has_offsets = false;
  std::vector<uint64_t> offsets;  // begin and end of its bytes behind the header
};

absl::Status Invalid(const std::string& file, const std::string& tensor, absl::string_view message) {
  return MakeError(v1::WEIGHTS_INVALID, message, {.file = file, .layer = ShortenedText(tensor)});
}

// Takes the header apart as it is parsed, so that nothing is kept but what belongs there.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::string& file) : file_(file) {}

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("true or false"); }
  bool number_float(number_float_t, const string_t&) override { return Unexpected("a number that is no 64-bit integer"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return Fail(absl::StrCat("its shape has a dim of ", value));
      }
      if (entry_.header.dims_size() == kMaxTensorDims) {
        return Fail(absl::StrCat("its shape has more than ", kMaxTensorDims, " dims"));
      }
      entry_.header.add_dims(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == Place::kOffsets) {
      entry_.offsets.push_back(value);
      return entry_.offsets.size() <= 2 || Fail("its data_offsets are more than two");
    }
    return Unexpected("a number");
  }
  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      return true;
    }
    if (place_ != Place::kTensor || key_ != "dtype") {
      return Unexpected("a text");
    }
    for (const auto& [name, type] : kTypes) {
      if (name == value) {
        entry_.header.set_data_type(type);
        return true;
      }
    }
    return Fail(absl::StrCat("its type ", ShortenedText(value), " is not supported"));
  }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool start_object(std::size_t) override {
    if (place_ == Place::kOutside) {
      place_ = Place::kRoot;
      return true;
    }
    if (place_ != Place::kRoot) {
      return Unexpected("an object");
    }
    place_ = key_ == kMetadata ? Place::kMetadata : Place::kTensor;
    entry_ = {};
    return true;
  }
  bool key(string_t& value) override {
    key_ = std::move(value);
    if (place_ == Place::kTensor) {
      const bool repeated = key_ == "dtype"   ? entry_.header.has_data_type()
                            : key_ == "shape" ? entry_.has_shape
                                              : key_ == "data_offsets" && entry_.has_offsets;
      if (repeated) {
        return Fail(absl::StrCat(key_, " is given twice"));
      }
      return key_ == "dtype" || key_ == "shape" || key_ == "data_offsets" ||
             Fail(absl::StrCat("its key '", ShortenedText(key_), "' is none of dtype, shape and data_offsets"));
    }
    if (place_ == Place::kRoot) {
      name_ = key_;
      if (!names_.insert(name_).second) {
        return Fail("the name is given twice");
      }
      if (names_.size() > kMaxModelItems) {
        return Fail(absl::StrCat("the file has more than ", kMaxModelItems, " tensors"));
      }
    }
    return true;
  }
  bool end_object() override {
    if (place_ == Place::kTensor) {
      if (!entry_.header.has_data_type() || !entry_.has_shape || entry_.offsets.size() != 2) {
        return Fail("it needs a dtype, a shape and two data_offsets");
      }
      entry_.header.set_name(name_);
      entries_.push_back(std::move(entry_));
    }
    place_ = place_ == Place::kRoot ? Place::kOutside : Place::kRoot;
    name_.clear();
    return true;
  }
  bool start_array(std::size_t) override {
    if (place_ != Place::kTensor || key_ == "dtype") {
      return Unexpected("a list");
    }
    place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
    (key_ == "shape" ? entry_.has_shape : entry_.has_offsets) = true;
    return true;
  }
  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(std::size_t byte, const std::string&, const nlohmann::json::exception& exception) override {
    absl::string_view what = exception.what();
    if (const size_t begin = what.find(": "); begin != absl::string_view::npos) {
      what.remove_prefix(begin + 2);
    }
    status_ = Invalid(
        file_, "", absl::StrCat("the header is not JSON at byte ", kLengthBytes + byte, ": ", ShortenedText(std::string(what))));
    return false;
  }

  // Of a failed parse.
  const absl::Status& status() const { return status_; }
  std::vector<Entry>& entries() { return entries_; }

 private:
  enum class Place { kOutside, kRoot, kMetadata, kTensor, kShape, kOffsets };

  bool Fail(absl::string_view message) {
    status_ = Invalid(file_, name_, message);
    return false;
  }
  bool Unexpected(absl::string_view what) {
    return Fail(absl::StrCat("the header has ", what, " where ",
                             place_ == Place::kMetadata ? "a text of __metadata__"
                             : place_ == Place::kTensor
                                 ? absl::string_view(key_ == "dtype" ? "a text" : "a list of whole numbers")
                             : place_ == Place::kShape || place_ == Place::kOffsets ? "a whole number"
                                                                                    : "an object",
                             " must be"));
  }

  const std::string& file_;
  Place place_ = Place::kOutside;
  std::string name_;  // of the tensor; empty outside of one
  std::string key_;   // the last one
  Entry entry_;
  std::vector<Entry> entries_;
  absl::flat_hash_set<std::string> names_;
  absl::Status status_;
};

// That the entry's bytes are as many as its elements need and lie in the file, which has `size` bytes for all tensors.
absl::Status CheckEntry(const Entry& entry, uint64_t size, const std::string& file) {
  const TensorProto& header = entry.header;
  const uint64_t begin = entry.offsets[0];
  const uint64_t end = entry.offsets[1];
  if (begin > end || end > size) {
    return Invalid(file, header.name(),
                   absl::StrCat("its bytes, ", begin, " to ", end, " of ", size, ", do not lie in the file"));
  }
  const absl::StatusOr<uint64_t> elements = CheckedElementCount(header, header.dims_size());
  if (!elements.ok()) {
    return Invalid(file, header.name(), elements.status().message());
  }
  if (const uint64_t needed = FindElementType(header.data_type())->RawBytes(*elements); needed != end - begin) {
    return Invalid(
        file, header.name(),
        absl::StrCat("its shape [", absl::StrJoin(header.dims(), ", "), "] needs ", needed, " bytes, it has ", end - begin));
  }
  return absl::OkStatus();
}

// That every byte behind the header belongs to exactly one tensor.
absl::Status CheckRuns(const std::vector<Entry>& entries, uint64_t size, const std::string& file) {
  std::vector<const Entry*> in_order;
  in_order.reserve(entries.size());
  for (const Entry& entry : entries) {
    in_order.push_back(&entry);
  }
  std::sort(in_order.begin(), in_order.end(), [](const Entry* a, const Entry* b) { return a->offsets < b->offsets; });
  uint64_t next = 0;
  for (const Entry* entry : in_order) {
    if (entry->offsets[0] != next) {
      return Invalid(file, entry->header.name(),
                     absl::StrCat("its bytes begin at ", entry->offsets[0], ", those before end at ", next,
                                  entry->offsets[0] < next ? ": they overlap" : ": some belong to no tensor"));
    }
    next = entry->offsets[1];
  }
  return next == size ? absl::OkStatus()
                      : Invalid(file, "", absl::StrCat("the file has ", size, " bytes of tensors, its header names ", next));
}

}  // namespace

absl::StatusOr<std::vector<Tensor>> ReadSafetensors(std::shared_ptr<const InputFile> file) {
  const std::string& name = file->name();
  if (file->size() < kLengthBytes) {
    return Invalid(name, "", "the file is too short for safetensors; it may have been cut off");
  }
  uint64_t length = 0;
  for (uint64_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | file->mapping()[i];
  }
  if (length > kMaxSafetensorsHeader) {
    return Invalid(name, "",
                   absl::StrCat("the header is said to have ", length, " bytes, more than the ", kMaxSafetensorsHeader,
                                " of safetensors; is it another kind of file?"));
  }
  if (length > file->size() - kLengthBytes) {
    return Invalid(name, "",
                   absl::StrCat("the header has ", length, " bytes, the file only ", file->size() - kLengthBytes,
                                " more; it may have been cut off"));
  }
  const absl::string_view text(reinterpret_cast<const char*>(file->mapping().data()) + kLengthBytes, length);
  if (text.empty() || text[0] != '{') {
    return Invalid(name, "", "the header is no JSON object; is it another kind of file?");
  }
  if (text.find('\0') != absl::string_view::npos) {  // the parser takes it for the end
    return Invalid(name, "", "the header is not JSON: it has a NUL");
  }
  HeaderReader reader(name);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &reader)) {
    return reader.status();
  }
  const uint64_t first = kLengthBytes + length;
  const uint64_t size = file->size() - first;
  for (const Entry& entry : reader.entries()) {
    MP_RETURN_IF_ERROR(CheckEntry(entry, size, name));
  }
  MP_RETURN_IF_ERROR(CheckRuns(reader.entries(), size, name));
  std::vector<Tensor> tensors;
  tensors.reserve(reader.entries().size());
  for (Entry& entry : reader.entries()) {
    Tensor& tensor = tensors.emplace_back();
    tensor.header = std::move(entry.header);
    if (const uint64_t bytes = entry.offsets[1] - entry.offsets[0]; bytes > 0) {
      tensor.field = DataField::kRaw;
      tensor.payload = std::make_shared<FilePayload>(FileRange{.file = file, .offset = first + entry.offsets[0], .size = bytes});
    }
  }
  return tensors;
}

}  // namespace modelpress::engine
