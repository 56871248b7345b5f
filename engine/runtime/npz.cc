#include "engine/runtime/npz.h"

#include <zip.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "onnx/onnx_pb.h"

namespace modelpress::engine {
namespace {

constexpr uint64_t kMaxArrayBytes = uint64_t{1} << 62;

// Where bytes come from: a file or a member of an archive.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Number of bytes by the file system or the archive's directory.
  virtual uint64_t size() const = 0;
  // The next bytes. DATA_UNREADABLE where there are not that many.
  virtual absl::Status Read(absl::Span<uint8_t> out) = 0;
  // After the last byte: that it was the last, and right.
  virtual absl::Status CheckEnd() = 0;
  // DATA_UNREADABLE with the place in front.
  virtual absl::Status Error(absl::string_view message) const = 0;
};

class FileSource final : public ByteSource {
 public:
  explicit FileSource(std::shared_ptr<const InputFile> file) : file_(std::move(file)) {}
  uint64_t size() const override { return file_->size(); }
  absl::Status Read(absl::Span<uint8_t> out) override {
    if (out.size() > file_->size() - offset_) {
      return Error("the file ends in the middle of the array: it is truncated");
    }
    MP_RETURN_IF_ERROR(file_->ReadAt(offset_, out));
    offset_ += out.size();
    return absl::OkStatus();
  }
  absl::Status CheckEnd() override {
    return offset_ == file_->size() ? absl::OkStatus() : Error("more bytes follow the array than its header says");
  }
  absl::Status Error(absl::string_view message) const override {
    return MakeError(v1::DATA_UNREADABLE, message, {.file = file_->name()});
  }

 private:
  std::shared_ptr<const InputFile> file_;
  uint64_t offset_ = 0;
};

// ---- The header of numpy.lib.format: a Python dictionary with exactly the keys descr, fortran_order and shape.

struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> dims;
};

class HeaderParser {
 public:
  explicit HeaderParser(absl::string_view text) : text_(text) {}

  // An error is only the message.
  absl::StatusOr<Header> Parse() {
    Header header;
    std::map<std::string, int> seen;
    if (!Take('{')) {
      return Bad();
    }
    while (!Take('}')) {
      std::string key;
      if (!TakeString(key) || !Take(':') || seen[key]++ > 0) {
        return Bad();
      }
      if (key == "descr") {
        SkipSpace();
        if (absl::StartsWith(text_, "[") || absl::StartsWith(text_, "(") || absl::StartsWith(text_, "{")) {
          return absl::InvalidArgumentError("the array is structured (it has named fields); save one plain array per input");
        }
        if (!TakeString(header.descr)) {
          return Bad();
        }
      } else if (key == "fortran_order") {
        if (!TakeBool(header.fortran_order)) {
          return Bad();
        }
      } else if (key != "shape" || !TakeShape(header.dims)) {
        return Bad();
      }
      if (!Take(',')) {
        if (!Take('}')) {
          return Bad();
        }
        break;
      }
    }
    SkipSpace();
    if (!text_.empty() || seen.size() != 3) {
      return Bad();
    }
    return header;
  }

 private:
  static absl::Status Bad() { return absl::InvalidArgumentError("the header of the array is damaged"); }
  void SkipSpace() {
    while (!text_.empty() && (text_.front() == ' ' || text_.front() == '\n' || text_.front() == '\t')) {
      text_.remove_prefix(1);
    }
  }
  bool Take(char c) {
    SkipSpace();
    if (text_.empty() || text_.front() != c) {
      return false;
    }
    text_.remove_prefix(1);
    return true;
  }
  bool TakeString(std::string& out) {
    SkipSpace();
    if (text_.empty() || (text_.front() != '\'' && text_.front() != '"')) {
      return false;
    }
    const size_t end = text_.find(text_.front(), 1);
    if (end == absl::string_view::npos) {
      return false;
    }
    out = std::string(text_.substr(1, end - 1));
    text_.remove_prefix(end + 1);
    return true;
  }
  bool TakeBool(bool& out) {
    SkipSpace();
    for (const bool value : {false, true}) {
      const absl::string_view word = value ? "True" : "False";
      if (absl::StartsWith(text_, word)) {
        text_.remove_prefix(word.size());
        out = value;
        return true;
      }
    }
    return false;
  }
  bool TakeShape(std::vector<int64_t>& dims) {
    if (!Take('(')) {
      return false;
    }
    while (!Take(')')) {
      SkipSpace();
      size_t digits = 0;
      while (digits < text_.size() && text_[digits] >= '0' && text_[digits] <= '9') {
        ++digits;
      }
      int64_t dim = 0;
      if (!absl::SimpleAtoi(text_.substr(0, digits), &dim) || dims.size() == kMaxTensorDims) {
        return false;
      }
      dims.push_back(dim);
      text_.remove_prefix(digits);
      Take('L');  // Python 2's long integers
      if (!Take(',')) {
        return Take(')');
      }
    }
    return true;
  }

  absl::string_view text_;
};

// The ONNX type of a NumPy type string, and the bytes of an element.
absl::StatusOr<std::pair<int, int>> FindType(const std::string& descr) {
  static constexpr struct {
    char code[3];
    int data_type;
  } kTypes[] = {{"f2", onnx::TensorProto::FLOAT16}, {"f4", onnx::TensorProto::FLOAT},  {"f8", onnx::TensorProto::DOUBLE},
                {"i1", onnx::TensorProto::INT8},    {"i2", onnx::TensorProto::INT16},  {"i4", onnx::TensorProto::INT32},
                {"i8", onnx::TensorProto::INT64},   {"u1", onnx::TensorProto::UINT8},  {"u2", onnx::TensorProto::UINT16},
                {"u4", onnx::TensorProto::UINT32},  {"u8", onnx::TensorProto::UINT64}, {"b1", onnx::TensorProto::BOOL}};
  const bool has_order = !descr.empty() && absl::StrContains("<>=|", descr[0]);
  const std::string code = descr.substr(has_order ? 1 : 0);
  if (absl::StartsWith(code, "O")) {
    return absl::InvalidArgumentError(
        "the array holds Python objects (a pickle), which are never loaded; save an array of numbers");
  }
  for (const auto& type : kTypes) {
    if (code == type.code) {
      const int bytes = code[1] - '0';
      if (descr[0] == '>' && bytes > 1) {
        return absl::InvalidArgumentError("the array is big-endian; convert it to the byte order '<' first");
      }
      return std::make_pair(type.data_type, bytes);
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("the array has the type '", absl::CHexEscape(descr),
                                                 "'; save it as one of float16, float32, float64, (u)int8 to (u)int64, bool"));
}

class NpyReader final : public ArrayReader {
 public:
  static absl::StatusOr<std::unique_ptr<ArrayReader>> Open(std::unique_ptr<ByteSource> source) {
    std::unique_ptr<NpyReader> reader(new NpyReader(std::move(source)));
    MP_RETURN_IF_ERROR(reader->ReadHeader());
    return reader;
  }

  int data_type() const override { return data_type_; }
  const std::vector<int64_t>& dims() const override { return dims_; }
  absl::Status Read(absl::Span<uint8_t> out) override {
    if (out.size() > left_) {
      return MakeError(v1::INTERNAL_ERROR, "read beyond the end of an array");
    }
    if (out.empty()) {
      return absl::OkStatus();
    }
    MP_RETURN_IF_ERROR(source_->Read(out));
    if (data_type_ == onnx::TensorProto::BOOL && std::any_of(out.begin(), out.end(), [](uint8_t byte) { return byte > 1; })) {
      return source_->Error("the array of booleans holds bytes other than 0 and 1: the file is damaged");
    }
    left_ -= out.size();
    return left_ == 0 ? source_->CheckEnd() : absl::OkStatus();
  }

 private:
  explicit NpyReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

  absl::Status ReadHeader() {
    std::array<uint8_t, 12> start{};
    // Version 1 has two bytes of length, the others four.
    if (source_->size() < 10) {
      return source_->Error("this is not a NumPy array: it is too short");
    }
    MP_RETURN_IF_ERROR(source_->Read(absl::MakeSpan(start).first(8)));
    if (std::memcmp(start.data(), "\x93NUMPY", 6) != 0) {
      return source_->Error("this is not a NumPy array: it does not start with \\x93NUMPY");
    }
    const int version = start[6];
    if (version < 1 || version > 3) {
      return source_->Error(absl::StrCat("the NumPy format version ", version, " is not known"));
    }
    const size_t length_bytes = version == 1 ? 2 : 4;
    MP_RETURN_IF_ERROR(source_->Read(absl::MakeSpan(start).subspan(8, length_bytes)));
    uint32_t length = 0;
    for (size_t i = 0; i < length_bytes; ++i) {
      length |= uint32_t{start[8 + i]} << (8 * i);
    }
    if (length > kMaxNpyHeaderBytes) {
      return source_->Error(absl::StrCat("the header of the array has ", length, " bytes, more than ", kMaxNpyHeaderBytes));
    }
    std::string text(length, '\0');
    MP_RETURN_IF_ERROR(source_->Read({reinterpret_cast<uint8_t*>(text.data()), text.size()}));
    absl::StatusOr<Header> header = HeaderParser(text).Parse();
    if (!header.ok()) {
      return source_->Error(header.status().message());
    }
    const absl::StatusOr<std::pair<int, int>> type = FindType(header->descr);
    if (!type.ok()) {
      return source_->Error(type.status().message());
    }
    if (header->fortran_order && header->dims.size() > 1) {
      return source_->Error("the array is in Fortran order (column-major); save numpy.ascontiguousarray of it");
    }
    data_type_ = type->first;
    dims_ = std::move(header->dims);
    left_ = type->second;
    const bool empty = std::find(dims_.begin(), dims_.end(), 0) != dims_.end();
    for (const int64_t dim : dims_) {
      if (!empty && left_ > kMaxArrayBytes / static_cast<uint64_t>(dim)) {
        return source_->Error("the shape in the header of the array has more elements than any file can hold");
      }
      left_ = empty ? 0 : left_ * static_cast<uint64_t>(dim);
    }
    const uint64_t header_bytes = 8 + length_bytes + length;
    if (source_->size() != header_bytes + left_) {
      return source_->Error(absl::StrCat("the array has ", source_->size(), " bytes where its header says ", header_bytes + left_,
                                         ": it is truncated or damaged"));
    }
    return left_ == 0 ? source_->CheckEnd() : absl::OkStatus();
  }

  std::unique_ptr<ByteSource> source_;
  int data_type_ = 0;
  std::vector<int64_t> dims_;
  uint64_t left_ = 0;
};

// ---- The archive.

// libzip's handle and what its reading callback needs.
struct Archive {
  explicit Archive(std::shared_ptr<const InputFile> input) : file(std::move(input)) { zip_error_init(&error); }
  ~Archive() {
    if (zip != nullptr) {
      zip_discard(zip);
    }
    zip_error_fini(&error);
  }
  Archive(const Archive&) = delete;
  Archive& operator=(const Archive&) = delete;

  // What went wrong: the disk, where that was it, else the file.
  absl::Status Error(absl::string_view message) const {
    return read_status.ok() ? MakeError(v1::DATA_UNREADABLE, message, {.file = file->name()}) : read_status;
  }

  std::shared_ptr<const InputFile> file;
  uint64_t offset = 0;       // where the callback reads next
  zip_error_t error;         // of the callback
  absl::Status read_status;  // of the last ReadAt that failed
  zip_t* zip = nullptr;
};

zip_int64_t ReadCallback(void* user_data, void* data, zip_uint64_t size, zip_source_cmd_t command) {
  Archive& archive = *static_cast<Archive*>(user_data);
  const uint64_t file_size = archive.file->size();
  switch (command) {
    case ZIP_SOURCE_SUPPORTS:
      return zip_source_make_command_bitmap(ZIP_SOURCE_OPEN, ZIP_SOURCE_READ, ZIP_SOURCE_CLOSE, ZIP_SOURCE_STAT, ZIP_SOURCE_ERROR,
                                            ZIP_SOURCE_FREE, ZIP_SOURCE_SEEK, ZIP_SOURCE_TELL, ZIP_SOURCE_SUPPORTS, -1);
    case ZIP_SOURCE_OPEN:
      archive.offset = 0;
      return 0;
    case ZIP_SOURCE_READ: {
      const uint64_t count = std::min<uint64_t>(size, file_size - archive.offset);
      const absl::Status status = archive.file->ReadAt(archive.offset, {static_cast<uint8_t*>(data), count});
      if (!status.ok()) {
        archive.read_status = status;
        zip_error_set(&archive.error, ZIP_ER_READ, 0);
        return -1;
      }
      archive.offset += count;
      return static_cast<zip_int64_t>(count);
    }
    case ZIP_SOURCE_SEEK: {
      const zip_int64_t target = zip_source_seek_compute_offset(archive.offset, file_size, data, size, &archive.error);
      if (target < 0) {
        return -1;
      }
      archive.offset = static_cast<uint64_t>(target);
      return 0;
    }
    case ZIP_SOURCE_TELL:
      return static_cast<zip_int64_t>(archive.offset);
    case ZIP_SOURCE_STAT: {
      zip_stat_t* const stat = static_cast<zip_stat_t*>(data);
      zip_stat_init(stat);
      stat->valid = ZIP_STAT_SIZE;
      stat->size = file_size;
      return sizeof(zip_stat_t);
    }
    case ZIP_SOURCE_ERROR:
      return zip_error_to_data(&archive.error, data, size);
    case ZIP_SOURCE_CLOSE:
    case ZIP_SOURCE_FREE:
      return 0;
    default:
      zip_error_set(&archive.error, ZIP_ER_OPNOTSUPP, 0);
      return -1;
  }
}

class MemberSource final : public ByteSource {
 public:
  // `member` is opened and becomes this object's.
  MemberSource(std::shared_ptr<Archive> archive, std::string name, zip_file_t* member, uint64_t size)
      : archive_(std::move(archive)), name_(std::move(name)), member_(member), size_(size) {}
  ~MemberSource() override { zip_fclose(member_); }
  MemberSource(const MemberSource&) = delete;
  MemberSource& operator=(const MemberSource&) = delete;

  uint64_t size() const override { return size_; }
  absl::Status Read(absl::Span<uint8_t> out) override {
    while (!out.empty()) {
      const zip_int64_t count = zip_fread(member_, out.data(), out.size());
      if (count < 0) {
        return ZipError();
      }
      if (count == 0) {
        return Error("it unpacks to fewer bytes than its header says");
      }
      out.remove_prefix(static_cast<size_t>(count));
    }
    return absl::OkStatus();
  }
  // libzip compares checksum and size when it meets the end.
  absl::Status CheckEnd() override {
    uint8_t byte = 0;
    const zip_int64_t count = zip_fread(member_, &byte, 1);
    if (count < 0) {
      return ZipError();
    }
    return count == 0 ? absl::OkStatus() : Error("it unpacks to more bytes than its header says");
  }
  absl::Status Error(absl::string_view message) const override {
    return archive_->Error(absl::StrCat("member '", name_, "': ", message));
  }

 private:
  absl::Status ZipError() {
    return Error(absl::StrCat("it cannot be unpacked (", zip_error_strerror(zip_file_get_error(member_)),
                              "): the file is truncated or damaged"));
  }

  std::shared_ptr<Archive> archive_;
  std::string name_;
  zip_file_t* member_;
  uint64_t size_;
};

class NpzFileImpl final : public NpzFile {
 public:
  static absl::StatusOr<std::unique_ptr<NpzFile>> Open(std::shared_ptr<const InputFile> file) {
    std::unique_ptr<NpzFileImpl> npz(new NpzFileImpl(std::make_shared<Archive>(std::move(file))));
    MP_RETURN_IF_ERROR(npz->ReadDirectory());
    return npz;
  }

  const std::vector<std::string>& names() const override { return names_; }

  absl::StatusOr<std::unique_ptr<ArrayReader>> OpenArray(const std::string& name) const override {
    const auto found = indices_.find(name);
    if (found == indices_.end()) {
      return archive_->Error(absl::StrCat("there is no member '", name, "'"));
    }
    zip_stat_t stat;
    zip_stat_init(&stat);
    zip_file_t* member = nullptr;
    constexpr zip_uint64_t kWanted = ZIP_STAT_SIZE | ZIP_STAT_COMP_METHOD;
    if (zip_stat_index(archive_->zip, found->second, 0, &stat) == 0 && (stat.valid & kWanted) == kWanted) {
      if (stat.comp_method != ZIP_CM_STORE && stat.comp_method != ZIP_CM_DEFLATE) {
        return archive_->Error(absl::StrCat("member '", name, "': it is neither stored nor deflated, as numpy.savez and ",
                                            "numpy.savez_compressed do, but packed by method ", stat.comp_method));
      }
      member = zip_fopen_index(archive_->zip, found->second, 0);
    }
    if (member == nullptr) {
      return archive_->Error(
          absl::StrCat("member '", name, "': it cannot be opened (", zip_error_strerror(zip_get_error(archive_->zip)), ")"));
    }
    return NpyReader::Open(std::make_unique<MemberSource>(archive_, name, member, stat.size));
  }

 private:
  explicit NpzFileImpl(std::shared_ptr<Archive> archive) : archive_(std::move(archive)) {}

  absl::Status ReadDirectory() {
    if (archive_->file->size() == 0) {  // to libzip an archive without members
      return archive_->Error("the file is empty");
    }
    zip_error_t error;
    zip_error_init(&error);
    const absl::Cleanup finish = [&error] { zip_error_fini(&error); };
    zip_source_t* source = zip_source_function_create(ReadCallback, archive_.get(), &error);
    if (source != nullptr) {
      archive_->zip = zip_open_from_source(source, ZIP_RDONLY, &error);
      if (archive_->zip == nullptr) {
        zip_source_free(source);
      }
    }
    if (archive_->zip == nullptr) {
      return archive_->Error(absl::StrCat("this is not a complete zip archive of arrays as numpy.savez writes it (",
                                          zip_error_strerror(&error), ")"));
    }
    const zip_int64_t count = zip_get_num_entries(archive_->zip, 0);
    if (count < 0 || static_cast<uint64_t>(count) > kMaxNpzMembers) {
      return archive_->Error(absl::StrCat("the archive has ", count, " members, more than ", kMaxNpzMembers));
    }
    uint64_t unpacked = 0;
    uint64_t packed = 0;
    names_.reserve(static_cast<size_t>(count));
    for (zip_uint64_t i = 0; i < static_cast<zip_uint64_t>(count); ++i) {
      const char* const raw_name = zip_get_name(archive_->zip, i, ZIP_FL_ENC_GUESS);
      if (raw_name == nullptr) {
        return archive_->Error(absl::StrCat("the name of member ", i, " cannot be read"));
      }
      std::string name = raw_name;
      if (name.size() > kMaxNpzNameBytes) {
        return archive_->Error(absl::StrCat("the name of member ", i, " has more than ", kMaxNpzNameBytes, " bytes"));
      }
      if (absl::EndsWith(name, ".npy")) {
        name.resize(name.size() - 4);
      }
      if (!indices_.emplace(name, i).second) {
        return archive_->Error(absl::StrCat("there are two members of the name '", name, "'"));
      }
      names_.push_back(std::move(name));
      MP_RETURN_IF_ERROR(AddSizes(i, unpacked, packed));
    }
    return absl::OkStatus();
  }

  // Adds the sizes of a member as the directory tells them (what it really unpacks to is compared when it is read).
  absl::Status AddSizes(zip_uint64_t index, uint64_t& unpacked, uint64_t& packed) {
    zip_stat_t stat;
    zip_stat_init(&stat);
    constexpr zip_uint64_t kWanted = ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE;
    if (zip_stat_index(archive_->zip, index, 0, &stat) != 0 || (stat.valid & kWanted) != kWanted) {
      return archive_->Error(absl::StrCat("the size of member ", index, " cannot be read"));
    }
    const uint64_t size = archive_->file->size();
    if (stat.comp_size > size - packed) {
      return archive_->Error("the members take more bytes than the archive has: they overlap, or the directory is damaged");
    }
    packed += stat.comp_size;
    if (stat.size > kMaxNpzInflatedBytes - unpacked) {
      return archive_->Error(absl::StrCat("the members unpack to more than ", kMaxNpzInflatedBytes >> 30, " GiB"));
    }
    unpacked += stat.size;
    if (unpacked > kNpzRatioFrom && unpacked / kMaxNpzRatio > size) {
      return archive_->Error(absl::StrCat("the members unpack to more than ", kMaxNpzRatio,
                                          " times the archive's size; save such data uncompressed, with numpy.savez"));
    }
    return absl::OkStatus();
  }

  std::shared_ptr<Archive> archive_;
  std::vector<std::string> names_;
  std::map<std::string, zip_uint64_t> indices_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ArrayReader>> OpenNpy(std::shared_ptr<const InputFile> file) {
  return NpyReader::Open(std::make_unique<FileSource>(std::move(file)));
}

absl::StatusOr<std::unique_ptr<NpzFile>> NpzFile::Open(std::shared_ptr<const InputFile> file) {
  return NpzFileImpl::Open(std::move(file));
}

}  // namespace modelpress::engine
