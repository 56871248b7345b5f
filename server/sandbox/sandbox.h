// What holds a process that parses what strangers send, as if it had been taken over by them.
//
// Four mechanisms, none of which needs rights that an ordinary process does not have (own_user aside):
//   privileges  no new ones by execve (PR_SET_NO_NEW_PRIVS), no capabilities in any set, other processes of its user may neither
//               trace it nor read its memory (PR_SET_DUMPABLE 0)
//   own_user    where the server is root: an id of its own without groups
//   landlock    Landlock (kernel 5.19 or newer): the folders given can be read and written, nothing else can be opened; neither
//               symbolic links, devices, pipes nor sockets can be made; TCP ports, abstract sockets and signals outside are
//               closed where the kernel's version has that
//   seccomp     a list of the system calls that the engine makes; others fail with ENOSYS, and those that only an attacker would
//               make (a new process or program, a socket, a mount, tracing, signals to others, ...) kill the process with SIGSYS
// Files that it reads are opened before, so that what it may read needs no rule and no rights of its user.
//
// Namespaces are not used: an unprivileged container, where most servers run, may not make any. What they would add is that names
// outside cannot be looked at: stat(2) is not covered by Landlock.
#ifndef MODELPRESS_SERVER_SANDBOX_SANDBOX_H_
#define MODELPRESS_SERVER_SANDBOX_SANDBOX_H_

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace modelpress::server {

inline constexpr char kPrivileges[] = "privileges";
inline constexpr char kOwnUser[] = "own_user";
inline constexpr char kLandlock[] = "landlock";
inline constexpr char kSeccomp[] = "seccomp";

struct SandboxUser {
  uid_t uid = 0;
  gid_t gid = 0;
};

struct SandboxOptions {
  std::optional<SandboxUser> user;  // to become; needs CAP_SETUID and CAP_SETGID
  std::vector<int> folders;         // descriptors (O_PATH is enough) of the folders that it may read and write
};

// One mechanism, and whether it holds.
struct Mechanism {
  std::string name;
  bool active = false;
  bool needed = true;  // false: not to be had where the server is no root, and no defect of the machine
  std::string detail;  // how, or why not, for the operator
};

// True if one that is needed does not hold.
bool LacksMechanism(const std::vector<Mechanism>& mechanisms);

// What Enter would set up in a process like this one, without doing it. `user`: as in SandboxOptions.
std::vector<Mechanism> AvailableMechanisms(const std::optional<SandboxUser>& user);

class Sandbox {
 public:
  // Prepares what does not depend on the work to come, for this process.
  Sandbox();
  ~Sandbox();
  Sandbox(const Sandbox&) = delete;
  Sandbox& operator=(const Sandbox&) = delete;

  // Sets up every mechanism that is to be had, for good, one after the other; returns all four. Call it with one thread only:
  // Landlock does not hold threads that exist already, and is not set up then. The signal that a parent's death sends
  // (PR_SET_PDEATHSIG) is SIGKILL afterwards.
  std::vector<Mechanism> Enter(const SandboxOptions& options);

 private:
  struct Filter;
  std::unique_ptr<Filter> filter_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_SANDBOX_SANDBOX_H_
