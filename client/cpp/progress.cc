#include "client/cpp/progress.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace modelpress::client {
namespace {

constexpr int kMinBar = 10;
constexpr int kMaxBar = 40;
constexpr size_t kMaxItem = 28;

absl::string_view NameOf(CallProgress::Phase phase) {
  switch (phase) {
    case CallProgress::Phase::kUpload:
      return "upload";
    case CallProgress::Phase::kQueue:
      return "queued";
    case CallProgress::Phase::kRun:
      return "run";
    case CallProgress::Phase::kDownload:
      return "download";
  }
  return "";
}

bool IsTransfer(const CallProgress& progress) {
  return progress.phase == CallProgress::Phase::kUpload || progress.phase == CallProgress::Phase::kDownload;
}

// At most `count` bytes, never half a UTF-8 sequence.
absl::string_view Head(absl::string_view text, size_t count) {
  if (text.size() <= count) {
    return text;
  }
  while (count > 0 && (static_cast<unsigned char>(text[count]) & 0xC0) == 0x80) {
    --count;
  }
  return text.substr(0, count);
}

}  // namespace

std::string Printable(absl::string_view text) {
  std::string printable(text);
  std::replace_if(printable.begin(), printable.end(), [](unsigned char c) { return (c < 0x20 && c != '\n') || c == 0x7F; }, '?');
  return printable;
}

std::string FormatBytes(uint64_t bytes) {
  constexpr std::array<absl::string_view, 5> kUnits = {"kB", "MB", "GB", "TB", "PB"};
  if (bytes < 1000) {
    return absl::StrCat(bytes, " B");
  }
  double value = static_cast<double>(bytes) / 1000;
  size_t unit = 0;
  while (value >= 999.95 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string RenderBar(const CallProgress& progress, int width) {
  const size_t columns = static_cast<size_t>(std::max(width, 0));
  std::string line = absl::StrFormat("%-8s", NameOf(progress.phase));
  if (!progress.item.empty()) {
    absl::StrAppend(&line, " ", Head(Printable(progress.item), kMaxItem));
  }
  if (progress.total > 0) {
    double part = std::min(1.0, static_cast<double>(progress.done) / static_cast<double>(progress.total));
    std::string numbers = absl::StrFormat(" %3d%%", static_cast<int>(part * 100));
    if (IsTransfer(progress)) {
      absl::StrAppend(&numbers, "  ", FormatBytes(progress.done), " / ", FormatBytes(progress.total));
    }
    int room = static_cast<int>(columns) - static_cast<int>(line.size() + numbers.size()) - 3;
    if (room >= kMinBar) {
      int cells = std::min(room, kMaxBar);
      int full = static_cast<int>(part * cells);
      absl::StrAppend(&line, " [", std::string(full, '#'), std::string(cells - full, ' '), "]");
    }
    absl::StrAppend(&line, numbers);
  }
  return std::string(Head(line, columns));
}

std::string RenderStep(const CallProgress& progress) {
  std::string line(NameOf(progress.phase));
  if (!progress.item.empty()) {
    absl::StrAppend(&line, " ", Printable(progress.item));
  }
  if (IsTransfer(progress)) {
    absl::StrAppend(&line, " (", FormatBytes(progress.total), ")");
  }
  return line;
}

void ProgressPrinter::Print(const CallProgress& progress) {
  const bool new_step = !last_.has_value() || last_->phase != progress.phase || last_->item != progress.item;
  last_ = progress;
  if (!terminal_) {
    if (new_step) {
      out_ << RenderStep(progress) << std::endl;
    }
    return;
  }
  absl::Time now = clock_();
  if (!new_step && now < next_) {
    return;
  }
  next_ = now + absl::Milliseconds(100);
  // The last column stays free, since some terminals wrap when it is written.
  out_ << "\r\x1b[K" << RenderBar(progress, width_ - 1) << std::flush;
  bar_shown_ = true;
}

void ProgressPrinter::Clear() {
  if (bar_shown_) {
    out_ << "\r\x1b[K" << std::flush;
    bar_shown_ = false;
  }
}

}  // namespace modelpress::client
