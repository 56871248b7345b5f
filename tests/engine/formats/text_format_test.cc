#include "engine/formats/text_format.h"

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

#include "amct/record.pb.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace modelpress::engine {
namespace {

using ::AMCTPytorchProto::ScaleOffsetRecord;
using ::AMCTPytorchProto::SingleLayerRecord;

std::string ReadGolden(const std::string& name) {
  const char* source_dir = std::getenv("MODELPRESS_SOURCE_DIR");
  std::ifstream file(std::string(source_dir == nullptr ? "." : source_dir) + "/tests/golden/config/_text_format/" + name);
  EXPECT_TRUE(file.good()) << name;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The layer that `text` holds, or an empty one where it is refused.
SingleLayerRecord ParseLayer(const std::string& text) {
  SingleLayerRecord layer;
  absl::Status status = ParseTextFormat(text, v1::RECORD_SYNTAX, "r.txt", layer).status();
  EXPECT_TRUE(status.ok()) << text << " -> " << status;
  return status.ok() ? layer : SingleLayerRecord();
}

absl::Status ErrorOf(const std::string& text) {
  ScaleOffsetRecord record;
  return ParseTextFormat(text, v1::RECORD_SYNTAX, "r.txt", record).status();
}

TEST(PrintTextFormatTest, FloatsHaveTheGoldenText) {
  const auto rows = nlohmann::json::parse(ReadGolden("floats.json"))["rows"];
  ASSERT_GT(rows.size(), 100);
  for (const auto& row : rows) {
    const auto bits = static_cast<uint32_t>(std::stoul(row["bits"].get<std::string>(), nullptr, 16));
    SingleLayerRecord layer;
    layer.set_scale_d(std::bit_cast<float>(bits));
    EXPECT_EQ(PrintTextFormat(layer), "scale_d: " + row["record_text"].get<std::string>() + "\n") << row["bits"];
  }
}

TEST(PrintTextFormatTest, EveryFieldPrintsAsInTheGoldenSample) {
  const std::string text = ReadGolden("all_fields.txt");
  ScaleOffsetRecord record;
  ASSERT_TRUE(ParseTextFormat(text, v1::RECORD_SYNTAX, "all_fields.txt", record).ok());
  EXPECT_EQ(PrintTextFormat(record), text);
}

TEST(PrintTextFormatTest, ControlCharactersStayInStringsAndBecomeOctalInBytes) {
  AMCTProto::AttrProto attribute;
  attribute.set_name("\x01\x7f");
  attribute.set_s("\x01\x7f\n");
  EXPECT_EQ(PrintTextFormat(attribute), "name: \"\x01\x7f\"\ns: \"\\001\\177\\n\"\n");
}

TEST(ParseTextFormatTest, FloatSpellings) {
  const std::pair<std::string, float> kCases[] = {
      {"1", 1},
      {"1.", 1},
      {".5", .5},
      {"-.5", -.5},
      {"+1.5", 1.5},
      {"1.5f", 1.5},
      {"2f", 2},
      {"1E+2", 100},
      {"1_000.2_5", 1000.25},
      {"00.5", .5},
      {"-01e1", -10},
      {"1e-50", 0},
      {"0.00787401571869850158691", 0.00787401571869850158691f},
      {"340282346638528859811704183484516925440", std::numeric_limits<float>::max()},
      {"1e39", std::numeric_limits<float>::infinity()},
      {"inf", std::numeric_limits<float>::infinity()},
      {"-Infinity", -std::numeric_limits<float>::infinity()},
      {"+inf", std::numeric_limits<float>::infinity()},
      {"inff", std::numeric_limits<float>::infinity()},
      {"-INFINITYF", -std::numeric_limits<float>::infinity()},
      {"1.4013e-45", std::numeric_limits<float>::denorm_min()},
  };
  for (const auto& [text, value] : kCases) {
    EXPECT_EQ(ParseLayer("scale_d: " + text).scale_d(), value) << text;
  }
  EXPECT_TRUE(std::signbit(ParseLayer("scale_d: -0").scale_d()));
  EXPECT_TRUE(std::isnan(ParseLayer("scale_d: NaN").scale_d()));
  EXPECT_TRUE(std::isnan(ParseLayer("scale_d: nanf").scale_d()));
}

TEST(ParseTextFormatTest, IntegerSpellings) {
  const std::pair<std::string, int32_t> kCases[] = {{"-0x5", -5},
                                                    {"0XfF", 255},
                                                    {"017", 15},
                                                    {"+7", 7},
                                                    {"1_000", 1000},
                                                    {"0x1_f", 31},
                                                    {"-0", 0},
                                                    {"2147483647", 2147483647},
                                                    {"-2147483648", std::numeric_limits<int32_t>::min()}};
  for (const auto& [text, value] : kCases) {
    EXPECT_EQ(ParseLayer("offset_d: " + text).offset_d(), value) << text;
  }
}

TEST(ParseTextFormatTest, SyntaxVariants) {
  const ScaleOffsetRecord expected = [] {
    ScaleOffsetRecord record;
    for (const char* key : {"conv", "fc"}) {
      auto* entry = record.add_record();
      entry->set_key(key);
      entry->mutable_value()->add_scale_w(1);
      entry->mutable_value()->add_scale_w(2);
      entry->mutable_value()->set_skip_fusion(true);
    }
    return record;
  }();
  for (
      const char* text : {
          R"(record { key: "conv" value { scale_w: 1 scale_w: 2 skip_fusion: true } } record: < key: 'fc' value: < scale_w: [1, 2f] skip_fusion: t > >)",
          R"(record: [{ key: "co" 'nv' value: { scale_w: 1, scale_w: 2; skip_fusion: True, } }, < key: "f\x63" value { scale_w: [] scale_w: [1,2] skip_fusion: 1 }; >])",
          "# comment { \"\nrecord{key:\"c\\157nv\"value{scale_w:[1,2]skip_fusion:false skip_fusion:true}}record{key:\"x\" "
          "key:\"fc\" "
          "value{scale_w:1}value{scale_w:2 skip_fusion:1}}",
      }) {
    ScaleOffsetRecord record;
    absl::Status status = ParseTextFormat(text, v1::RECORD_SYNTAX, "r.txt", record).status();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(record.SerializeAsString(), expected.SerializeAsString()) << text;
  }
}

TEST(ParseTextFormatTest, SkipsAByteOrderMark) { EXPECT_TRUE(ErrorOf("\xEF\xBB\xBFrecord {}").ok()); }

TEST(ParseTextFormatTest, RequiredFieldsMayBeAbsent) { EXPECT_TRUE(ErrorOf("prune_record { producer { } }").ok()); }

TEST(ParseTextFormatTest, StringsAndCommentsAreLeftAlone) {
  SingleLayerRecord layer = ParseLayer("dst_type: \"+1 1_000 # nanf\" # +1 {\nact_type: '\\'+1\\\\' wts_type: \"\\n\\t\"");
  EXPECT_EQ(layer.dst_type(), "+1 1_000 # nanf");
  EXPECT_EQ(layer.act_type(), "'+1\\");
  EXPECT_EQ(layer.wts_type(), "\n\t");
}

TEST(ParseTextFormatTest, RefusesWithLineAndColumn) {
  struct Case {
    std::string text;
    int line;
    int column;
  };
  for (const Case& c : std::vector<Case>{
           {"record {\n  kee: \"x\"\n}", 2, 3},                 // unknown field
           {"record {\n  value { scale_d: \"1\" }\n}", 2, 20},  // wrong kind
           {"record {\n\tkey: \"\xE4\xB8\xAD\" value { offset_d: 2147483648 }\n}", 2,
            29},                                                          // out of range; tab and 中 are one column
           {"record {\n  key: 1 }", 2, 8},                                // wrong kind
           {"record { value { offset_d: 1.5 } }", 1, 28},                 //
           {"record { value { shift_bit: -1 } }", 1, 29},                 //
           {"record { value { skip_fusion: 2 } }", 1, 31},                //
           {"record { value { scale_d: 0x10 } }", 1, 27},                 //
           {"record { value { scale_d: ++1 } }", 1, 27},                  //
           {"record { value { scale_d: 1__0 } }", 1, 28},                 //
           {"record { value { scale_d: [1] } }", 1, 27},                  // a list for a singular field
           {"prune_record { producer { attr { type: INTT } } }", 1, 40},  // unknown enum name
           {"prune_record { producer { attr { type: 7 } } }", 1, 40},     // unknown enum number
           {"record { key: \"x }\n", 1, 19},                              // string not closed
           {"record { key: \"\\q\" }", 1, 17},                            // bad escape
           {"record {", 1, 9},                                            // brace not closed
           {"record { >", 1, 10},                                         // closed by the other kind
           {"}", 1, 1},                                                   //
           {"rec+ord {}", 1, 1},                                          // a sign within a name
           {"1: \"x\"", 1, 1},                                            // field number
           {std::string("record {\0}", 10), 1, 9},                        //
       }) {
    absl::Status status = ErrorOf(c.text);
    ASSERT_EQ(ReasonOf(status), v1::RECORD_SYNTAX) << c.text;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    const ErrorPlace place = PlaceOf(status);
    EXPECT_EQ(place.file, "r.txt");
    EXPECT_EQ(place.line, c.line) << c.text << " -> " << status;
    EXPECT_EQ(place.column, c.column) << c.text << " -> " << status;
    EXPECT_FALSE(status.message().empty() || status.message().back() == '.') << status;
  }
}

TEST(ParseTextFormatTest, RefusesWhatIsNotUtf8) {
  for (const char* broken : {"\xFF", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF5",
                             "\x80", "\xE4\xB8", "\xC3("}) {
    absl::Status status = ErrorOf(std::string("# \xE4\xB8\xAD\n# \xE4\xB8\xAD") + broken);
    ASSERT_EQ(ReasonOf(status), v1::RECORD_SYNTAX);
    EXPECT_EQ(PlaceOf(status).line, 2) << status;
    EXPECT_EQ(PlaceOf(status).column, 4) << status;
  }
  EXPECT_TRUE(ErrorOf("# \xC2\x80\xDF\xBF\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xEF\xBF\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF").ok());
}

TEST(ParseTextFormatTest, RefusesEscapesThatAreNotUtf8InStringsOnly) {
  absl::Status status = ErrorOf("record { key: 'a' }\n record { key: '\\377' }");
  EXPECT_EQ(ReasonOf(status), v1::RECORD_SYNTAX);
  EXPECT_EQ(PlaceOf(status).line, 2);
  EXPECT_EQ(PlaceOf(status).column, 2);
  EXPECT_TRUE(ErrorOf("prune_record { producer { attr { s: '\\377' } } }").ok());
}

TEST(ParseTextFormatTest, HostileNestingIsAnErrorNotACrash) {
  std::string text;
  for (int i = 0; i < 200'000; ++i) {
    text += "record { ";
  }
  EXPECT_EQ(ReasonOf(ErrorOf(text)), v1::RECORD_SYNTAX);
  EXPECT_EQ(ReasonOf(ErrorOf(std::string(200'000, '<'))), v1::RECORD_SYNTAX);
  EXPECT_EQ(ReasonOf(ErrorOf("record: " + std::string(200'000, '['))), v1::RECORD_SYNTAX);
}

TEST(ParseTextFormatTest, TakesSoManyMessagesAndBytes) {
  std::string text = "record: [{}";
  for (uint64_t i = 0; i < kMaxTextMessages; ++i) {
    text += ",{}";
  }
  const absl::Status many = ErrorOf(text + "]");
  EXPECT_EQ(ReasonOf(many), v1::RECORD_SYNTAX);
  EXPECT_EQ(PlaceOf(many).column, 10 + 3 * kMaxTextMessages);
  SingleLayerRecord layer;
  const std::string spaces(kMaxCfgBytes + 1, ' ');
  EXPECT_EQ(ReasonOf(ParseTextFormat(spaces, v1::CONFIG_SYNTAX, "in.cfg", layer).status()), v1::CONFIG_SYNTAX);
  EXPECT_TRUE(ParseTextFormat(spaces, v1::RECORD_SYNTAX, "r.txt", layer).ok());
}

TEST(ParseTextFormatTest, ErrorsQuoteNoMoreThanAPartOfTheText) {
  for (const char* letter : {"a", "\xE4\xB8\xAD"}) {
    std::string text = "record { key: 'a' } ";
    const bool ascii = letter[1] == '\0';
    text += ascii ? "" : "record { value { offset_d: '";
    for (int i = 0; i < 100'000; ++i) {
      text += letter;
    }
    text += ascii ? "" : "' } }";
    const absl::Status status = ErrorOf(text);
    EXPECT_EQ(ReasonOf(status), v1::RECORD_SYNTAX);
    EXPECT_LT(status.message().size(), 400);
    SingleLayerRecord layer;  // the message is UTF-8 itself
    layer.set_dst_type(std::string(status.message()));
    SingleLayerRecord again;
    EXPECT_TRUE(ParseTextFormat(PrintTextFormat(layer), v1::RECORD_SYNTAX, "r.txt", again).ok()) << status;
  }
}

TEST(ParseTextFormatTest, TellsWhereOutermostMessagesBegin) {
  ScaleOffsetRecord record;
  auto positions = ParseTextFormat(
      "# record {\nrecord { key: 'record { \xC3\xA9' value { } } record <>\n"
      " record: [{ key: 'b' },\n  <>] record: []\nprune_record {}",
      v1::RECORD_SYNTAX, "r.txt", record);
  ASSERT_TRUE(positions.ok()) << positions.status();
  ASSERT_EQ(record.record_size(), 4);
  std::vector<std::pair<int, int>> places;
  for (const TextPosition& p : (*positions)["record"]) {
    places.emplace_back(p.line, p.column);
  }
  EXPECT_THAT(places, testing::ElementsAre(std::pair(2, 1), std::pair(2, 40), std::pair(3, 11), std::pair(4, 3)));
  EXPECT_EQ((*positions)["prune_record"].size(), 1);
}

std::string KeyOf(const std::string& text) {
  const auto metadata = MetadataOf(ErrorOf(text));
  auto key = metadata.find("key");
  return key == metadata.end() ? "" : key->second;
}

TEST(ParseTextFormatTest, ErrorsNameTheFieldBeforeThem) {
  EXPECT_EQ("scale_d", KeyOf("record { value { scale_d: x } }"));
  EXPECT_EQ("kee", KeyOf("record { kee: 1 }"));
  EXPECT_EQ("value", KeyOf("record { key: \"a\" value { "));
  EXPECT_EQ("", KeyOf("}"));
}

struct LocateCase {
  const char* text;
  std::vector<TextStep> path;
  int line;
  int column;
};

TEST(LocateFieldTest, FindsFieldsElementsAndTheNearestMessage) {
  for (const LocateCase& c : std::vector<LocateCase>{
           {"a: 1 b: 2", {{"b"}}, 1, 6},
           {"a: 1\n# b: 0\n  b: 2", {{"b"}}, 3, 3},
           {"a: 1 a: 2", {{"a"}}, 1, 6},                      // the last one counts
           {"a: 'x' a: 'y'", {{"a", 0}}, 1, 1},               // elements
           {"a: ['x' \"y\", 'z']", {{"a", 1}}, 1, 14},        // in a list, with pieces of a string
           {"a: [] a: [1] a: 2", {{"a", 1}}, 1, 14},          // an empty list has no elements
           {"m { a: 1 } m { b: 2 }", {{"m"}, {"a"}}, 1, 5},   // messages that are merged
           {"m { a: 1 } m { b: 2 }", {{"m"}, {"c"}}, 1, 12},  // absent: the message
           {"m: < n { a: -1; b: - 2, c: inf } >", {{"m"}, {"n"}, {"c"}}, 1, 25},
           {"m [{ a: 1 }, { a: 2 }] z: 3", {{"m", 1}, {"a"}}, 1, 16},
           {"m [{ a: 1 }, { a: 2 }] z: 3", {{"z"}}, 1, 24},
           {"\xEF\xBB\xBF\xE4\xB8\xAD: 1 a: 2", {{"a"}}, 1, 6},
           {"a: 1", {{"b"}}, 0, 0},
           {"", {{"b"}}, 0, 0},
           {"a {", {{"a"}, {"b"}}, 1, 1},
       }) {
    const TextPosition position = LocateField(c.text, c.path);
    EXPECT_EQ(c.line, position.line) << c.text;
    EXPECT_EQ(c.column, position.column) << c.text;
  }
}

TEST(DecimalDoubleTest, IsTheShortestDecimal) {
  EXPECT_EQ(0.7, DecimalDouble(0.7F));
  EXPECT_EQ(1e-5, DecimalDouble(1e-5F));
  EXPECT_EQ("1.0", PythonRepr(DecimalDouble(1.0F)));
  EXPECT_EQ("1e+16", PythonRepr(1e16));
}

}  // namespace
}  // namespace modelpress::engine
