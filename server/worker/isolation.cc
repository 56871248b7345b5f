#include "server/worker/isolation.h"

#include <linux/capability.h>
#include <poll.h>
#include <pwd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>

#include "absl/log/log.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/status.h"
#include "server/base/clock.h"
#include "server/sandbox/untrusted_folder.h"
#include "server/worker/child_process.h"

namespace modelpress::server {
namespace {

constexpr uid_t kNobody = 65534;
constexpr absl::Duration kSelfTestTimeout = absl::Seconds(30);

// What it takes to make a child another user, to give it a folder, to take over what it leaves there and to kill it.
constexpr std::array kNeededCapabilities = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_KILL, CAP_SETGID, CAP_SETUID};

bool MayChangeUser() {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {};
  return geteuid() == 0 && syscall(SYS_capget, &header, sets) == 0 && std::ranges::all_of(kNeededCapabilities, [&](int number) {
           return (sets[CAP_TO_INDEX(number)].effective & CAP_TO_MASK(number)) != 0;
         });
}

absl::StatusOr<SandboxUser> FindUser(const std::string& name) {
  SandboxUser user;
  if (name.empty()) {
    return SandboxUser{kNobody, kNobody};
  }
  const bool is_id = absl::SimpleAtoi(name, &user.uid);
  std::string buffer(1 << 14, '\0');
  passwd entry = {};
  passwd* found = nullptr;
  const int error = is_id ? getpwuid_r(user.uid, &entry, buffer.data(), buffer.size(), &found)
                          : getpwnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
  if (found != nullptr) {
    return SandboxUser{found->pw_uid, found->pw_gid};
  }
  if (is_id && error == 0) {
    return SandboxUser{user.uid, user.uid};
  }
  return MakeError(v1::REQUEST_INVALID,
                   absl::StrCat("--child_user=", name, ": there is no such user; give the name or id of one"));
}

}  // namespace

absl::StatusOr<IsolationMode> ParseIsolationMode(absl::string_view text) {
  if (text == "require") {
    return IsolationMode::kRequire;
  }
  if (text == "best_effort") {
    return IsolationMode::kBestEffort;
  }
  if (text == "off") {
    return IsolationMode::kOff;
  }
  return MakeError(v1::REQUEST_INVALID, "--isolation is require, best_effort or off");
}

absl::StatusOr<std::optional<SandboxUser>> ResolveChildUser(const std::string& name) {
  if (!name.empty() && geteuid() != 0) {
    return MakeError(v1::REQUEST_INVALID, absl::StrCat("--child_user=", name, " needs a server that is root"));
  }
  MP_ASSIGN_OR_RETURN(const SandboxUser user, FindUser(name));
  return user.uid != 0 && MayChangeUser() ? std::optional(user) : std::nullopt;
}

IsolationSpec SpecOf(const IsolationOptions& options) {
  IsolationSpec spec;
  spec.set_enter(options.mode != IsolationMode::kOff);
  spec.set_require(options.mode == IsolationMode::kRequire);
  if (spec.enter() && options.user.has_value()) {
    spec.set_own_user(true);
    spec.set_uid(options.user->uid);
    spec.set_gid(options.user->gid);
  }
  return spec;
}

absl::Status GrantFolder(const std::string& folder, const IsolationOptions& options) {
  return SpecOf(options).own_user() ? GiveFolder(folder, *options.user) : absl::OkStatus();
}

void ReportIsolation(const std::vector<Mechanism>& mechanisms, Metrics& metrics) {
  for (const Mechanism& mechanism : mechanisms) {
    if (!metrics.SetIsolation(mechanism.name, mechanism.active) || mechanism.active) {
      continue;
    }
    const absl::LogSeverity severity = mechanism.needed ? absl::LogSeverity::kWarning : absl::LogSeverity::kInfo;
    LOG(LEVEL(severity)) << "isolation of engine processes: no " << mechanism.name << ": " << mechanism.detail;
  }
}

void ReportIsolation(const Isolation& isolation, Metrics& metrics) {
  std::vector<Mechanism> mechanisms;
  for (const Mechanism& known : AvailableMechanisms(std::nullopt)) {
    for (const Isolation::Mechanism& said : isolation.mechanisms()) {
      if (said.name() == known.name) {  // nothing else becomes a label
        mechanisms.push_back({said.name(), said.active(), said.needed(), said.detail()});
      }
    }
  }
  ReportIsolation(mechanisms, metrics);
}

absl::Status CheckIsolation(const std::string& executable, const IsolationOptions& options, Metrics& metrics) {
  if (options.mode == IsolationMode::kOff) {
    LOG(WARNING) << "engine processes are not isolated (--isolation=off): whoever sends a model may take over this server";
    std::vector<Mechanism> none = AvailableMechanisms(options.user);
    for (const Mechanism& mechanism : none) {
      metrics.SetIsolation(mechanism.name, false);
    }
    return absl::OkStatus();
  }
  ReportIsolation(AvailableMechanisms(options.user), metrics);
  if (options.mode == IsolationMode::kBestEffort) {
    return absl::OkStatus();
  }
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<ChildProcess> child, ChildProcess::Start(executable, ChildLimits{}));
  RunSpec spec;  // of no operation: it fails, but behind the report
  *spec.mutable_isolation() = SpecOf(options);
  child->Send(spec);
  child->Flush();
  std::optional<Isolation> isolation;
  const absl::Duration deadline = SteadyNow() + kSelfTestTimeout;
  while (!isolation.has_value() && child->output_fd() >= 0 && SteadyNow() < deadline) {
    pollfd output = {child->output_fd(), POLLIN, 0};
    const absl::Duration rest = std::max(deadline - SteadyNow(), absl::ZeroDuration());
    if (poll(&output, 1, static_cast<int>(absl::ToInt64Milliseconds(rest))) > 0) {
      MP_RETURN_IF_ERROR(child->ReadEvents([&isolation](const RunEvent& event) {
        if (event.has_isolation()) {
          isolation = event.isolation();
        }
      }));
    }
  }
  if (!isolation.has_value()) {
    return MakeError(v1::INTERNAL_ERROR, "--isolation=require: the engine's process does not say how it is isolated");
  }
  ReportIsolation(*isolation, metrics);
  std::string missing;
  for (const Isolation::Mechanism& mechanism : isolation->mechanisms()) {
    if (mechanism.needed() && !mechanism.active()) {
      absl::StrAppend(&missing, missing.empty() ? "" : "; ", mechanism.name(), ": ", mechanism.detail());
    }
  }
  return missing.empty()
             ? absl::OkStatus()
             : MakeError(v1::INTERNAL_ERROR, absl::StrCat("--isolation=require, but engine processes lack ", missing));
}

}  // namespace modelpress::server
