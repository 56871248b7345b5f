// Progress of a call for people: a bar on a terminal, a line per step elsewhere.
#ifndef MODELPRESS_CLIENT_CPP_PROGRESS_H_
#define MODELPRESS_CLIENT_CPP_PROGRESS_H_

#include <functional>
#include <optional>
#include <ostream>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/cpp/local_calls.h"

namespace modelpress::client {

// `text` with control characters as "?", so that no name or message can steer the terminal.
std::string Printable(absl::string_view text);

// "12.3 MB"; powers of 1000.
std::string FormatBytes(uint64_t bytes);

// One line of at most `width` columns, e.g. "upload   m.onnx   [#########           ]  45%  12.3 MB / 27.4 MB". Only ASCII
// names are cut to the column; in others every byte counts as one.
std::string RenderBar(const CallProgress& progress, int width);
// What a log gets when a step begins: "upload m.onnx (27.4 MB)".
std::string RenderStep(const CallProgress& progress);

class ProgressPrinter {
 public:
  // `clock` limits the bar to ten updates a second.
  ProgressPrinter(std::ostream& out, bool terminal, int width, std::function<absl::Time()> clock)
      : out_(out), terminal_(terminal), width_(width), clock_(std::move(clock)) {}
  ~ProgressPrinter() { Clear(); }
  ProgressPrinter(const ProgressPrinter&) = delete;
  ProgressPrinter& operator=(const ProgressPrinter&) = delete;

  void Print(const CallProgress& progress);
  // Takes the bar away, before other text is written.
  void Clear();

 private:
  std::ostream& out_;
  const bool terminal_;
  const int width_;
  std::function<absl::Time()> clock_;
  std::optional<CallProgress> last_ = {};
  absl::Time next_ = absl::InfinitePast();
  bool bar_shown_ = false;
};

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_PROGRESS_H_
