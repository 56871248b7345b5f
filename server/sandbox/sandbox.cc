#include "server/sandbox/sandbox.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/posix.h"
#include "server/base/sanitizers.h"

namespace modelpress::server {
namespace {

// Why neither Landlock nor seccomp are set up (server/base/sanitizers.h).
constexpr char kSanitized[] = "this is a build with sanitizers";

std::string Failed(const char* what) { return absl::StrCat(what, ": ", std::strerror(errno)); }

// privileges

bool HoldsCapabilities() {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {};
  return syscall(SYS_capget, &header, sets) != 0 || std::ranges::any_of(sets, [](const __user_cap_data_struct& set) {
           return (set.effective | set.permitted | set.inheritable) != 0;
         });
}

// While it still has capabilities: they cannot come back by execve.
void DropBoundingSet() {
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability) {
    prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);  // not permitted to an ordinary process, for which no_new_privs does the same
  }
}

Mechanism DropPrivileges() {
  Mechanism result{.name = kPrivileges};
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  syscall(SYS_capset, &header, none);
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    result.detail = Failed("PR_SET_NO_NEW_PRIVS");
  } else if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) {
    result.detail = Failed("PR_SET_DUMPABLE");
  } else if (HoldsCapabilities()) {
    result.detail = "capabilities could not be dropped";
  } else {
    result.active = true;
  }
  return result;
}

// own_user

Mechanism WithoutUser() {
  Mechanism result{.name = kOwnUser};
  if (geteuid() == 0) {
    result.detail =
        "the engine runs as root: start the server as another user, or let it become one (CAP_CHOWN, CAP_DAC_OVERRIDE, "
        "CAP_FOWNER, "
        "CAP_KILL, CAP_SETGID, CAP_SETUID) and do not give --child_user=root";
  } else {
    result.needed = false;
    result.detail = absl::StrCat("the server is not root, so the engine runs as the server's user ", geteuid());
  }
  return result;
}

Mechanism BecomeUser(const std::optional<SandboxUser>& user) {
  if (!user.has_value()) {
    return WithoutUser();
  }
  Mechanism result{.name = kOwnUser};
  if (setgroups(0, nullptr) != 0) {
    result.detail = Failed("setgroups");
  } else if (setresgid(user->gid, user->gid, user->gid) != 0) {
    result.detail = Failed("setresgid");
  } else if (setresuid(user->uid, user->uid, user->uid) != 0) {
    result.detail = Failed("setresuid");
  } else {
    result.active = true;
    result.detail = absl::StrCat("user ", user->uid, ", group ", user->gid);
  }
  return result;
}

// landlock

// Without LANDLOCK_ACCESS_FS_REFER (version 2) files could not be renamed from one folder to another.
constexpr int kMinLandlockVersion = 2;

// Mechanism::detail says why if it is less than that.
int LandlockVersion(std::string& detail) {
  const auto version =
      static_cast<int>(syscall(SYS_landlock_create_ruleset, nullptr, size_t{0}, LANDLOCK_CREATE_RULESET_VERSION));
  if (version < 0) {
    detail = absl::StrCat("the kernel has no Landlock, or it is switched off or forbidden here (", std::strerror(errno), ")");
  } else if (version < kMinLandlockVersion) {
    detail = absl::StrCat("Landlock of this kernel has version ", version, "; ", kMinLandlockVersion,
                          " is needed (Linux 5.19 or newer)");
  } else {
    detail = absl::StrCat("version ", version);
  }
  return version;
}

bool HasOneThread() {
  struct stat tasks = {};
  constexpr nlink_t kOwnLinks = 2;  // ".." and "."
  return stat("/proc/self/task", &tasks) == 0 && tasks.st_nlink == kOwnLinks + 1;
}

Mechanism EnterLandlock(const std::vector<int>& folders) {
  Mechanism result{.name = kLandlock};
  if (kUnderSanitizer) {
    result.detail = kSanitized;
    return result;
  }
  const int version = LandlockVersion(result.detail);
  if (version < kMinLandlockVersion) {
    return result;
  }
  if (!HasOneThread()) {
    result.detail = "the process has more than one thread already";
    return result;
  }
  constexpr uint64_t kInFolders = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_READ_DIR |
                                  LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_DIR |
                                  LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_REFER;
  landlock_ruleset_attr attributes = {};
  attributes.handled_access_fs = kInFolders | LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
                                 LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
                                 LANDLOCK_ACCESS_FS_MAKE_SYM;
  landlock_path_beneath_attr rule = {};
  rule.allowed_access = kInFolders;
  if (version >= 3) {
    attributes.handled_access_fs |= LANDLOCK_ACCESS_FS_TRUNCATE;
    rule.allowed_access |= LANDLOCK_ACCESS_FS_TRUNCATE;
  }
  if (version >= 4) {
    attributes.handled_access_net = LANDLOCK_ACCESS_NET_BIND_TCP | LANDLOCK_ACCESS_NET_CONNECT_TCP;
  }
  if (version >= 5) {
    attributes.handled_access_fs |= LANDLOCK_ACCESS_FS_IOCTL_DEV;
  }
  if (version >= 6) {
    attributes.scoped = LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL;
  }
  const UniqueFd ruleset(static_cast<int>(syscall(SYS_landlock_create_ruleset, &attributes, sizeof(attributes), 0)));
  if (ruleset.get() < 0) {
    result.detail = Failed("landlock_create_ruleset");
    return result;
  }
  for (const int folder : folders) {
    rule.parent_fd = folder;
    if (syscall(SYS_landlock_add_rule, ruleset.get(), LANDLOCK_RULE_PATH_BENEATH, &rule, 0) != 0) {
      result.detail = Failed("landlock_add_rule");
      return result;
    }
  }
  if (syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) {
    result.detail = Failed("landlock_restrict_self");
    return result;
  }
  result.active = true;
  return result;
}

// seccomp

// clang-format off
// What the engine, ONNX Runtime and the C library make, whatever the arguments.
constexpr int kAllowed[] = {
    // memory and threads
    SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(futex), SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq), SCMP_SYS(set_tid_address), SCMP_SYS(gettid), SCMP_SYS(getpid), SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity), SCMP_SYS(getcpu), SCMP_SYS(membarrier), SCMP_SYS(exit), SCMP_SYS(exit_group),
    SCMP_SYS(restart_syscall),
    // signals to itself
    SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(sigaltstack),
    // clocks, and facts about the machine and itself
    SCMP_SYS(clock_gettime), SCMP_SYS(clock_getres), SCMP_SYS(gettimeofday), SCMP_SYS(time), SCMP_SYS(nanosleep),
    SCMP_SYS(clock_nanosleep), SCMP_SYS(getrandom), SCMP_SYS(sysinfo), SCMP_SYS(uname), SCMP_SYS(getrusage), SCMP_SYS(times),
    SCMP_SYS(getrlimit), SCMP_SYS(getuid), SCMP_SYS(geteuid), SCMP_SYS(getgid), SCMP_SYS(getegid), SCMP_SYS(getppid),
    // files
    SCMP_SYS(open), SCMP_SYS(openat), SCMP_SYS(close), SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(pread64), SCMP_SYS(pwrite64),
    SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(preadv), SCMP_SYS(pwritev), SCMP_SYS(lseek), SCMP_SYS(fstat), SCMP_SYS(stat),
    SCMP_SYS(lstat), SCMP_SYS(newfstatat), SCMP_SYS(statx), SCMP_SYS(statfs), SCMP_SYS(fstatfs), SCMP_SYS(access), SCMP_SYS(faccessat),
    SCMP_SYS(faccessat2), SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(getcwd), SCMP_SYS(getdents64),
    SCMP_SYS(fallocate), SCMP_SYS(ftruncate), SCMP_SYS(fsync), SCMP_SYS(fdatasync), SCMP_SYS(sync_file_range),
    SCMP_SYS(fadvise64), SCMP_SYS(copy_file_range), SCMP_SYS(rename), SCMP_SYS(renameat), SCMP_SYS(renameat2),
    SCMP_SYS(unlink), SCMP_SYS(unlinkat), SCMP_SYS(rmdir), SCMP_SYS(mkdir), SCMP_SYS(mkdirat), SCMP_SYS(dup),
    SCMP_SYS(poll), SCMP_SYS(ppoll),
};

// What nothing in the engine makes, not even by mistake: whoever does is killed, so that it is seen.
constexpr int kKilled[] = {
    // processes and programs
    SCMP_SYS(execve), SCMP_SYS(execveat), SCMP_SYS(fork), SCMP_SYS(vfork), SCMP_SYS(ptrace), SCMP_SYS(process_vm_readv),
    SCMP_SYS(process_vm_writev), SCMP_SYS(kcmp), SCMP_SYS(kill), SCMP_SYS(tkill), SCMP_SYS(rt_sigqueueinfo),
    SCMP_SYS(rt_tgsigqueueinfo), SCMP_SYS(pidfd_open), SCMP_SYS(pidfd_getfd), SCMP_SYS(pidfd_send_signal), SCMP_SYS(setns),
    SCMP_SYS(unshare), SCMP_SYS(process_madvise),
    // network, and talking to other processes
    SCMP_SYS(socket), SCMP_SYS(socketpair), SCMP_SYS(connect), SCMP_SYS(bind), SCMP_SYS(listen), SCMP_SYS(accept),
    SCMP_SYS(accept4), SCMP_SYS(sendto), SCMP_SYS(sendmsg), SCMP_SYS(sendmmsg), SCMP_SYS(recvfrom), SCMP_SYS(recvmsg),
    SCMP_SYS(recvmmsg), SCMP_SYS(shmget), SCMP_SYS(shmat), SCMP_SYS(semget), SCMP_SYS(msgget), SCMP_SYS(mq_open),
    // users and rights
    SCMP_SYS(setuid), SCMP_SYS(setgid), SCMP_SYS(setreuid), SCMP_SYS(setregid), SCMP_SYS(setresuid), SCMP_SYS(setresgid),
    SCMP_SYS(setgroups), SCMP_SYS(setfsuid), SCMP_SYS(setfsgid), SCMP_SYS(capset), SCMP_SYS(add_key), SCMP_SYS(request_key),
    SCMP_SYS(keyctl),
    // file systems and devices
    SCMP_SYS(mount), SCMP_SYS(umount2), SCMP_SYS(pivot_root), SCMP_SYS(chroot), SCMP_SYS(move_mount), SCMP_SYS(open_tree),
    SCMP_SYS(fsopen), SCMP_SYS(fsconfig), SCMP_SYS(fsmount), SCMP_SYS(fspick), SCMP_SYS(mount_setattr),
    SCMP_SYS(open_by_handle_at), SCMP_SYS(mknod), SCMP_SYS(mknodat), SCMP_SYS(swapon), SCMP_SYS(swapoff), SCMP_SYS(quotactl),
    SCMP_SYS(acct), SCMP_SYS(iopl), SCMP_SYS(ioperm),
    // the kernel
    SCMP_SYS(bpf), SCMP_SYS(perf_event_open), SCMP_SYS(io_uring_setup), SCMP_SYS(io_uring_enter), SCMP_SYS(io_uring_register),
    SCMP_SYS(userfaultfd), SCMP_SYS(init_module), SCMP_SYS(finit_module), SCMP_SYS(delete_module), SCMP_SYS(kexec_load),
    SCMP_SYS(kexec_file_load), SCMP_SYS(reboot), SCMP_SYS(settimeofday), SCMP_SYS(clock_settime), SCMP_SYS(adjtimex),
    SCMP_SYS(clock_adjtime), SCMP_SYS(sethostname), SCMP_SYS(setdomainname), SCMP_SYS(syslog), SCMP_SYS(personality),
};
// clang-format on

// The mode that the engine gives its outputs. Others are refused: input files may belong to the same user.
constexpr mode_t kOutputMode = 0640;

}  // namespace

struct Sandbox::Filter {
  Filter() : context(seccomp_init(SCMP_ACT_ERRNO(ENOSYS))) {
    if (context == nullptr) {
      error = ENOMEM;
      return;
    }
    Check(seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS));
    Check(seccomp_attr_set(context, SCMP_FLTATR_CTL_TSYNC, 1));
    Check(seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2));  // a tree, as most of the calls are allowed ones
    for (const int call : kAllowed) {
      Check(seccomp_rule_add(context, SCMP_ACT_ALLOW, call, 0));
    }
    for (const int call : kKilled) {
      Check(seccomp_rule_add(context, SCMP_ACT_KILL_PROCESS, call, 0));
    }
    AddConditions();
  }
  ~Filter() { seccomp_release(context); }
  Filter(const Filter&) = delete;
  Filter& operator=(const Filter&) = delete;

  void Check(int result) {
    if (result != 0 && error == 0) {
      error = -result;
    }
  }

  void Allow(int call, const scmp_arg_cmp& condition) { Check(seccomp_rule_add(context, SCMP_ACT_ALLOW, call, 1, condition)); }

  void AddConditions() {
    // Threads, but no processes. clone3, whose flags a filter cannot see, fails with ENOSYS; the C library takes clone then.
    Allow(SCMP_SYS(clone),
          SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD | CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID, CLONE_THREAD));
    Check(seccomp_rule_add(context, SCMP_ACT_KILL_PROCESS, SCMP_SYS(clone), 1, SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0)));
    Allow(SCMP_SYS(tgkill), SCMP_A0(SCMP_CMP_EQ, static_cast<scmp_datum_t>(getpid())));  // abort
    // No memory becomes a program.
    Allow(SCMP_SYS(mmap), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    Allow(SCMP_SYS(mprotect), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    Allow(SCMP_SYS(fchmod), SCMP_A1(SCMP_CMP_EQ, kOutputMode));
    Allow(SCMP_SYS(prctl), SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
    Allow(SCMP_SYS(prctl), SCMP_A0(SCMP_CMP_EQ, PR_GET_NAME));
    Allow(SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_EQ, TCGETS));  // isatty
    for (const int command : {F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC}) {
      Allow(SCMP_SYS(fcntl), SCMP_A1(SCMP_CMP_EQ, static_cast<scmp_datum_t>(command)));
    }
    // To look at limits of its own, not to set them nor those of others.
    Check(seccomp_rule_add(context, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2, SCMP_A0(SCMP_CMP_EQ, 0), SCMP_A2(SCMP_CMP_EQ, 0)));
  }

  scmp_filter_ctx context;
  int error = 0;  // errno of the first failure
};

namespace {

bool KernelHasSeccomp() {
  uint32_t action = SECCOMP_RET_KILL_PROCESS;
  return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}

Mechanism AvailableSeccomp() {
  Mechanism result{.name = kSeccomp};
  if (kUnderSanitizer) {
    result.detail = kSanitized;
  } else if (!KernelHasSeccomp()) {
    result.detail = absl::StrCat("the kernel cannot filter system calls (", std::strerror(errno), ")");
  } else {
    result.active = true;
  }
  return result;
}

Mechanism AvailableLandlock() {
  Mechanism result{.name = kLandlock};
  if (kUnderSanitizer) {
    result.detail = kSanitized;
  } else {
    result.active = LandlockVersion(result.detail) >= kMinLandlockVersion;
  }
  return result;
}

}  // namespace

bool LacksMechanism(const std::vector<Mechanism>& mechanisms) {
  return std::ranges::any_of(mechanisms, [](const Mechanism& mechanism) { return mechanism.needed && !mechanism.active; });
}

std::vector<Mechanism> AvailableMechanisms(const std::optional<SandboxUser>& user) {
  const Mechanism own_user = user.has_value() ? Mechanism{.name = kOwnUser, .active = true} : WithoutUser();
  return {Mechanism{.name = kPrivileges, .active = true}, own_user, AvailableLandlock(), AvailableSeccomp()};
}

Sandbox::Sandbox() : filter_(kUnderSanitizer ? nullptr : std::make_unique<Filter>()) {}

Sandbox::~Sandbox() = default;

std::vector<Mechanism> Sandbox::Enter(const SandboxOptions& options) {
  DropBoundingSet();
  Mechanism user = BecomeUser(options.user);
  Mechanism privileges = DropPrivileges();
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // a change of the user has cleared it
  Mechanism landlock = EnterLandlock(options.folders);
  Mechanism seccomp = AvailableSeccomp();
  if (seccomp.active) {
    const int error = filter_->error != 0 ? filter_->error : -seccomp_load(filter_->context);
    seccomp.active = error == 0;
    seccomp.detail = error == 0 ? "" : absl::StrCat("the filter cannot be installed: ", std::strerror(error));
  }
  return {std::move(privileges), std::move(user), std::move(landlock), std::move(seccomp)};
}

}  // namespace modelpress::server
