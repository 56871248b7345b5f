#include "client/cpp/progress.h"

#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace modelpress::client {
namespace {

using Phase = CallProgress::Phase;
using testing::HasSubstr;
using testing::Not;

TEST(FormatBytesTest, ChoosesTheUnit) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1000), "1.0 kB");
  EXPECT_EQ(FormatBytes(999'949), "999.9 kB");
  EXPECT_EQ(FormatBytes(999'950), "1.0 MB");
  EXPECT_EQ(FormatBytes(12'345'678'901), "12.3 GB");
  EXPECT_EQ(FormatBytes(UINT64_MAX), "18446.7 PB");
}

TEST(RenderBarTest, ShowsPartAndBytes) {
  EXPECT_EQ(RenderBar({Phase::kUpload, "m.onnx", 5'000'000, 10'000'000}, 60),
            "upload   m.onnx [#########          ]  50%  5.0 MB / 10.0 MB");
  EXPECT_EQ(RenderBar({Phase::kRun, "quantize", 3, 4}, 39), "run      quantize [##########    ]  75%");
  EXPECT_EQ(RenderBar({Phase::kQueue, "", 0, 0}, 60), "queued  ");
}

TEST(RenderBarTest, FitsEveryWidth) {
  const CallProgress progress{Phase::kDownload, std::string(300, 'x'), 123'456, 99'999'999};
  for (int width = 0; width < 200; ++width) {
    EXPECT_LE(RenderBar(progress, width).size(), width);
  }
  EXPECT_THAT(RenderBar({Phase::kRun, "s", 9, 3}, 80), HasSubstr("100%"));  // more than all
  std::string cut = RenderBar({Phase::kUpload, std::string(27, 'x') + "\u00e8\u00e8", 0, 0}, 80);
  EXPECT_EQ(cut, "upload   " + std::string(27, 'x'));  // no half letter
}

TEST(RenderTest, NoNameSteersTheTerminal) {
  EXPECT_THAT(RenderBar({Phase::kRun, "a\x1b[2Jb\rc", 0, 0}, 80), HasSubstr("a?[2Jb?c"));
  EXPECT_EQ(Printable("two\nlines\x7f"), "two\nlines?");
}

TEST(ProgressPrinterTest, PrintsOneLineAStepWhereThereIsNoTerminal) {
  std::ostringstream out;
  ProgressPrinter printer(out, false, 80, [] { return absl::UnixEpoch(); });
  printer.Print({Phase::kUpload, "m.onnx", 1, 2000});
  printer.Print({Phase::kUpload, "m.onnx", 2000, 2000});
  printer.Print({Phase::kQueue, "", 0, 0});
  printer.Print({Phase::kRun, "read", 0, 5});
  printer.Print({Phase::kRun, "read", 5, 5});
  printer.Print({Phase::kDownload, "d.onnx", 0, 30});
  printer.Clear();
  EXPECT_EQ(out.str(), "upload m.onnx (2.0 kB)\nqueued\nrun read\ndownload d.onnx (30 B)\n");
}

TEST(ProgressPrinterTest, RedrawsTheBarTenTimesASecondAtMost) {
  std::ostringstream out;
  absl::Time now = absl::UnixEpoch();
  ProgressPrinter printer(out, true, 80, [&now] { return now; });
  printer.Print({Phase::kUpload, "m.onnx", 10, 100});
  printer.Print({Phase::kUpload, "m.onnx", 20, 100});
  EXPECT_THAT(out.str(), Not(HasSubstr("20%")));
  now += absl::Milliseconds(100);
  printer.Print({Phase::kUpload, "m.onnx", 30, 100});
  EXPECT_THAT(out.str(), HasSubstr("30%"));
  printer.Print({Phase::kRun, "read", 1, 2});  // a new step at once
  EXPECT_THAT(out.str(), HasSubstr("read"));
  printer.Clear();
  EXPECT_TRUE(out.str().ends_with("\r\x1b[K"));
}

}  // namespace
}  // namespace modelpress::client
