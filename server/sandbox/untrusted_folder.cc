#include "server/sandbox/untrusted_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/base/posix.h"

namespace modelpress::server {
namespace {

constexpr int kMaxDepth = 40;

struct CloseFolder {
  void operator()(DIR* stream) const { closedir(stream); }
};
using FolderStream = std::unique_ptr<DIR, CloseFolder>;

// nullptr, with errno, if `name` in `parent` is no folder that can be listed.
FolderStream OpenStream(int parent, const char* name) {
  const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  FolderStream stream(fd < 0 ? nullptr : fdopendir(fd));
  if (stream == nullptr && fd >= 0) {
    close(fd);
  }
  return stream;
}

// The next name but "." and ".."; nullptr at the end.
const char* NextName(DIR* stream) {
  while (const dirent* entry = readdir(stream)) {
    const absl::string_view name = entry->d_name;
    if (name != "." && name != "..") {
      return entry->d_name;
    }
  }
  return nullptr;
}

// What is left of a limit while a tree is walked.
struct Allowance {
  uint64_t bytes;
  uint64_t entries;

  bool Take(const struct stat& info) {
    const uint64_t taken = static_cast<uint64_t>(info.st_blocks) * 512;
    if (taken > bytes || entries == 0) {
      return false;
    }
    bytes -= taken;
    --entries;
    return true;
  }
};

bool Fits(DIR* stream, int depth, Allowance& allowance) {
  while (const char* name = NextName(stream)) {
    struct stat info = {};
    if (fstatat(dirfd(stream), name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
      continue;  // removed in between
    }
    if (!allowance.Take(info)) {
      return false;
    }
    if (!S_ISDIR(info.st_mode)) {
      continue;
    }
    const FolderStream inner = depth < kMaxDepth ? OpenStream(dirfd(stream), name) : nullptr;
    if (inner == nullptr && depth < kMaxDepth && errno == ENOENT) {
      continue;
    }
    if (inner == nullptr || !Fits(inner.get(), depth + 1, allowance)) {
      return false;
    }
  }
  return true;
}

}  // namespace

absl::Status GiveFolder(const std::string& folder, const SandboxUser& user) {
  if (chown(folder.c_str(), user.uid, user.gid) != 0) {
    return ErrnoError(errno, "give away", folder);
  }
  return chmod(folder.c_str(), 0700) == 0 ? absl::OkStatus() : ErrnoError(errno, "change the mode of", folder);
}

bool TakesMoreThan(const std::string& folder, uint64_t max_bytes, uint64_t max_entries) {
  const FolderStream stream = OpenStream(AT_FDCWD, folder.c_str());
  Allowance allowance{max_bytes, max_entries};
  return stream != nullptr && !Fits(stream.get(), 0, allowance);
}

// Folders in `folder` are emptied by moving the folders in them up, next to them: however deep they are nested, neither
// descriptors nor the stack run out.
absl::Status RemoveFolder(const std::string& folder) {
  const FolderStream top = OpenStream(AT_FDCWD, folder.c_str());
  if (top == nullptr) {
    return errno == ENOENT ? absl::OkStatus() : ErrnoError(errno, "open", folder);
  }
  const int top_fd = dirfd(top.get());
  auto failed = [&folder](const char* action) { return ErrnoError(errno, action, absl::StrCat("something in ", folder)); };
  uint64_t moved = 0;
  // Moves `name` of `parent` to a name in the top folder that nobody else had a reason to take.
  auto move_up = [&](int parent, const char* name) {
    int result = 0;
    do {
      result = renameat2(parent, name, top_fd, absl::StrCat(".removed-", moved++).c_str(), RENAME_NOREPLACE);
    } while (result != 0 && errno == EEXIST);
    return result;
  };
  while (true) {
    rewinddir(top.get());
    const char* name = NextName(top.get());
    if (name == nullptr) {
      break;
    }
    const std::string entry = name;
    if (unlinkat(top_fd, entry.c_str(), 0) == 0) {
      continue;
    }
    if (errno != EISDIR && errno != EPERM) {
      return failed("remove");
    }
    // Its owner may have made it inaccessible, even to itself. It is no link: unlinkat would have removed that.
    const FolderStream inner = fchmodat(top_fd, entry.c_str(), 0700, 0) == 0 ? OpenStream(top_fd, entry.c_str()) : nullptr;
    if (inner == nullptr) {
      return failed("open");
    }
    const int inner_fd = dirfd(inner.get());
    std::vector<std::string> names;
    while (const char* inner_name = NextName(inner.get())) {
      names.emplace_back(inner_name);
    }
    for (const std::string& inner_name : names) {
      if (unlinkat(inner_fd, inner_name.c_str(), 0) == 0) {
        continue;
      }
      // To move a folder its ".." has to be written.
      if (fchmodat(inner_fd, inner_name.c_str(), 0700, 0) != 0 || move_up(inner_fd, inner_name.c_str()) != 0) {
        return failed("move");
      }
    }
    if (unlinkat(top_fd, entry.c_str(), AT_REMOVEDIR) != 0) {
      return failed("remove");
    }
  }
  return rmdir(folder.c_str()) == 0 || errno == ENOENT ? absl::OkStatus() : ErrnoError(errno, "remove", folder);
}

}  // namespace modelpress::server
