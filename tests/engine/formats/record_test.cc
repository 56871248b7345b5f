#include "engine/formats/record.h"

#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

constexpr char kRecord[] = R"(record {
  key: "conv1"
  value {
    scale_d: 0.007874016
    offset_d: -3
    scale_w: 0.1
    scale_w: 1e-05
    offset_w: 0
    offset_w: 0
    act_type: "INT8"
  }
}
record {
  key: "fc"
  kv_cache_value {
    scale: 1.0
    offset: 2
  }
}
prune_record {
  producer {
    name: "conv1"
  }
}
)";

TEST(RecordTest, ParsesAndPrintsBackTheSameBytes) {
  auto parsed = ParseRecord(kRecord, "r.txt");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->record.record_size(), 2);
  EXPECT_EQ(parsed->record.record(0).value().scale_w(1), 1e-5f);
  EXPECT_FALSE(parsed->record.record(0).value().has_wts_type());
  EXPECT_EQ(PrintRecord(parsed->record), kRecord);
}

TEST(RecordTest, KnowsWhereEntriesBegin) {
  auto parsed = ParseRecord(kRecord, "r.txt");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->entry_positions.size(), 2);
  EXPECT_EQ(parsed->entry_positions[0].line, 1);
  EXPECT_EQ(parsed->entry_positions[1].line, 13);
  EXPECT_EQ(parsed->entry_positions[1].column, 1);
}

TEST(RecordTest, AnEmptyFileIsAnEmptyRecord) {
  for (const char* text : {"", "\n", "# only a comment"}) {
    auto parsed = ParseRecord(text, "r.txt");
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->record.record_size(), 0);
    EXPECT_EQ(PrintRecord(parsed->record), "");
  }
}

TEST(RecordTest, ErrorsNameTheFileLineAndColumn) {
  absl::Status status = ParseRecord("record {\n  key: 'a'\n  valeu { }\n}", "conf/r.txt").status();
  EXPECT_EQ(ReasonOf(status), v1::RECORD_SYNTAX);
  EXPECT_EQ(PlaceOf(status).file, "conf/r.txt");
  EXPECT_EQ(PlaceOf(status).line, 3);
  EXPECT_NE(status.message().find("valeu"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace modelpress::engine
