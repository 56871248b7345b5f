// A fixed number of threads that run what blocks (disk, database), so that gRPC's own few threads never do.
#ifndef MODELPRESS_SERVER_BASE_EXECUTOR_H_
#define MODELPRESS_SERVER_BASE_EXECUTOR_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace modelpress::server {

// Thread-safe.
class Executor {
 public:
  explicit Executor(int threads);
  // Runs what was given before, then ends the threads.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Runs `task` soon, in the order given, on one of the threads.
  void Run(std::function<void()> task);

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_EXECUTOR_H_
