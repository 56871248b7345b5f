// modelpress: the command-line client. See docs/cli.md.
#include <pthread.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <csignal>
#include <iostream>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "client/cpp/cli.h"
#include "client/cpp/exit_code.h"

int main(int argc, char** argv) {
  using modelpress::client::RunCli;
  // Signals are taken by one thread of ours, blocked in all others (threads inherit the mask). The first one asks for an
  // orderly end, which cancels the operation and cleans up; the second one ends the process at once. SIGUSR1 ends the thread.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe behind stdout is no reason to leave a workspace behind
  std::stop_source stop;
  std::thread watcher([&signals, stop]() mutable {
    int signal = 0;
    while (sigwait(&signals, &signal) == 0 && signal != SIGUSR1) {
      if (!stop.request_stop()) {
        _exit(modelpress::client::kExitInterrupted);
      }
    }
  });

  winsize size{};
  modelpress::client::CliStreams streams{.out = std::cout, .err = std::cerr, .err_is_terminal = isatty(STDERR_FILENO) == 1};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    streams.width = size.ws_col;
  }
  int code = RunCli(std::vector<std::string>(argv + 1, argv + argc), streams, stop.get_token());
  std::cout.flush();
  if (code == modelpress::client::kExitOk && !std::cout) {
    std::cerr << "modelpress: cannot write to stdout [LOCAL_IO]" << std::endl;
    code = modelpress::client::kExitLocalIo;
  }
  pthread_kill(watcher.native_handle(), SIGUSR1);
  watcher.join();
  return code;
}
