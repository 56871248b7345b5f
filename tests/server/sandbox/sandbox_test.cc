// Enters the sandbox in child processes, as a hostile model would find it, and tries what it must not be able to do.
#include "server/sandbox/sandbox.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/posix.h"
#include "server/sandbox/untrusted_folder.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

constexpr SandboxUser kNobody{65534, 65534};
constexpr int kNotEntered = 99;

std::map<std::string, Mechanism> ByName(const std::vector<Mechanism>& mechanisms) {
  std::map<std::string, Mechanism> map;
  for (const Mechanism& mechanism : mechanisms) {
    map[mechanism.name] = mechanism;
  }
  return map;
}

// "" where all of it is to be had here.
std::string Missing() {
  std::string missing;
  for (const Mechanism& mechanism : AvailableMechanisms(kNobody)) {
    if (!mechanism.active) {
      absl::StrAppend(&missing, mechanism.name, ": ", mechanism.detail, "; ");
    }
  }
  return missing;
}

// An own folder, a file next to it that everybody may read and write, and an input opened before.
class SandboxTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = Missing(); !missing.empty()) {
      GTEST_SKIP() << missing;
    }
    own_ = absl::StrCat(outside_.path(), "/own");
    secret_ = absl::StrCat(outside_.path(), "/secret");
    WriteTestFile(secret_, "secret");
    chmod(secret_.c_str(), 0666);
    chmod(outside_.path().c_str(), 0777);
    mkdir(own_.c_str(), 0777);
    chmod(own_.c_str(), 0777);
    WriteTestFile(own_ + "/file", "mine");
    chmod((own_ + "/file").c_str(), 0666);
    input_ = open(secret_.c_str(), O_RDONLY | O_CLOEXEC);
    folder_fd_ = open(own_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  }
  void TearDown() override {
    close(input_);
    close(folder_fd_);
  }

  // The status with which a process ended that ran `body` in the sandbox. It exits with what body returns.
  int Run(const std::function<int()>& body, const std::optional<SandboxUser>& user = std::nullopt) const {
    const pid_t child = fork();
    if (child == 0) {
      Sandbox sandbox;
      SandboxOptions options;
      options.user = user;
      options.folders = {folder_fd_};
      std::map<std::string, Mechanism> mechanisms = ByName(sandbox.Enter(options));
      if (!mechanisms[kPrivileges].active || !mechanisms[kLandlock].active || !mechanisms[kSeccomp].active ||
          mechanisms[kOwnUser].active != user.has_value()) {
        _exit(kNotEntered);
      }
      _exit(body());
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
  }

  // `attempt` returns what its system call does.
  void ExpectRefused(const char* what, const std::function<long()>& attempt) const {
    const int status = Run([&] { return attempt() < 0 ? errno : 0; });
    ASSERT_TRUE(WIFEXITED(status)) << what << ": killed by " << strsignal(WTERMSIG(status));
    ASSERT_NE(WEXITSTATUS(status), kNotEntered) << what;
    EXPECT_NE(WEXITSTATUS(status), 0) << what << " was possible";
  }
  void ExpectKilled(const char* what, const std::function<long()>& attempt) const {
    const int status = Run([&] { return attempt() < 0 ? errno : 0; });
    ASSERT_TRUE(WIFSIGNALED(status)) << what << ": exit code " << WEXITSTATUS(status);
    EXPECT_EQ(WTERMSIG(status), SIGSYS) << what;
  }
  void ExpectWorks(const char* what, const std::function<bool()>& body) const {
    const int status = Run([&] { return body() ? 0 : 1; });
    EXPECT_EQ(status, 0) << what << ", errno " << errno;
  }

  TestFolder outside_;
  std::string own_;
  std::string secret_;
  int input_ = -1;
  int folder_fd_ = -1;
};

TEST_F(SandboxTest, OpensNothingOutside) {
  auto reading = [](const std::string& path) { return [path] { return open(path.c_str(), O_RDONLY); }; };
  for (const std::string& path :
       {std::string("/etc/passwd"), secret_, own_ + "/../secret", absl::StrCat("/proc/self/fd/", folder_fd_, "/../secret"),
        absl::StrCat("/proc/self/fd/", input_), std::string("/proc/self/environ"), std::string("/proc/self/maps"),
        absl::StrCat("/proc/", getpid(), "/status"), std::string("/dev/null"), std::string("/proc/sys/kernel/hostname"),
        std::string("/"), outside_.path()}) {
    // It is the sandbox that refuses.
    EXPECT_EQ(access(path.c_str(), R_OK), 0) << path;
    ExpectRefused(path.c_str(), reading(path));
  }
  ExpectRefused("the machine's memory", reading("/dev/mem"));
  ExpectRefused("another's environment", reading("/proc/1/environ"));
  ExpectRefused("opening for writing", [&] { return open(secret_.c_str(), O_WRONLY); });
  ExpectRefused("opening an input again for writing",
                [&] { return open(absl::StrCat("/proc/self/fd/", input_).c_str(), O_RDWR); });
  ExpectRefused("truncating", [&] { return truncate(secret_.c_str(), 0); });
  ExpectRefused("its own memory", [] { return open("/proc/self/mem", O_RDWR); });
  ExpectRefused("a program in memory", [] { return memfd_create("x", 0); });
  EXPECT_EQ(ReadTestFile(secret_), "secret");
}

TEST_F(SandboxTest, ChangesNothingOutside) {
  const std::string beside = outside_.path() + "/beside";
  ExpectRefused("creating", [&] { return open(beside.c_str(), O_WRONLY | O_CREAT, 0600); });
  ExpectRefused("a folder", [&] { return mkdir(beside.c_str(), 0700); });
  ExpectRefused("moving out", [&] { return rename((own_ + "/file").c_str(), beside.c_str()); });
  ExpectRefused("moving in", [&] { return rename(secret_.c_str(), (own_ + "/stolen").c_str()); });
  ExpectRefused("linking in", [&] { return link(secret_.c_str(), (own_ + "/linked").c_str()); });
  ExpectRefused("linking a descriptor in", [&] {
    return linkat(AT_FDCWD, absl::StrCat("/proc/self/fd/", input_).c_str(), AT_FDCWD, (own_ + "/linked").c_str(),
                  AT_SYMLINK_FOLLOW);
  });
  ExpectRefused("removing", [&] { return unlink(secret_.c_str()); });
  ExpectRefused("a mode", [&] { return chmod(secret_.c_str(), 0); });
  ExpectRefused("a folder's mode", [&] { return chmod(outside_.path().c_str(), 0); });
  ExpectRefused("an input's mode", [&] { return fchmod(input_, 0777); });
  ExpectRefused("an owner", [&] { return chown(secret_.c_str(), 1, 1); });
  ExpectRefused("times", [&] { return utimensat(AT_FDCWD, secret_.c_str(), nullptr, 0); });
  EXPECT_NE(access(beside.c_str(), F_OK), 0);
  EXPECT_EQ(ReadTestFile(secret_), "secret");
}

TEST_F(SandboxTest, LeavesNoTrapsInItsFolder) {
  ExpectRefused("a symbolic link", [&] { return symlink(secret_.c_str(), (own_ + "/link").c_str()); });
  ExpectRefused("a symbolic link", [&] { return symlinkat("/etc", folder_fd_, "link"); });
  ExpectRefused("an unreadable file", [&] {
    const int file = open((own_ + "/file").c_str(), O_RDWR);
    return file < 0 ? 0 : fchmod(file, 04755);
  });
  ExpectKilled("a pipe", [&] { return mkfifo((own_ + "/pipe").c_str(), 0600); });
  ExpectKilled("a device", [&] { return mknod((own_ + "/device").c_str(), S_IFBLK | 0600, 0x800); });
  // A link that somebody else has put there leads nowhere.
  ASSERT_EQ(symlink(secret_.c_str(), (own_ + "/planted").c_str()), 0);
  ExpectRefused("writing through a link", [&] { return open((own_ + "/planted").c_str(), O_WRONLY); });
}

TEST_F(SandboxTest, MakesNoProcesses) {
  ExpectKilled("execve", [] { return execl("/bin/true", "true", nullptr); });
  ExpectKilled("execveat", [this] { return syscall(SYS_execveat, input_, "", nullptr, nullptr, AT_EMPTY_PATH); });
  ExpectKilled("fork", [] { return fork(); });
  ExpectKilled("clone", [] { return syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr); });
  ExpectKilled("clone into a user namespace",
               [] { return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, nullptr, nullptr, nullptr, nullptr); });
  ExpectRefused("clone3", [] {
    std::array<uint64_t, 11> arguments = {};
    arguments[4] = SIGCHLD;
    return syscall(SYS_clone3, arguments.data(), sizeof(arguments));
  });
#ifdef __x86_64__
  ExpectKilled("vfork", [] { return syscall(SYS_vfork); });
  ExpectKilled("a call of the 32-bit kind", []() -> long {
    long result = 2;                                            // fork
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory");  // NOLINT(hicpp-no-assembler)
    return result;
  });
  ExpectKilled("a call of the x32 kind", [] { return syscall(0x40000000 | SYS_getpid); });
#endif
  ExpectRefused("memory to run", [] {
    return mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
  });
  ExpectRefused("memory made to run", [] {
    void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mprotect(page, 4096, PROT_READ | PROT_EXEC);
  });
}

TEST_F(SandboxTest, ReachesNoOtherProcess) {
  const pid_t parent = getpid();
  ExpectKilled("ptrace", [parent] { return ptrace(PTRACE_ATTACH, parent, nullptr, nullptr); });
  ExpectKilled("being traced", [] { return ptrace(PTRACE_TRACEME, 0, nullptr, nullptr); });
  ExpectKilled("reading memory", [parent] {
    char byte = 0;
    iovec mine = {&byte, 1};
    return process_vm_readv(parent, &mine, 1, &mine, 1, 0);
  });
  ExpectKilled("kill", [parent] { return kill(parent, 0); });
  ExpectKilled("kill of all", [] { return kill(-1, 0); });
  ExpectKilled("tkill", [parent] { return syscall(SYS_tkill, parent, 0); });
  ExpectRefused("tgkill", [parent] { return syscall(SYS_tgkill, parent, parent, 0); });
  ExpectKilled("pidfd_open", [parent] { return syscall(SYS_pidfd_open, parent, 0); });
  ExpectRefused("another's limits", [parent] {
    const rlimit limit = {0, 0};
    return prlimit(parent, RLIMIT_CPU, &limit, nullptr);
  });
  ExpectRefused("another's processors", [parent] {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    return sched_setaffinity(parent, sizeof(set), &set);
  });
  ExpectRefused("outliving its parent", [] { return prctl(PR_SET_PDEATHSIG, 0); });
  ExpectRefused("priority", [] { return setpriority(PRIO_PROCESS, 0, 5); });
  ExpectKilled("shared memory", [] { return shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600); });
}

TEST_F(SandboxTest, HasNoNetwork) {
  for (const int family : {AF_INET, AF_INET6, AF_UNIX, AF_NETLINK, AF_PACKET}) {
    ExpectKilled("socket", [family] { return socket(family, SOCK_STREAM, 0); });
  }
  ExpectKilled("socketpair", [] {
    std::array<int, 2> ends{};
    return socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data());
  });
  // On a socket that it has already, as the engine has one for its input.
  const UniqueFd held(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_GE(held.get(), 0);
  const sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(1), .sin_addr = {htonl(INADDR_LOOPBACK)}};
  ExpectKilled("connect", [&] { return connect(held.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)); });
  ExpectKilled("bind", [&] { return bind(held.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)); });
  ExpectKilled("sendto", [&] { return send(held.get(), "x", 1, 0); });
  ExpectKilled("sendmsg", [&] {
    const msghdr message = {};
    return sendmsg(held.get(), &message, 0);
  });
}

TEST_F(SandboxTest, GainsNoRights) {
  ExpectKilled("setuid", [] { return setuid(0); });
  ExpectKilled("setresuid", [] { return setresuid(0, 0, 0); });
  ExpectKilled("chroot", [this] { return chroot(own_.c_str()); });
  ExpectKilled("unshare", [] { return unshare(CLONE_NEWUSER | CLONE_NEWNS); });
  ExpectKilled("setns", [this] { return setns(input_, 0); });
  ExpectKilled("mount", [this] { return mount("none", own_.c_str(), "tmpfs", 0, nullptr); });
  ExpectKilled("bpf", [] { return syscall(SYS_bpf, BPF_MAP_CREATE, nullptr, 0); });
  ExpectKilled("perf_event_open", [] { return syscall(SYS_perf_event_open, nullptr, 0, -1, -1, 0); });
  ExpectKilled("io_uring", [] { return syscall(SYS_io_uring_setup, 1, nullptr); });
  ExpectKilled("userfaultfd", [] { return syscall(SYS_userfaultfd, 0); });
  ExpectKilled("keyctl", [] { return syscall(SYS_keyctl, 0, 0, 0, 0, 0); });
  ExpectKilled("open_by_handle_at", [] { return syscall(SYS_open_by_handle_at, AT_FDCWD, nullptr, 0); });
  ExpectKilled("init_module", [] { return syscall(SYS_init_module, nullptr, 0, ""); });
  ExpectKilled("personality", [] { return personality(READ_IMPLIES_EXEC); });
  ExpectRefused("a looser filter", [] { return prctl(PR_SET_SECCOMP, 0, 0, 0, 0); });
  ExpectRefused("being dumped", [] { return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); });
  ExpectRefused("limits", [] {
    const rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    return setrlimit(RLIMIT_NOFILE, &limit);
  });
  ExpectRefused("a terminal's input", [] { return ioctl(STDIN_FILENO, TIOCSTI, "x"); });
}

TEST_F(SandboxTest, WhatTheEngineNeedsWorks) {
  ExpectWorks("threads", [] {
    std::array<int, 4> results{};
    std::vector<std::thread> threads;
    threads.reserve(results.size());
    for (int& result : results) {
      threads.emplace_back([&result] { result = 1; });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    return results == std::array<int, 4>{1, 1, 1, 1};
  });
  ExpectWorks("reading and mapping an input", [this] {
    std::array<char, 6> bytes{};
    void* mapped = mmap(nullptr, 6, PROT_READ, MAP_PRIVATE, input_, 0);
    return pread(input_, bytes.data(), bytes.size(), 0) == 6 && std::string(bytes.data(), 6) == "secret" &&
           mapped != MAP_FAILED && *static_cast<const char*>(mapped) == 's' && madvise(mapped, 6, MADV_RANDOM) == 0 &&
           munmap(mapped, 6) == 0;
  });
  for (const std::string& root : {own_, absl::StrCat("/proc/self/fd/", folder_fd_)}) {
    ExpectWorks("writing outputs", [&root] {
      std::error_code error;
      std::filesystem::create_directories(root + "/results/staging", error);
      const std::string path = root + "/results/staging/x";
      const int file = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
      const bool written = file >= 0 && write(file, "output", 6) == 6 && fdatasync(file) == 0 && fchmod(file, 0640) == 0 &&
                           ftruncate(file, 3) == 0 && rename(path.c_str(), (root + "/results/x").c_str()) == 0;
      const auto entries = std::filesystem::directory_iterator(root + "/results", error);
      return written && !error && entries != std::filesystem::directory_iterator() &&
             std::filesystem::remove_all(root + "/results", error) == 3 && !error;
    });
  }
  ExpectWorks("clocks and random numbers", [] {
    timespec time = {};
    uint64_t number = 0;
    return clock_gettime(CLOCK_MONOTONIC, &time) == 0 && absl::Now() > absl::UnixEpoch() &&
           getentropy(&number, sizeof(number)) == 0 && sysconf(_SC_NPROCESSORS_ONLN) > 0 &&
           std::thread::hardware_concurrency() > 0;
  });
  ExpectWorks("memory", [] {
    std::vector<char> big(size_t{64} << 20, 1);
    big.resize(size_t{128} << 20);
    return big[size_t{1} << 20] == 1;
  });
  ExpectWorks("exceptions", [] {
    try {
      throw std::runtime_error("x");
    } catch (const std::exception&) {
      return true;
    }
  });
  const int aborted = Run([]() -> int { std::abort(); });
  EXPECT_TRUE(WIFSIGNALED(aborted) && WTERMSIG(aborted) == SIGABRT);
}

TEST_F(SandboxTest, AnotherUserWorksBelowFoldersItMayNotEnter) {
  if (geteuid() != 0) {
    GTEST_SKIP() << "needs root";
  }
  ASSERT_EQ(chmod(outside_.path().c_str(), 0700), 0);
  ASSERT_EQ(chmod(secret_.c_str(), 0600), 0);
  ASSERT_TRUE(GiveFolder(own_, kNobody).ok());
  const int status = Run(
      [this] {
        const std::string root = absl::StrCat("/proc/self/fd/", folder_fd_);
        char byte = 0;
        const int file = open((root + "/new").c_str(), O_WRONLY | O_CREAT, 0600);
        const bool works = getuid() == kNobody.uid && geteuid() == kNobody.uid && getgid() == kNobody.gid && file >= 0 &&
                           write(file, "x", 1) == 1 && pread(input_, &byte, 1, 0) == 1 && byte == 's';
        struct stat info = {};
        const bool blind = stat(secret_.c_str(), &info) != 0 && open(secret_.c_str(), O_RDONLY) < 0;
        return works && blind ? 0 : 1;
      },
      kNobody);
  EXPECT_EQ(status, 0);
  struct stat info = {};
  ASSERT_EQ(stat((own_ + "/new").c_str(), &info), 0);
  EXPECT_EQ(info.st_uid, kNobody.uid);
}

// The processes are: this one, its child (a worker) and a grandchild (the engine), which holds the writing end of a pipe.
TEST_F(SandboxTest, DiesWithItsParent) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
  const pid_t worker = fork();
  if (worker == 0) {
    if (fork() == 0) {
      Sandbox sandbox;
      sandbox.Enter({.user = geteuid() == 0 ? std::optional(kNobody) : std::nullopt, .folders = {folder_fd_}});
      [[maybe_unused]] const ssize_t written = write(ends[1], "x", 1);
      while (true) {
        const timespec day = {86400, 0};
        nanosleep(&day, nullptr);
      }
    }
    while (true) {
      pause();
    }
  }
  close(ends[1]);
  char byte = 0;
  EXPECT_EQ(read(ends[0], &byte, 1), 1);
  kill(worker, SIGKILL);
  waitpid(worker, nullptr, 0);
  EXPECT_EQ(read(ends[0], &byte, 1), 0);  // the engine is gone too
  close(ends[0]);
}

TEST_F(SandboxTest, LandlockIsNotClaimedWithThreadsThatItDoesNotHold) {
  const int code = RunInChild([this] {
    std::thread([] {
      while (true) {
        const timespec day = {86400, 0};
        nanosleep(&day, nullptr);
      }
    }).detach();
    Sandbox sandbox;
    std::map<std::string, Mechanism> mechanisms = ByName(sandbox.Enter({.user = std::nullopt, .folders = {folder_fd_}}));
    return mechanisms[kLandlock].active ? 1 : 0;
  });
  EXPECT_EQ(code, 0);
}

TEST(MechanismsTest, WhatIsMissingIsSaid) {
  for (const Mechanism& mechanism : AvailableMechanisms(std::nullopt)) {
    EXPECT_TRUE(mechanism.active || !mechanism.detail.empty()) << mechanism.name;
  }
  std::map<std::string, Mechanism> mechanisms = ByName(AvailableMechanisms(std::nullopt));
  EXPECT_EQ(mechanisms.size(), 4);
  EXPECT_FALSE(mechanisms[kOwnUser].active);
  EXPECT_EQ(mechanisms[kOwnUser].needed, geteuid() == 0);
  EXPECT_TRUE(LacksMechanism({{.name = kOwnUser, .active = false, .needed = true}}));
  EXPECT_FALSE(LacksMechanism({{.name = kOwnUser, .active = false, .needed = false}}));
}

}  // namespace
}  // namespace modelpress::server
