// A library for LD_PRELOAD that makes system calls of a real process fail, and its clock jump, as tests ask (injected_faults.py).
// Where a failing file system (FUSE, device mapper) needs rights that test machines do not give, this needs none.
//
// MODELPRESS_FAULTS names a file of four 64-bit integers, mapped by the test and by every process: the errno to fail with (0:
// none), "one in so many calls", nanoseconds added to the time of day, and the number of failures so far. Calls that write, sync,
// rename or read a file below MODELPRESS_FAULTS_FOLDER fail. Memory that is mapped from files is out of reach, and so is a
// process that may not look into /proc, as the engine's in its sandbox.
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

struct Control {
  std::atomic<int64_t> error;
  std::atomic<int64_t> one_in;
  std::atomic<int64_t> clock_offset_ns;
  std::atomic<int64_t> injected;
};

Control* MapControl() {
  const char* path = std::getenv("MODELPRESS_FAULTS");
  const int fd = path == nullptr ? -1 : open(path, O_RDWR | O_CLOEXEC);
  void* memory = fd < 0 ? MAP_FAILED : mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (fd >= 0) {
    close(fd);
  }
  return memory == MAP_FAILED ? nullptr : static_cast<Control*>(memory);
}

Control* TheControl() {
  static Control* const control = MapControl();
  return control;
}

bool BelowFolder(const char* path) {
  static const char* const folder = std::getenv("MODELPRESS_FAULTS_FOLDER");
  return folder != nullptr && std::strncmp(path, folder, std::strlen(folder)) == 0;
}

// True, with errno set, if this call is to fail.
bool Fails(const char* path) {
  Control* const control = TheControl();
  if (control == nullptr || control->error == 0 || !BelowFolder(path)) {
    return false;
  }
  static std::atomic<uint64_t> state{static_cast<uint64_t>(getpid()) * 0x9E3779B97F4A7C15U};
  const uint64_t random = (state += 0x9E3779B97F4A7C15U) * 0xBF58476D1CE4E5B9U;
  if (static_cast<int64_t>((random >> 33) % static_cast<uint64_t>(control->one_in)) != 0) {
    return false;
  }
  ++control->injected;
  errno = static_cast<int>(control->error);
  return true;
}

bool Fails(int fd) {
  if (TheControl() == nullptr || TheControl()->error == 0) {
    return false;
  }
  char link[64];
  char path[PATH_MAX];
  std::snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof(path) - 1);
  if (size <= 0) {
    return false;
  }
  path[size] = '\0';
  return Fails(path);
}

template <typename Function>
Function* Next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t size) {
  static auto* const next = Next<decltype(write)>("write");
  return Fails(fd) ? -1 : next(fd, data, size);
}

ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) {
  static auto* const next = Next<decltype(pwrite)>("pwrite");
  return Fails(fd) ? -1 : next(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void* data, size_t size, off64_t offset) {
  static auto* const next = Next<decltype(pwrite64)>("pwrite64");
  return Fails(fd) ? -1 : next(fd, data, size, offset);
}

ssize_t pread(int fd, void* data, size_t size, off_t offset) {
  static auto* const next = Next<decltype(pread)>("pread");
  return Fails(fd) ? -1 : next(fd, data, size, offset);
}

ssize_t pread64(int fd, void* data, size_t size, off64_t offset) {
  static auto* const next = Next<decltype(pread64)>("pread64");
  return Fails(fd) ? -1 : next(fd, data, size, offset);
}

int fsync(int fd) {
  static auto* const next = Next<decltype(fsync)>("fsync");
  return Fails(fd) ? -1 : next(fd);
}

int fdatasync(int fd) {
  static auto* const next = Next<decltype(fdatasync)>("fdatasync");
  return Fails(fd) ? -1 : next(fd);
}

int rename(const char* from, const char* to) noexcept {
  static auto* const next = Next<decltype(rename)>("rename");
  return Fails(to) ? -1 : next(from, to);
}

int mkdir(const char* path, mode_t mode) noexcept {
  static auto* const next = Next<decltype(mkdir)>("mkdir");
  return Fails(path) ? -1 : next(path, mode);
}

int clock_gettime(clockid_t clock, timespec* time) noexcept {
  static auto* const next = Next<decltype(clock_gettime)>("clock_gettime");
  const int result = next(clock, time);
  if (result == 0 && clock == CLOCK_REALTIME && TheControl() != nullptr) {
    constexpr int64_t kSecond = 1'000'000'000;
    const int64_t nanos = time->tv_sec * kSecond + time->tv_nsec + TheControl()->clock_offset_ns;
    time->tv_sec = nanos / kSecond;
    time->tv_nsec = nanos % kSecond;
  }
  return result;
}

int gettimeofday(timeval* time, void*) noexcept {
  timespec now = {};
  const int result = clock_gettime(CLOCK_REALTIME, &now);
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return result;
}

time_t time(time_t* out) noexcept {
  timespec now = {};
  clock_gettime(CLOCK_REALTIME, &now);
  if (out != nullptr) {
    *out = now.tv_sec;
  }
  return now.tv_sec;
}

}  // extern "C"
