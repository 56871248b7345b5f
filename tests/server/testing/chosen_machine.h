#ifndef MODELPRESS_TESTS_SERVER_TESTING_CHOSEN_MACHINE_H_
#define MODELPRESS_TESTS_SERVER_TESTING_CHOSEN_MACHINE_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>

#include "server/worker/admission.h"

namespace modelpress::server {

// A machine of the test's choice.
class ChosenMachine final : public Machine {
 public:
  uint64_t FreeMemory() const override { return memory; }
  uint64_t ResidentMemory(pid_t process) const override { return process == 1 ? resident : 0; }
  uint64_t FreeDisk() const override { return disk; }
  uint64_t OutOfMemoryKills() const override { return oom_kills_.fetch_add(kills_between_looks); }

  uint64_t memory = uint64_t{1000} << 20;
  uint64_t disk = uint64_t{10'000} << 20;
  uint64_t resident = 0;             // of process 1
  uint64_t kills_between_looks = 0;  // for want of memory

 private:
  mutable std::atomic<uint64_t> oom_kills_ = 7;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_TESTING_CHOSEN_MACHINE_H_
