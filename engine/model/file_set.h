// The input files of one engine call, by the names they have in the caller's workspace. The engine opens nothing else: names in
// a model (external data) are looked up here and never reach the file system, so no "..", link or device can be followed.
#ifndef MODELPRESS_ENGINE_MODEL_FILE_SET_H_
#define MODELPRESS_ENGINE_MODEL_FILE_SET_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace modelpress::engine {

// A read-only file, opened once. Thread-safe. Parsing looks through `mapping()`; bulk data is read with ReadAt, which
// neither grows the resident set with file pages nor dies of SIGBUS if the file shrinks.
class InputFile {
 public:
  // STORAGE_ERROR if `path` cannot be opened, mapped or is no regular file. Without `keep_descriptor` all reading goes through
  // the mapping, for callers with more files than a process may have open.
  static absl::StatusOr<std::shared_ptr<const InputFile>> Open(const std::string& name, const std::string& path,
                                                               bool keep_descriptor = true);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& name() const { return name_; }
  int fd() const { return fd_; }  // -1: none was kept
  uint64_t size() const { return size_; }
  absl::Span<const uint8_t> mapping() const { return {data_, static_cast<size_t>(size_)}; }
  // Fills `out` from `offset`; STORAGE_ERROR if the file does not hold that many bytes any more.
  absl::Status ReadAt(uint64_t offset, absl::Span<uint8_t> out) const;

 private:
  InputFile(std::string name, int fd, const uint8_t* data, uint64_t size);
  std::string name_;
  int fd_;
  const uint8_t* data_;  // nullptr for an empty file
  uint64_t size_;
};

class FileSet {
 public:
  // `paths`: workspace name -> path on this machine.
  explicit FileSet(std::map<std::string, std::string> paths) : paths_(std::move(paths)) {}

  // Opens every file now, so that Open needs no file system any more; the first `max_descriptors` keep a descriptor.
  // STORAGE_ERROR.
  absl::Status OpenAll(size_t max_descriptors);

  bool Contains(absl::string_view name) const;
  // FILE_NOT_FOUND if the call was not given that name.
  absl::StatusOr<std::shared_ptr<const InputFile>> Open(absl::string_view name) const;
  // Names of the files below a folder, relative to it, sorted; empty where there is no such folder.
  std::vector<std::string> ListBelow(absl::string_view folder) const;

 private:
  std::map<std::string, std::string> paths_;
  std::map<std::string, std::shared_ptr<const InputFile>> opened_;  // by OpenAll
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_MODEL_FILE_SET_H_
