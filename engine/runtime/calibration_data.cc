#include "engine/runtime/calibration_data.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "engine/kernels/quantize.h"
#include "engine/model/element_type.h"
#include "engine/runtime/npz.h"
#include "onnx/onnx_pb.h"

namespace modelpress::engine {
namespace {

using onnx::TensorProto;

constexpr int64_t kDefaultBatchSize = 16;
constexpr size_t kChunkElements = 1 << 14;

// ---- Arrays by name.

enum class Kind { kNpz, kNpy, kProto };

std::optional<Kind> KindOf(absl::string_view file) {
  static constexpr std::pair<absl::string_view, Kind> kExtensions[] = {
      {".npz", Kind::kNpz}, {".npy", Kind::kNpy}, {".pb", Kind::kProto}};
  for (const auto& [extension, kind] : kExtensions) {
    if (absl::EndsWithIgnoreCase(file, extension)) {
      return kind;
    }
  }
  return std::nullopt;
}

struct ArrayName {
  Kind kind = Kind::kNpz;
  std::string file;
  std::string member;  // of an archive

  std::string Text() const { return kind == Kind::kNpz ? absl::StrCat("member '", member, "'") : "the array"; }
};

absl::Status Unreadable(const std::string& file, absl::string_view message) {
  return MakeError(v1::DATA_UNREADABLE, message, {.file = file});
}
absl::Status Mismatch(const std::string& file, absl::string_view message) {
  return MakeError(v1::DATA_MISMATCH, message, {.file = file});
}

// A tensor in a file of its own (ONNX's TensorProto).
class ProtoReader final : public ArrayReader {
 public:
  static absl::StatusOr<std::unique_ptr<ArrayReader>> Open(const InputFile& file) {
    if (file.size() > kMaxTensorProtoBytes) {
      return Unreadable(file.name(), absl::StrCat("a TensorProto of more than ", kMaxTensorProtoBytes >> 20,
                                                  " MiB is not read; use an .npy or .npz file"));
    }
    std::string bytes(file.size(), '\0');
    MP_RETURN_IF_ERROR(file.ReadAt(0, {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}));
    TensorProto proto;
    if (!proto.ParseFromString(bytes) || proto.data_type() == TensorProto::UNDEFINED) {
      return Unreadable(file.name(), "this is not an ONNX TensorProto");
    }
    if (proto.data_location() == TensorProto::EXTERNAL || proto.has_segment()) {
      return Unreadable(file.name(), "the TensorProto refers to data outside the file; store the elements in it");
    }
    uint64_t values = 0;  // FromProto takes the first field that is set
    for (const int size : {proto.float_data_size(), proto.int32_data_size(), proto.int64_data_size(), proto.double_data_size(),
                           proto.uint64_data_size(), proto.string_data_size()}) {
      values = values == 0 ? size : values;
    }
    const uint64_t amount = proto.has_raw_data() ? proto.raw_data().size() : values;
    const Tensor tensor = FromProto(std::move(proto));
    const absl::Status fits = CheckData(tensor.header, tensor.field, amount, kMaxTensorDims);
    if (!fits.ok()) {
      return Unreadable(file.name(), fits.message());
    }
    std::unique_ptr<ProtoReader> reader(new ProtoReader());
    reader->data_type_ = tensor.header.data_type();
    reader->dims_.assign(tensor.header.dims().begin(), tensor.header.dims().end());
    reader->elements_ = tensor.payload == nullptr ? nullptr : RawElements(tensor);
    return reader;
  }

  int data_type() const override { return data_type_; }
  const std::vector<int64_t>& dims() const override { return dims_; }
  absl::Status Read(absl::Span<uint8_t> out) override {
    if (out.empty()) {
      return absl::OkStatus();
    }
    MP_RETURN_IF_ERROR(elements_->Read(offset_, out));
    offset_ += out.size();
    return absl::OkStatus();
  }

 private:
  ProtoReader() = default;

  int data_type_ = 0;
  std::vector<int64_t> dims_;
  PayloadPtr elements_;
  uint64_t offset_ = 0;
};

// Opens arrays by name; keeps the last archive open.
class ArrayOpener {
 public:
  explicit ArrayOpener(FileSet files) : files_(std::move(files)) {}

  absl::StatusOr<const NpzFile*> OpenArchive(const std::string& file) {
    if (archive_ == nullptr || archive_name_ != file) {
      MP_ASSIGN_OR_RETURN(std::shared_ptr<const InputFile> input, files_.Open(file));
      MP_ASSIGN_OR_RETURN(archive_, NpzFile::Open(std::move(input)));
      archive_name_ = file;
    }
    return archive_.get();
  }

  absl::StatusOr<std::unique_ptr<ArrayReader>> Open(const ArrayName& name) {
    if (name.kind == Kind::kNpz) {
      MP_ASSIGN_OR_RETURN(const NpzFile* archive, OpenArchive(name.file));
      return archive->OpenArray(name.member);
    }
    MP_ASSIGN_OR_RETURN(const std::shared_ptr<const InputFile> input, files_.Open(name.file));
    return name.kind == Kind::kNpy ? OpenNpy(input) : ProtoReader::Open(*input);
  }

  const FileSet& files() const { return files_; }

 private:
  FileSet files_;
  std::string archive_name_;
  std::unique_ptr<NpzFile> archive_;
};

// ---- What an array must be for an input.

bool IsInteger(int data_type) {
  switch (data_type) {
    case TensorProto::INT8:
    case TensorProto::INT16:
    case TensorProto::INT32:
    case TensorProto::INT64:
    case TensorProto::UINT8:
    case TensorProto::UINT16:
    case TensorProto::UINT32:
    case TensorProto::UINT64:
      return true;
    default:
      return false;
  }
}

bool CanConvert(int from, int to) {
  return from == to || (IsInteger(from) && IsInteger(to)) ||
         (to == TensorProto::FLOAT && (from == TensorProto::FLOAT16 || from == TensorProto::DOUBLE));
}

std::string TypeText(int data_type) {
  return TensorProto::DataType_IsValid(data_type)
             ? absl::AsciiStrToLower(TensorProto::DataType_Name(static_cast<TensorProto::DataType>(data_type)))
             : absl::StrCat("type ", data_type);
}

std::string DimsText(absl::Span<const int64_t> dims) {
  return absl::StrCat("[",
                      absl::StrJoin(dims, ", ",
                                    [](std::string* out, int64_t dim) {
                                      if (dim < 0) {
                                        out->append("any");
                                      } else {
                                        absl::StrAppend(out, dim);
                                      }
                                    }),
                      "]");
}

// A copy of `dims` where the first, if there is one, is `first`.
std::vector<int64_t> WithFirst(std::vector<int64_t> dims, int64_t first) {
  if (!dims.empty()) {
    dims[0] = first;
  }
  return dims;
}

// Bytes of an element, where every element has whole ones; else 0.
uint64_t ElementBytes(int data_type) {
  const ElementType* type = FindElementType(data_type);
  return type == nullptr || type->bits % 8 != 0 ? 0 : type->bits / 8;
}

// An array of that header (-1: any dimension) as a batch of the input. Only the message of the error counts.
absl::Status CheckHeader(const InputSpec& input, int data_type, const std::vector<int64_t>& dims) {
  if (ElementBytes(input.data_type) == 0) {
    return absl::InvalidArgumentError(absl::StrCat("the model wants ", TypeText(input.data_type), ", which data cannot hold"));
  }
  if (!CanConvert(data_type, input.data_type)) {
    return absl::InvalidArgumentError(
        absl::StrCat("it has elements of type ", TypeText(data_type), ", the model wants ", TypeText(input.data_type)));
  }
  bool fits = input.any_shape || dims.size() == input.dims.size();
  for (size_t i = 0; fits && !input.any_shape && i < dims.size(); ++i) {
    fits = input.dims[i] < 0 || dims[i] < 0 || input.dims[i] == dims[i];
  }
  if (!fits) {
    return absl::InvalidArgumentError(
        absl::StrCat("it has the shape ", DimsText(dims), ", the model wants ", DimsText(input.dims)));
  }
  return absl::OkStatus();
}

// ---- Elements.

// Calls f with a value of the C++ type of an integer data type.
template <typename F>
auto VisitInteger(int data_type, F f) {
  switch (data_type) {
    case TensorProto::INT8:
      return f(int8_t{});
    case TensorProto::INT16:
      return f(int16_t{});
    case TensorProto::INT32:
      return f(int32_t{});
    case TensorProto::INT64:
      return f(int64_t{});
    case TensorProto::UINT8:
      return f(uint8_t{});
    case TensorProto::UINT16:
      return f(uint16_t{});
    case TensorProto::UINT32:
      return f(uint32_t{});
    default:
      return f(uint64_t{});
  }
}

// Converts `count` values; the index of the first that does not fit.
template <typename From, typename To>
std::optional<size_t> ConvertIntegers(const uint8_t* in, size_t count, uint8_t* out) {
  for (size_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, in + i * sizeof(From), sizeof(From));
    if (!std::in_range<To>(value)) {
      return i;
    }
    const To converted = static_cast<To>(value);  // NOLINT(bugprone-signed-char-misuse): an int8 is a number here
    std::memcpy(out + i * sizeof(To), &converted, sizeof(To));
  }
  return std::nullopt;
}

// `in` as `to`, in `out`, both aligned; the index of the first value that does not fit. CanConvert(from, to).
std::optional<size_t> ConvertElements(int from, int to, const uint8_t* in, size_t count, uint8_t* out) {
  if (from == to) {
    std::memcpy(out, in, count * ElementBytes(to));
    return std::nullopt;
  }
  if (from == TensorProto::DOUBLE) {
    for (size_t i = 0; i < count; ++i) {
      double value;
      std::memcpy(&value, in + i * sizeof(double), sizeof(double));
      const float rounded = static_cast<float>(value);
      std::memcpy(out + i * sizeof(float), &rounded, sizeof(float));
    }
    return std::nullopt;
  }
  if (from == TensorProto::FLOAT16) {
    HalfToFloat({reinterpret_cast<const uint16_t*>(in), count}, reinterpret_cast<float*>(out));
    return std::nullopt;
  }
  return VisitInteger(from, [&](auto source) {
    return VisitInteger(to, [&](auto target) { return ConvertIntegers<decltype(source), decltype(target)>(in, count, out); });
  });
}

// The index of the first element all of whose exponent bits are set.
template <typename Bits>
std::optional<size_t> FindExponent(const uint8_t* in, size_t count, Bits exponent) {
  for (size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, in + i * sizeof(Bits), sizeof(Bits));
    if ((bits & exponent) == exponent) {
      return i;
    }
  }
  return std::nullopt;
}

// The index of the first NaN or infinity.
std::optional<size_t> FindNotFinite(int data_type, const uint8_t* in, size_t count) {
  switch (data_type) {
    case TensorProto::FLOAT:
      return FindExponent<uint32_t>(in, count, 0x7f800000U);
    case TensorProto::DOUBLE:
      return FindExponent<uint64_t>(in, count, uint64_t{0x7ff} << 52);
    case TensorProto::FLOAT16:
      return FindExponent<uint16_t>(in, count, 0x7c00U);
    case TensorProto::BFLOAT16:
      return FindExponent<uint16_t>(in, count, 0x7f80U);
    default:
      return std::nullopt;
  }
}

// ---- Which array, or which samples of it, is what batch of what input.

struct Piece {
  std::shared_ptr<const ArrayName> array;  // null: not given
  int64_t first = 0;                       // sample
  int64_t count = -1;                      // samples; -1: the whole array as it is
};
using BatchPlan = std::vector<Piece>;  // one per input
using DataPlan = std::vector<BatchPlan>;

// Numbers in names compare as numbers: b2 before b10.
bool NaturalLess(absl::string_view a, absl::string_view b) {
  const std::pair<absl::string_view, absl::string_view> whole(a, b);
  auto take_number = [](absl::string_view& text) {
    size_t size = 0;
    while (size < text.size() && absl::ascii_isdigit(text[size])) {
      ++size;
    }
    absl::string_view number = text.substr(0, size);
    text.remove_prefix(size);
    while (number.size() > 1 && number.front() == '0') {
      number.remove_prefix(1);
    }
    return number;
  };
  while (!a.empty() && !b.empty()) {
    if (absl::ascii_isdigit(a.front()) && absl::ascii_isdigit(b.front())) {
      const absl::string_view left = take_number(a);
      const absl::string_view right = take_number(b);
      if (left != right) {
        return left.size() != right.size() ? left.size() < right.size() : left < right;
      }
    } else if (a.front() != b.front()) {
      return a.front() < b.front();
    } else {
      a.remove_prefix(1);
      b.remove_prefix(1);
    }
  }
  return a.empty() != b.empty() ? a.empty() : whole.first < whole.second;
}

class Planner {
 public:
  Planner(ArrayOpener& opener, const std::vector<InputSpec>& inputs, const CalibrationDataOptions& options)
      : opener_(opener), inputs_(inputs), options_(options) {
    size_t required = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].optional) {
        ++required;
        sole_input_ = i;
      }
    }
    if (required != 1) {
      sole_input_ = inputs.size() == 1 ? std::optional<size_t>(0) : std::nullopt;
    }
  }

  absl::StatusOr<DataPlan> PlanPath(const std::string& path) {
    if (inputs_.empty()) {
      return Mismatch(path, "the model has no inputs that data could be for");
    }
    if (opener_.files().Contains(path)) {
      return PlanFile(path);
    }
    std::string folder = path;
    while (absl::EndsWith(folder, "/")) {
      folder.pop_back();
    }
    std::vector<std::string> names = opener_.files().ListBelow(folder);
    if (names.empty()) {
      return WithMetadata(
          MakeError(v1::FILE_NOT_FOUND, "there is no such file, nor a folder with files; upload the data first", {.file = path}),
          "missing", path);
    }
    return PlanFolder(folder, std::move(names));
  }

 private:
  using Arrays = std::vector<std::shared_ptr<const ArrayName>>;  // one per input; null: not given

  std::optional<size_t> FindInput(absl::string_view name) const {
    const auto found =
        std::find_if(inputs_.begin(), inputs_.end(), [name](const InputSpec& input) { return input.name == name; });
    return found == inputs_.end() ? std::nullopt : std::optional<size_t>(found - inputs_.begin());
  }
  std::string InputsText() const {
    return absl::StrCat(inputs_.size() == 1 ? "the model's input is '" : "the model's inputs are '",
                        absl::StrJoin(inputs_, "', '", [](std::string* out, const InputSpec& input) { out->append(input.name); }),
                        "'");
  }
  // The input that a file of one array is for.
  absl::StatusOr<size_t> SoleInput(const std::string& file) const {
    if (!sole_input_.has_value()) {
      return Mismatch(file, absl::StrCat("one array is not enough, ", InputsText(), "; use an .npz file with an array for each"));
    }
    return *sole_input_;
  }

  // <input>__<batch>
  std::optional<std::pair<size_t, int64_t>> ParseBatchName(absl::string_view name) const {
    const size_t mark = name.rfind("__");
    int64_t batch = 0;
    if (mark == absl::string_view::npos || !absl::SimpleAtoi(name.substr(mark + 2), &batch) || batch < 0 ||
        absl::StrCat(batch) != name.substr(mark + 2)) {
      return std::nullopt;
    }
    const std::optional<size_t> input = FindInput(name.substr(0, mark));
    return input.has_value() ? std::make_optional(std::make_pair(*input, batch)) : std::nullopt;
  }

  absl::StatusOr<DataPlan> PlanFile(const std::string& file) {
    const std::optional<Kind> kind = KindOf(file);
    if (!kind.has_value()) {
      return Unreadable(file, "the name ends neither in .npz nor in .npy nor in .pb");
    }
    if (*kind == Kind::kNpz) {
      return PlanNpz(file);
    }
    MP_ASSIGN_OR_RETURN(const size_t input, SoleInput(file));
    Arrays arrays(inputs_.size());
    arrays[input] = std::make_shared<ArrayName>(ArrayName{*kind, file, ""});
    if (*kind == Kind::kNpy) {
      return CutSamples(file, arrays);
    }
    DataPlan plan;
    MP_RETURN_IF_ERROR(AddBatch(file, arrays, plan));
    return plan;
  }

  // One archive with everything.
  absl::StatusOr<DataPlan> PlanNpz(const std::string& file) {
    MP_ASSIGN_OR_RETURN(const NpzFile* archive, opener_.OpenArchive(file));
    const std::vector<std::string>& names = archive->names();
    if (names.empty()) {
      return MakeError(v1::DATA_TOO_SHORT, "the archive holds no arrays", {.file = file});
    }
    Arrays samples(inputs_.size());
    std::map<int64_t, Arrays> batches;
    bool has_samples = false;
    for (const std::string& name : names) {
      const auto array = std::make_shared<ArrayName>(ArrayName{Kind::kNpz, file, name});
      std::optional<size_t> input = FindInput(name);
      const auto numbered = ParseBatchName(name);
      if (!input.has_value() && numbered.has_value()) {
        Arrays& batch = batches[numbered->second];
        batch.resize(inputs_.size());
        batch[numbered->first] = array;
        continue;
      }
      if (!input.has_value() && names.size() == 1) {
        input = sole_input_;
      }
      if (!input.has_value()) {
        return Mismatch(
            file, absl::StrCat("member '", name, "' is neither an input nor '<input>__<number of the batch>'; ", InputsText()));
      }
      samples[*input] = array;
      has_samples = true;
    }
    if (batches.empty()) {
      return CutSamples(file, samples);
    }
    if (has_samples) {
      return Unreadable(file, "the archive mixes arrays of samples ('<input>') with arrays of batches ('<input>__0', ...)");
    }
    DataPlan plan;
    for (const auto& [number, arrays] : batches) {
      if (number != static_cast<int64_t>(plan.size())) {
        return Mismatch(
            file, absl::StrCat("the archive has a batch ", number, " ('<input>__", number, "'), but no batch ", plan.size()));
      }
      MP_RETURN_IF_ERROR(AddBatch(file, arrays, plan));
    }
    return plan;
  }

  // All required inputs are there.
  absl::Status CheckComplete(const std::string& file, const Arrays& arrays, absl::string_view where) const {
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (arrays[i] == nullptr && !inputs_[i].optional) {
        return WithMetadata(Mismatch(file, absl::StrCat("there is no data for the input '", inputs_[i].name, "'", where)),
                            "input", inputs_[i].name);
      }
    }
    return absl::OkStatus();
  }

  absl::Status AddBatch(const std::string& file, const Arrays& arrays, DataPlan& plan) const {
    MP_RETURN_IF_ERROR(CheckComplete(file, arrays, absl::StrCat(" in batch ", plan.size())));
    if (plan.size() == kMaxBatches) {
      return Unreadable(file, absl::StrCat("the data holds more than ", kMaxBatches, " batches"));
    }
    BatchPlan& batch = plan.emplace_back(inputs_.size());
    for (size_t i = 0; i < inputs_.size(); ++i) {
      batch[i].array = arrays[i];
    }
    return absl::OkStatus();
  }

  // Arrays whose axis 0 counts samples, cut into batches.
  absl::StatusOr<DataPlan> CutSamples(const std::string& file, const Arrays& arrays) {
    MP_RETURN_IF_ERROR(CheckComplete(file, arrays, ""));
    std::optional<int64_t> samples;
    int64_t fixed = -1;  // what the model wants in a batch
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (arrays[i] == nullptr) {
        continue;
      }
      const InputSpec& input = inputs_[i];
      const std::string text = absl::StrCat(arrays[i]->Text(), " for the input '", input.name, "'");
      auto mismatch = [&](absl::string_view message) {
        return WithMetadata(Mismatch(file, absl::StrCat(text, ": ", message)), "input", input.name);
      };
      MP_ASSIGN_OR_RETURN(const std::unique_ptr<ArrayReader> reader, opener_.Open(*arrays[i]));
      const std::vector<int64_t>& dims = reader->dims();
      if (dims.empty()) {
        return mismatch("it has no axis of samples; give each batch an array of its own, '<input>__0', '<input>__1', ...");
      }
      const absl::Status fits = CheckHeader(input, reader->data_type(), WithFirst(dims, -1));
      if (!fits.ok()) {
        return mismatch(fits.message());
      }
      if (samples.value_or(dims[0]) != dims[0]) {
        return mismatch(
            absl::StrCat("it has ", dims[0], " samples, another input has ", *samples,
                         "; where axis 0 does not count samples, give each batch arrays of its own, '<input>__0', ..."));
      }
      samples = dims[0];
      const int64_t wanted = input.any_shape ? -1 : input.dims[0];
      if (wanted >= 0 && fixed >= 0 && wanted != fixed) {
        return mismatch(absl::StrCat("the model takes ", wanted, " at a time, and of another input ", fixed,
                                     "; give each batch arrays of its own, '<input>__0', '<input>__1', ..."));
      }
      fixed = std::max(fixed, wanted);
      if (fixed >= 0 && options_.batch_size > 0 && options_.batch_size != fixed) {
        return mismatch(
            absl::StrCat("the model takes exactly ", fixed, " samples at a time, not batches of ", options_.batch_size));
      }
      if (fixed == 0 || (fixed > 0 && dims[0] % fixed != 0)) {
        return mismatch(absl::StrCat("the model takes exactly ", fixed, " samples at a time, and ", dims[0],
                                     " samples cannot be divided into such batches"));
      }
    }
    if (samples.value_or(0) == 0) {
      return MakeError(v1::DATA_TOO_SHORT, "the data holds no samples", {.file = file});
    }
    return CutEvenly(file, arrays, *samples, fixed > 0 ? fixed : options_.batch_size);
  }

  // `batch_size` 0: as evenly as it goes, into as many batches as are wanted.
  absl::StatusOr<DataPlan> CutEvenly(const std::string& file, const Arrays& arrays, int64_t samples, int64_t batch_size) const {
    int64_t batches = options_.batches;
    if (batch_size > 0 || batches == 0) {
      batch_size = batch_size > 0 ? batch_size : std::min(samples, kDefaultBatchSize);
      batches = samples / batch_size + (samples % batch_size > 0 ? 1 : 0);
    } else {
      batches = std::min(batches, samples);  // too few are reported by the caller
    }
    if (batches > kMaxBatches) {
      return Unreadable(file, absl::StrCat("the data would be cut into ", batches, " batches, more than ", kMaxBatches));
    }
    DataPlan plan(batches, BatchPlan(inputs_.size()));
    int64_t first = 0;
    for (int64_t b = 0; b < batches; ++b) {
      const int64_t count =
          batch_size > 0 ? std::min(batch_size, samples - first) : samples / batches + (b < samples % batches ? 1 : 0);
      for (size_t i = 0; i < inputs_.size(); ++i) {
        plan[b][i] = {arrays[i], first, count};
      }
      first += count;
    }
    return plan;
  }

  // A folder of batches: files, or folders with a file per input. `names` are relative to it.
  absl::StatusOr<DataPlan> PlanFolder(const std::string& folder, std::vector<std::string> names) {
    std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) { return NaturalLess(a, b); });
    std::vector<std::string> own;
    std::vector<std::pair<std::string, std::vector<std::string>>> sub_folders;
    for (const std::string& name : names) {
      const size_t slash = name.find('/');
      if (slash == std::string::npos) {
        own.push_back(name);
      } else if (name.find('/', slash + 1) != std::string::npos) {
        return Unreadable(absl::StrCat(folder, "/", name),
                          "this is too deep; a folder of data holds files, or folders that hold files");
      } else {
        const std::string sub_folder = name.substr(0, slash);
        if (sub_folders.empty() || sub_folders.back().first != sub_folder) {
          sub_folders.emplace_back(sub_folder, std::vector<std::string>());
        }
        sub_folders.back().second.push_back(name.substr(slash + 1));
      }
    }
    if (!own.empty() && !sub_folders.empty()) {
      return Unreadable(folder, absl::StrCat("the folder mixes files ('", own[0], "') and folders ('", sub_folders[0].first,
                                             "'); each batch must be a file, or each a folder"));
    }
    DataPlan plan;
    if (IsBatchFolder(own)) {
      MP_RETURN_IF_ERROR(AddBatchFolder(folder, own, plan));
    } else if (!own.empty()) {
      MP_RETURN_IF_ERROR(AddBatchFiles(folder, own, plan));
    }
    for (const auto& [sub_folder, files] : sub_folders) {
      MP_RETURN_IF_ERROR(AddBatchFolder(absl::StrCat(folder, "/", sub_folder), files, plan));
    }
    return plan;
  }

  static absl::string_view Stem(absl::string_view file) { return file.substr(0, file.rfind('.')); }
  static std::optional<int64_t> ParseNumbered(absl::string_view stem, absl::string_view prefix) {
    int64_t number = 0;
    if (absl::StartsWith(stem, prefix) && absl::SimpleAtoi(stem.substr(prefix.size()), &number) && number >= 0) {
      return number;
    }
    return std::nullopt;
  }

  // Whether the files are one batch, a file per input, rather than a batch each.
  bool IsBatchFolder(const std::vector<std::string>& files) const {
    return std::any_of(files.begin(), files.end(), [&](const std::string& file) {
      return KindOf(file).value_or(Kind::kNpz) != Kind::kNpz &&
             (!sole_input_.has_value() || ParseNumbered(Stem(file), "output_").has_value());
    });
  }

  absl::Status AddBatchFiles(const std::string& folder, const std::vector<std::string>& files, DataPlan& plan) {
    const std::optional<Kind> kind = KindOf(files[0]);
    for (const std::string& name : files) {
      const std::string file = absl::StrCat(folder, "/", name);
      if (!KindOf(name).has_value()) {
        return Unreadable(file, "the name ends neither in .npz nor in .npy nor in .pb");
      }
      if (KindOf(name) != kind) {
        return Unreadable(file, absl::StrCat("the folder mixes kinds of files; the first one is '", files[0], "'"));
      }
      Arrays arrays(inputs_.size());
      if (*kind == Kind::kNpz) {
        MP_ASSIGN_OR_RETURN(const NpzFile* archive, opener_.OpenArchive(file));
        for (const std::string& member : archive->names()) {
          std::optional<size_t> input = FindInput(member);
          if (!input.has_value() && archive->names().size() == 1) {
            input = sole_input_;
          }
          if (!input.has_value()) {
            return Mismatch(file, absl::StrCat("member '", member, "' is no input; ", InputsText()));
          }
          arrays[*input] = std::make_shared<ArrayName>(ArrayName{Kind::kNpz, file, member});
        }
      } else {
        MP_ASSIGN_OR_RETURN(const size_t input, SoleInput(file));
        arrays[input] = std::make_shared<ArrayName>(ArrayName{*kind, file, ""});
      }
      MP_RETURN_IF_ERROR(AddBatch(file, arrays, plan));
    }
    return absl::OkStatus();
  }

  absl::Status AddBatchFolder(const std::string& folder, const std::vector<std::string>& files, DataPlan& plan) const {
    Arrays arrays(inputs_.size());
    for (const std::string& name : files) {
      const std::string file = absl::StrCat(folder, "/", name);
      const absl::string_view stem = Stem(name);
      const std::optional<Kind> kind = KindOf(name);
      if (!kind.has_value() || *kind == Kind::kNpz) {
        return Unreadable(file, "in a folder that is one batch every input has a file whose name ends in .pb or .npy");
      }
      std::optional<size_t> input = FindInput(stem);
      if (!input.has_value()) {
        if (ParseNumbered(stem, "output_").has_value()) {
          continue;  // ONNX's test data has the expected results too
        }
        const std::optional<int64_t> number = ParseNumbered(stem, "input_");
        if (!number.has_value() || *number >= static_cast<int64_t>(inputs_.size())) {
          return Mismatch(file, absl::StrCat("the name stands for no input; ", InputsText(),
                                             ", and files are named after them or 'input_0' and so on in this order"));
        }
        input = static_cast<size_t>(*number);
      }
      if (arrays[*input] != nullptr) {
        return Mismatch(file, absl::StrCat("the input '", inputs_[*input].name, "' has two files; the other is '",
                                           arrays[*input]->file, "'"));
      }
      arrays[*input] = std::make_shared<ArrayName>(ArrayName{*kind, file, ""});
    }
    return AddBatch(folder, arrays, plan);
  }

  ArrayOpener& opener_;
  const std::vector<InputSpec>& inputs_;
  const CalibrationDataOptions& options_;
  std::optional<size_t> sole_input_;  // what data without a name is for: the only input, or the only one that is required
};

// ---- Reading by plan.

class PlannedData final : public CalibrationData {
 public:
  PlannedData(const FileSet& files, std::vector<InputSpec> inputs)
      : opener_(files), inputs_(std::move(inputs)), cursors_(inputs_.size()) {}

  absl::Status Prepare(const std::string& path, const CalibrationDataOptions& options) {
    MP_ASSIGN_OR_RETURN(plan_, Planner(opener_, inputs_, options).PlanPath(path));
    const auto batches = static_cast<int64_t>(plan_.size());
    if (batches < options.batches) {
      return WithMetadata(WithMetadata(MakeError(v1::DATA_TOO_SHORT,
                                                 absl::StrCat("the data holds ", Batches(batches), ", ", options.batches,
                                                              options.batches == 1 ? " is wanted" : " are wanted"),
                                                 {.file = path}),
                                       "batches", absl::StrCat(batches)),
                          "wanted", absl::StrCat(options.batches));
    }
    if (options.batches > 0 && batches > options.batches) {
      warnings_.push_back(absl::StrCat(path, " holds ", Batches(batches), "; only the first ", options.batches,
                                       options.batches == 1 ? " is used" : " are used"));
      plan_.resize(static_cast<size_t>(options.batches));
    }
    for (; next_ < plan_.size(); ++next_) {
      int64_t samples = -1;
      for (size_t i = 0; i < inputs_.size(); ++i) {
        MP_ASSIGN_OR_RETURN(const HostTensor tensor, Read(i, /*keep=*/false));
        byte_count_ += CountElements(tensor.dims) * (tensor.data_type == 0 ? 0 : ElementBytes(tensor.data_type));
        if (samples < 0 && !tensor.dims.empty()) {
          samples = tensor.dims[0];
        }
      }
      sample_count_ += samples < 0 ? 1 : samples;
    }
    return Rewind();
  }

  int64_t batch_count() const override { return static_cast<int64_t>(plan_.size()); }
  int64_t sample_count() const override { return sample_count_; }
  uint64_t byte_count() const override { return byte_count_; }
  const std::vector<std::string>& warnings() const override { return warnings_; }

  absl::Status Rewind() override {
    next_ = 0;
    cursors_.assign(inputs_.size(), {});
    return absl::OkStatus();
  }

  absl::StatusOr<Batch> Next() override {
    if (next_ == plan_.size()) {
      return absl::OutOfRangeError("there is no further batch");
    }
    Batch batch;
    batch.reserve(inputs_.size());
    for (size_t i = 0; i < inputs_.size(); ++i) {
      MP_ASSIGN_OR_RETURN(HostTensor tensor, Read(i, /*keep=*/true));
      batch.push_back(std::move(tensor));
    }
    ++next_;
    return batch;
  }

 private:
  // An array that is read piece by piece.
  struct Cursor {
    std::shared_ptr<const ArrayName> array;
    std::shared_ptr<ArrayReader> reader;
  };

  static std::string Batches(int64_t count) { return count == 1 ? "1 batch" : absl::StrCat(count, " batches"); }
  static uint64_t CountElements(const std::vector<int64_t>& dims) {
    uint64_t count = 1;
    for (const int64_t dim : dims) {
      count *= static_cast<uint64_t>(dim);
    }
    return count;
  }

  // An error about input `i` of the present batch.
  absl::Status Error(v1::Reason reason, size_t i, absl::string_view message) const {
    const ArrayName& array = *plan_[next_][i].array;
    const absl::Status status =
        MakeError(reason, absl::StrCat(array.Text(), " for the input '", inputs_[i].name, "' in batch ", next_, ": ", message),
                  {.file = array.file});
    return WithMetadata(WithMetadata(status, "input", inputs_[i].name), "batch", absl::StrCat(next_));
  }

  // Input `i` of the present batch, converted and checked; without its elements unless `keep`. They are allocated at once:
  // Prepare, which does not keep them, has seen that the file really has that many.
  absl::StatusOr<HostTensor> Read(size_t i, bool keep) {
    const Piece& piece = plan_[next_][i];
    const InputSpec& input = inputs_[i];
    if (piece.array == nullptr) {
      return HostTensor();
    }
    Cursor& cursor = cursors_[i];
    if (cursor.array != piece.array || piece.first == 0) {
      MP_ASSIGN_OR_RETURN(std::shared_ptr<ArrayReader> reader, opener_.Open(*piece.array));
      cursor = {piece.array, std::move(reader)};
    }
    HostTensor tensor;
    tensor.data_type = input.data_type;
    tensor.dims = cursor.reader->dims();
    if (piece.count >= 0) {
      tensor.dims = WithFirst(std::move(tensor.dims), piece.count);
    }
    const int data_type = cursor.reader->data_type();
    const absl::Status fits = CheckHeader(input, data_type, tensor.dims);
    if (!fits.ok()) {
      return Error(v1::DATA_MISMATCH, i, fits.message());
    }
    if (!tensor.dims.empty() && tensor.dims[0] == 0) {
      return Error(v1::DATA_TOO_SHORT, i, "it holds no samples");
    }
    const uint64_t elements = CountElements(tensor.dims);
    const uint64_t element_bytes = ElementBytes(input.data_type);
    if (elements > kMaxBatchTensorBytes / element_bytes) {
      return Error(v1::DATA_UNREADABLE, i,
                   absl::StrCat("it takes more than ", kMaxBatchTensorBytes >> 30, " GiB; make batches smaller"));
    }
    tensor.bytes.resize(keep ? elements * element_bytes : 0);
    std::vector<uint8_t> raw(kChunkElements * ElementBytes(data_type));
    std::vector<uint8_t> converted(keep ? 0 : kChunkElements * element_bytes);
    for (uint64_t done = 0; done < elements;) {
      const size_t count = std::min<uint64_t>(kChunkElements, elements - done);
      MP_RETURN_IF_ERROR(cursor.reader->Read(absl::MakeSpan(raw).first(count * ElementBytes(data_type))));
      uint8_t* const out = keep ? tensor.bytes.data() + done * element_bytes : converted.data();
      auto sample_of = [&](size_t index) {  // in the array as the caller gave it
        return tensor.dims.empty() ? 0 : piece.first + (done + index) / (elements / static_cast<uint64_t>(tensor.dims[0]));
      };
      if (const auto bad = ConvertElements(data_type, input.data_type, raw.data(), count, out); bad.has_value()) {
        return WithMetadata(
            Error(v1::DATA_MISMATCH, i,
                  absl::StrCat("sample ", sample_of(*bad), " holds a value that does not fit ", TypeText(input.data_type))),
            "sample", absl::StrCat(sample_of(*bad)));
      }
      if (const auto bad = FindNotFinite(input.data_type, out, count); bad.has_value()) {
        return WithMetadata(Error(v1::DATA_NOT_FINITE, i, absl::StrCat("sample ", sample_of(*bad), " holds NaN or infinity")),
                            "sample", absl::StrCat(sample_of(*bad)));
      }
      done += count;
    }
    return tensor;
  }

  ArrayOpener opener_;
  const std::vector<InputSpec> inputs_;
  DataPlan plan_;
  std::vector<std::string> warnings_;
  int64_t sample_count_ = 0;
  uint64_t byte_count_ = 0;
  std::vector<Cursor> cursors_;
  size_t next_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CalibrationData>> CalibrationData::Open(const FileSet& files, const std::string& path,
                                                                       const std::vector<InputSpec>& inputs,
                                                                       const CalibrationDataOptions& options) {
  auto data = std::make_unique<PlannedData>(files, inputs);
  MP_RETURN_IF_ERROR(data->Prepare(path, options));
  return data;
}

}  // namespace modelpress::engine
