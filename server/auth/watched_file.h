#ifndef MODELPRESS_SERVER_AUTH_WATCHED_FILE_H_
#define MODELPRESS_SERVER_AUTH_WATCHED_FILE_H_

#include <sys/stat.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/clock.h"

namespace modelpress::server {

// Notices that a file has other content than before. Not thread-safe.
class FileWatch {
 public:
  // `clock` must outlive it.
  FileWatch(std::string path, const Clock& clock) : path_(std::move(path)), clock_(clock) {}

  // True if the content differs from that of the last call, or its absence does; always the first time. `text` is then what was
  // read, or why it cannot be. Costs a stat(2) where nothing has changed.
  bool Changed();
  const absl::StatusOr<std::string>& text() const { return text_; }
  const std::string& path() const { return path_; }

 private:
  struct Stamp {
    absl::Time modified = absl::InfinitePast();  // of a file that is not there
    ino_t inode = 0;
    off_t size = 0;
    friend bool operator==(const Stamp&, const Stamp&) = default;
  };

  const std::string path_;
  const Clock& clock_;
  Stamp stamp_;
  bool settled_ = false;  // writes after the last look would show in the stamp
  absl::StatusOr<std::string> text_ = absl::UnknownError("not read yet");
};

// The parsed content of a file that may be replaced at any time; it is looked at when it is used, about once a second. What
// cannot be read or parsed changes nothing. Thread-safe.
template <typename T>
class WatchedFile {
 public:
  using Parse = std::function<absl::StatusOr<std::shared_ptr<const T>>(const std::string& text, const std::string& path)>;
  // Called with the error of a file that does not replace its predecessor.
  using OnError = std::function<void(const absl::Status&)>;

  // `clock` must outlive it.
  static absl::StatusOr<std::unique_ptr<WatchedFile>> Open(const std::string& path, const Clock& clock, Parse parse,
                                                           OnError on_error) {
    std::unique_ptr<WatchedFile> file(new WatchedFile(path, clock, std::move(parse), std::move(on_error)));
    if (absl::Status first = file->Look(); !first.ok()) {
      return first;
    }
    return file;
  }

  std::shared_ptr<const T> Get() {
    // One looks at the file; the others go on with what there is.
    if (std::unique_lock looking(look_mutex_, std::try_to_lock); looking.owns_lock()) {
      const absl::Duration now = clock_.Elapsed();
      if (now - looked_ >= absl::Seconds(1)) {
        looked_ = now;
        if (const absl::Status status = Look(); !status.ok()) {
          on_error_(status);
        }
      }
    }
    std::lock_guard lock(mutex_);
    return content_;
  }

 private:
  WatchedFile(const std::string& path, const Clock& clock, Parse parse, OnError on_error)
      : clock_(clock), parse_(std::move(parse)), on_error_(std::move(on_error)), looked_(clock.Elapsed()), watch_(path, clock) {}

  // Takes the file's content if it is new.
  absl::Status Look() {
    if (!watch_.Changed()) {
      return absl::OkStatus();
    }
    absl::StatusOr<std::shared_ptr<const T>> content =
        watch_.text().ok() ? parse_(*watch_.text(), watch_.path()) : watch_.text().status();
    if (!content.ok()) {
      return content.status();
    }
    std::lock_guard lock(mutex_);
    content_ = *std::move(content);
    return absl::OkStatus();
  }

  const Clock& clock_;
  const Parse parse_;
  const OnError on_error_;
  std::mutex look_mutex_;  // for looked_ and watch_
  absl::Duration looked_;
  FileWatch watch_;
  std::mutex mutex_;
  std::shared_ptr<const T> content_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_AUTH_WATCHED_FILE_H_
