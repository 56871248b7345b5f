#include "engine/runtime/spill.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status.h"

namespace modelpress::engine {
namespace {

absl::Status FileError(absl::string_view what, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return MakeError(full ? v1::STORAGE_FULL : v1::STORAGE_ERROR,
                   absl::StrCat("cannot ", what, " the file of activations: ", std::generic_category().message(error)));
}

}  // namespace

SpillChoice ChooseSpill(const SpillMeasure& measure) {
  const double scale = static_cast<double>(measure.all_batches) / static_cast<double>(std::max<int64_t>(measure.batches, 1));
  const double bytes = static_cast<double>(measure.bytes) * scale;
  const double run = measure.run_seconds * scale;
  const double read = measure.read_bytes == 0 ? 0 : measure.read_seconds * bytes / static_cast<double>(measure.read_bytes);
  const double disk = measure.write_seconds * scale + read;
  constexpr double kMegabyte = 1e6;
  if (bytes > static_cast<double>(measure.allowed_bytes)) {
    return {false,
            absl::StrFormat("the model runs again in every pass: its activations take %.0f MB, %.0f MB are allowed on disk",
                            bytes / kMegabyte, static_cast<double>(measure.allowed_bytes) / kMegabyte)};
  }
  if (disk >= run) {
    return {false, absl::StrFormat("the model runs again in every pass: that takes an estimated %.2f s, writing and reading %.0f "
                                   "MB of activations %.2f s",
                                   run, bytes / kMegabyte, disk)};
  }
  return {true,
          absl::StrFormat("later passes read the activations from disk: writing and reading %.0f MB takes an estimated %.2f "
                          "s, running the model again %.2f s",
                          bytes / kMegabyte, disk, run)};
}

absl::StatusOr<std::unique_ptr<SpillFile>> SpillFile::Create(const std::string& folder) {
  std::string path = absl::StrCat(folder, "/activations-XXXXXX");
  const int fd = mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) {
    return FileError("create", errno);
  }
  std::unique_ptr<SpillFile> file(new SpillFile(fd));
  if (unlink(path.c_str()) != 0) {
    return FileError("unlink", errno);
  }
  return file;
}

SpillFile::~SpillFile() { close(fd_); }

absl::Status SpillFile::Append(absl::Span<const TensorView> tensors) {
  std::vector<Entry>& entries = batches_.emplace_back();
  for (const TensorView& tensor : tensors) {
    entries.push_back({tensor.data_type, tensor.dims, size_, tensor.bytes.size()});
    absl::Span<const uint8_t> rest = tensor.bytes;
    while (!rest.empty()) {
      const ssize_t count = pwrite(fd_, rest.data(), rest.size(), static_cast<off_t>(size_));
      if (count < 0 && errno == EINTR) {
        continue;
      }
      if (count < 0) {
        return FileError("write", errno);
      }
      size_ += static_cast<uint64_t>(count);
      rest.remove_prefix(static_cast<size_t>(count));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorView> SpillFile::Read(size_t batch, size_t tensor, std::vector<uint8_t>& memory) const {
  const Entry& entry = batches_[batch][tensor];
  memory.resize(entry.bytes);
  for (uint64_t done = 0; done < entry.bytes;) {
    const ssize_t count = pread(fd_, memory.data() + done, entry.bytes - done, static_cast<off_t>(entry.offset + done));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      return FileError("read", count < 0 ? errno : EIO);
    }
    done += static_cast<uint64_t>(count);
  }
  return TensorView{entry.data_type, entry.dims, memory};
}

}  // namespace modelpress::engine
