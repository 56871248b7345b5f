#include "engine/model/writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <system_error>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "engine/base/parallel.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "engine/model/layout.h"

namespace modelpress::engine {
namespace {

// What one thread writes at a time. A multiple of every element size, and counted from the start of a large tensor, so that
// chunks hold whole elements.
constexpr uint64_t kChunkBytes = 1 << 20;
// What one thread hashes at a time, out of the page cache.
constexpr uint64_t kHashBytes = 4 << 20;
// Below this a copy inside the kernel does not pay.
constexpr uint64_t kMinKernelCopyBytes = 64 << 10;

absl::Status SystemError(int error, absl::string_view what, const std::string& name) {
  const bool full = error == ENOSPC || error == EDQUOT;
  const v1::Reason reason = full ? v1::STORAGE_FULL : error == EFBIG ? v1::RESOURCE_LIMIT : v1::STORAGE_ERROR;
  return MakeError(reason, absl::StrCat("cannot ", what, ": ", std::generic_category().message(error)), {.file = name});
}

class FileDescriptor {
 public:
  FileDescriptor(const std::string& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0600)) {}
  ~FileDescriptor() {
    if (fd_ >= 0) {
      close(fd_);
    }
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }

 private:
  int fd_;
};

// The folder may be given as a link, as the engine's process gets it (/proc/self/fd/N); what is in it may not be one.
absl::Status SyncFolder(const std::string& path, const std::string& name) {
  FileDescriptor folder(path, O_RDONLY | O_DIRECTORY);
  return folder.ok() && fsync(folder.get()) == 0 ? absl::OkStatus() : SystemError(errno, "sync the folder", name);
}

absl::Status WriteAt(int fd, uint64_t offset, absl::Span<const uint8_t> bytes, const std::string& name) {
  while (!bytes.empty()) {
    ssize_t count = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      return SystemError(count < 0 ? errno : EIO, "write", name);
    }
    offset += count;
    bytes.remove_prefix(count);
  }
  return absl::OkStatus();
}

// Some consecutive pieces of a file, or a part of a large one.
struct Chunk {
  size_t file = 0;
  uint64_t offset = 0;  // in the file
  uint64_t size = 0;
  size_t piece = 0;           // the first piece
  uint64_t piece_offset = 0;  // where in it the chunk starts
  // Place in the order of work: chunks of one tensor go together in all files, at the same relative position.
  size_t tensor = 0;
  double position = 1;
};

// A file while it is written.
struct Output {
  Output(FilePlan file, size_t number, std::string staged) : plan(std::move(file)), index(number), path(std::move(staged)) {}

  const FilePlan plan;
  const size_t index;
  const std::string path;
  Sha256 hash;
  std::map<uint64_t, uint64_t> written;  // offset -> end of finished chunks behind `ready`
  uint64_t ready = 0;                    // everything before is written
  uint64_t hashed = 0;
  bool is_hashing = false;

  uint64_t size() const { return plan.content.size(); }
  bool CanHash() const { return !is_hashing && hashed < ready && (ready - hashed >= kHashBytes || ready == size()); }
};

// Cuts all files into chunks, in the order of work.
std::vector<Chunk> Cut(const std::vector<std::unique_ptr<Output>>& files) {
  std::vector<Chunk> chunks;
  std::map<std::string, size_t> ranks;  // of tensors in order of appearance; 0 is for what comes before any large tensor
  for (size_t f = 0; f < files.size(); ++f) {
    const std::vector<Piece>& pieces = files[f]->plan.content.pieces();
    uint64_t offset = 0;
    size_t rank = 0;
    Chunk group = {.file = f};
    auto flush = [&] {
      if (group.size > 0) {
        chunks.push_back(group);
      }
      group = {.file = f};
    };
    for (size_t p = 0; p < pieces.size(); offset += pieces[p].size(), ++p) {
      const uint64_t size = pieces[p].size();
      if (group.size + size > kChunkBytes) {
        flush();
      }
      if (size <= kChunkBytes) {
        if (group.size == 0) {
          group = {.file = f, .offset = offset, .piece = p, .tensor = rank};
        }
        group.size += size;
        continue;
      }
      if (pieces[p].payload != nullptr) {
        rank = ranks.try_emplace(pieces[p].layer, ranks.size() + 1).first->second;
      }
      for (uint64_t start = 0; start < size; start += kChunkBytes) {
        chunks.push_back({.file = f,
                          .offset = offset + start,
                          .size = std::min(kChunkBytes, size - start),
                          .piece = p,
                          .piece_offset = start,
                          .tensor = rank,
                          .position = static_cast<double>(start) / static_cast<double>(size)});
      }
    }
    flush();
  }
  std::stable_sort(chunks.begin(), chunks.end(), [](const Chunk& a, const Chunk& b) {
    return std::tie(a.tensor, a.position, a.file, a.offset) < std::tie(b.tensor, b.position, b.file, b.offset);
  });
  return chunks;
}

// Writes and hashes files with a few threads.
class WriteJob {
 public:
  WriteJob(std::vector<std::unique_ptr<Output>> files, const WriteOptions& options)
      : files_(std::move(files)), options_(options), chunks_(Cut(files_)) {
    for (const auto& file : files_) {
      total_ += file->size();
    }
  }

  const std::vector<std::unique_ptr<Output>>& files() const { return files_; }

  absl::Status Run() {
    for (const auto& file : files_) {
      MP_RETURN_IF_ERROR(Allocate(*file));
    }
    const int useful = static_cast<int>(std::min<uint64_t>(chunks_.size(), std::max(options_.threads, 1)));
    ParallelFor(useful, useful, [this](uint64_t) { Work(); });
    return error_;
  }

 private:
  // Creates the file with all its space, so that a full disk is found now.
  static absl::Status Allocate(const Output& file) {
    FileDescriptor out(file.path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW);
    if (!out.ok()) {
      return SystemError(errno, "create the file", file.plan.name);
    }
    if (file.size() == 0) {
      return absl::OkStatus();
    }
    const auto size = static_cast<off_t>(file.size());
    int result = fallocate(out.get(), 0, 0, size);
    if (result != 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
      result = ftruncate(out.get(), size);
    }
    return result == 0 ? absl::OkStatus() : SystemError(errno, absl::StrCat("reserve ", file.size(), " bytes"), file.plan.name);
  }

  void Work() {
    std::vector<uint8_t> buffer(kChunkBytes);
    std::unique_lock lock(mutex_);
    while (true) {
      if (Output* file = FindHashable(); file != nullptr) {
        file->is_hashing = true;
        const uint64_t from = file->hashed;
        const uint64_t to = std::min(file->ready, from + kHashBytes);
        lock.unlock();
        absl::Status status = Hash(*file, from, to, buffer);
        lock.lock();
        file->is_hashing = false;
        file->hashed = to;
        if (!status.ok()) {
          NoteError(status, file->index, from);
        }
      } else if (next_ < chunks_.size()) {
        const Chunk& chunk = chunks_[next_++];
        // After an error only what could have an earlier one is still of interest.
        if (!error_.ok() && std::pair(chunk.file, chunk.offset) > error_place_) {
          continue;
        }
        ++running_;
        lock.unlock();
        absl::Status status = Produce(chunk, buffer);
        lock.lock();
        --running_;
        Done(chunk, status);
      } else if (running_ == 0 && std::none_of(files_.begin(), files_.end(), [](const auto& file) { return file->is_hashing; })) {
        break;
      } else {
        changed_.wait(lock);
        continue;
      }
      changed_.notify_all();
    }
    changed_.notify_all();
  }

  Output* FindHashable() const {
    if (!error_.ok()) {
      return nullptr;
    }
    auto it = std::find_if(files_.begin(), files_.end(), [](const auto& file) { return file->CanHash(); });
    return it == files_.end() ? nullptr : it->get();
  }

  void Done(const Chunk& chunk, const absl::Status& status) {
    if (!status.ok()) {
      NoteError(status, chunk.file, chunk.offset);
      return;
    }
    Output& file = *files_[chunk.file];
    file.written[chunk.offset] = chunk.offset + chunk.size;
    for (auto it = file.written.begin(); it != file.written.end() && it->first == file.ready; it = file.written.erase(it)) {
      file.ready = it->second;
    }
    done_ += chunk.size;
    if (options_.progress && error_.ok()) {
      options_.progress(done_, total_);
    }
  }

  // Keeps the error that comes first in the files: which one is met first depends on the threads.
  void NoteError(const absl::Status& status, size_t file, uint64_t offset) {
    if (error_.ok() || std::pair(file, offset) < error_place_) {
      error_ = status;
      error_place_ = {file, offset};
    }
  }

  absl::Status Produce(const Chunk& chunk, std::vector<uint8_t>& buffer) {
    const Output& file = *files_[chunk.file];
    FileDescriptor out(file.path, O_WRONLY | O_NOFOLLOW);
    if (!out.ok()) {
      return SystemError(errno, "open the file", file.plan.name);
    }
    const std::vector<Piece>& pieces = file.plan.content.pieces();
    const Piece& first = pieces[chunk.piece];
    const FileRange* range = first.payload == nullptr ? nullptr : first.payload->AsFileRange();
    uint64_t filled = 0;
    if (range != nullptr && first.size() - chunk.piece_offset >= chunk.size && chunk.size >= kMinKernelCopyBytes) {
      MP_ASSIGN_OR_RETURN(const uint64_t copied, KernelCopy(*range, chunk, out.get(), file.plan.name));
      if (copied == chunk.size) {
        return absl::OkStatus();
      }
    }
    uint64_t piece_offset = chunk.piece_offset;
    for (size_t p = chunk.piece; filled < chunk.size; ++p, piece_offset = 0) {
      const Piece& piece = pieces[p];
      const uint64_t size = std::min(piece.size() - piece_offset, chunk.size - filled);
      absl::Span<uint8_t> part = absl::MakeSpan(buffer).subspan(filled, size);
      if (piece.payload == nullptr) {
        std::copy_n(piece.bytes.begin() + static_cast<std::ptrdiff_t>(piece_offset), size, part.begin());
      } else {
        MP_RETURN_IF_ERROR(AtPlace(piece.payload->Read(piece_offset, part), {.layer = piece.layer}));
      }
      filled += size;
    }
    return WriteAt(out.get(), chunk.offset, absl::MakeConstSpan(buffer).first(filled), file.plan.name);
  }

  // Copies a chunk without its bytes leaving the kernel. Returns less than its size where the file systems cannot do that.
  absl::StatusOr<uint64_t> KernelCopy(const FileRange& range, const Chunk& chunk, int out, const std::string& name) {
    uint64_t copied = 0;
    while (kernel_copies_ && copied < chunk.size) {
      auto from = static_cast<off_t>(range.offset + chunk.piece_offset + copied);
      auto to = static_cast<off_t>(chunk.offset + copied);
      ssize_t count = copy_file_range(range.file->fd(), &from, out, &to, chunk.size - copied, 0);
      if (count < 0 && errno == EINTR) {
        continue;
      }
      if (count < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EIO || errno == EFBIG)) {
        return SystemError(errno, "write", name);
      }
      if (count <= 0) {
        // Not between these file systems (or the source has become shorter, which reading it will tell).
        kernel_copies_ = false;
        break;
      }
      copied += count;
    }
    return copied;
  }

  static absl::Status Hash(Output& file, uint64_t from, uint64_t to, std::vector<uint8_t>& buffer) {
    FileDescriptor in(file.path, O_RDONLY | O_NOFOLLOW);
    if (!in.ok()) {
      return SystemError(errno, "open the file", file.plan.name);
    }
    // Small steps, so that the bytes are still in the CPU's cache when they are hashed.
    constexpr uint64_t kStep = 128 << 10;
    while (from < to) {
      ssize_t count = pread(in.get(), buffer.data(), std::min(kStep, to - from), static_cast<off_t>(from));
      if (count < 0 && errno == EINTR) {
        continue;
      }
      if (count <= 0) {
        return SystemError(count < 0 ? errno : EIO, "read back", file.plan.name);
      }
      file.hash.Update(absl::MakeConstSpan(buffer).first(count));
      from += count;
    }
    return absl::OkStatus();
  }

  std::vector<std::unique_ptr<Output>> files_;
  const WriteOptions& options_;
  const std::vector<Chunk> chunks_;
  uint64_t total_ = 0;
  std::atomic<bool> kernel_copies_ = true;

  std::mutex mutex_;  // guards everything below, and the Outputs' state
  std::condition_variable changed_;
  size_t next_ = 0;  // chunk
  int running_ = 0;  // chunks being produced
  uint64_t done_ = 0;
  absl::Status error_;
  std::pair<size_t, uint64_t> error_place_;
};

absl::Status CheckName(const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.size() > 255 || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    return MakeError(v1::NAME_INVALID, "an output file needs a name of 1 to 255 bytes without '/'", {.file = name});
  }
  return absl::OkStatus();
}

// Creates `path` and what is missing above it.
absl::Status MakeFolders(const std::filesystem::path& path, mode_t mode) {
  struct stat info{};
  if (stat(path.c_str(), &info) == 0) {
    return S_ISDIR(info.st_mode) ? absl::OkStatus() : SystemError(ENOTDIR, "create the folder", path.string());
  }
  if (path.has_parent_path() && path.parent_path() != path) {
    MP_RETURN_IF_ERROR(MakeFolders(path.parent_path(), 0777));
  }
  if (mkdir(path.c_str(), mode) != 0 && errno != EEXIST) {
    return SystemError(errno, "create the folder", path.string());
  }
  return absl::OkStatus();
}

}  // namespace

OutputFolder::OutputFolder(std::string directory) : directory_(std::move(directory)) {}

absl::StatusOr<std::unique_ptr<OutputFolder>> OutputFolder::Create(const std::string& directory) {
  std::filesystem::path path = std::filesystem::path(directory.empty() ? "." : directory).lexically_normal();
  if (!path.has_filename() && path.has_parent_path()) {
    path = path.parent_path();  // "folder/"
  }
  MP_RETURN_IF_ERROR(MakeFolders(path, 0750));
  std::unique_ptr<OutputFolder> folder(new OutputFolder(path.string()));
  std::string staging = (path / ".modelpress-XXXXXX").string();
  if (mkdtemp(staging.data()) == nullptr) {
    return SystemError(errno, "create a temporary folder", directory);
  }
  folder->staging_ = std::move(staging);
  return folder;
}

OutputFolder::~OutputFolder() {
  if (!staging_.empty()) {
    std::error_code ignored;  // nobody is left to tell
    std::filesystem::remove_all(staging_, ignored);
  }
}

std::string OutputFolder::StagedPath(const std::string& name) const { return absl::StrCat(staging_, "/", name); }

absl::Status OutputFolder::Write(std::vector<FilePlan> plans, const WriteOptions& options) {
  std::set<std::string> names;
  for (const WrittenFile& file : files_) {
    names.insert(file.name);
  }
  std::vector<std::unique_ptr<Output>> outputs;
  for (FilePlan& plan : plans) {
    MP_RETURN_IF_ERROR(CheckName(plan.name));
    if (!names.insert(plan.name).second) {
      return MakeError(v1::NAME_INVALID, "two output files have this name", {.file = plan.name});
    }
    std::string path = StagedPath(plan.name);
    outputs.push_back(std::make_unique<Output>(std::move(plan), outputs.size(), std::move(path)));
  }
  WriteJob job(std::move(outputs), options);
  absl::Status status = job.Run();
  for (const auto& file : job.files()) {
    if (status.ok()) {
      files_.push_back({.name = file->plan.name, .size = file->size(), .sha256 = file->hash.Finish()});
    } else {
      unlink(file->path.c_str());
    }
  }
  return status;
}

absl::Status OutputFolder::AddModels(absl::Span<const ModelFile> models, const WriteOptions& options) {
  std::set<std::string> taken;
  for (const WrittenFile& file : files_) {
    taken.insert(file.name);
  }
  for (const ModelFile& model : models) {
    taken.insert(model.file_name);
  }
  std::vector<FilePlan> plans;
  for (const ModelFile& model : models) {
    MP_ASSIGN_OR_RETURN(std::vector<FilePlan> more, PlanModel(model, options.externalize_at, taken));
    std::move(more.begin(), more.end(), std::back_inserter(plans));
  }
  return Write(std::move(plans), options);
}

absl::Status OutputFolder::AddFile(const std::string& name, absl::string_view bytes) {
  std::vector<FilePlan> plans(1);
  plans[0].name = name;
  plans[0].content.Add(bytes);
  return Write(std::move(plans), {});
}

absl::Status OutputFolder::AddCopy(const std::string& name, const InputFile& source, const WriteOptions& options) {
  std::vector<FilePlan> plans(1);
  plans[0].name = name;
  // Not owned: `source` outlives the call.
  std::shared_ptr<const InputFile> file(std::shared_ptr<void>(), &source);
  plans[0].content.Add(std::make_shared<FilePayload>(FileRange{.file = std::move(file), .size = source.size()}), "");
  return Write(std::move(plans), options);
}

absl::Status OutputFolder::Commit() {
  for (const WrittenFile& file : files_) {
    FileDescriptor fd(StagedPath(file.name), O_RDONLY | O_NOFOLLOW);
    // fchmod, because the mode shall not depend on the umask.
    if (!fd.ok() || fchmod(fd.get(), 0640) != 0 || fsync(fd.get()) != 0) {
      return SystemError(errno, "sync the file", file.name);
    }
  }
  MP_RETURN_IF_ERROR(SyncFolder(staging_, directory_));
  for (const WrittenFile& file : files_) {
    if (rename(StagedPath(file.name).c_str(), absl::StrCat(directory_, "/", file.name).c_str()) != 0) {
      return SystemError(errno, "replace the file", file.name);
    }
  }
  MP_RETURN_IF_ERROR(SyncFolder(directory_, directory_));
  if (rmdir(staging_.c_str()) == 0) {
    staging_.clear();
  }
  return absl::OkStatus();
}

}  // namespace modelpress::engine
