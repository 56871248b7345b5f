#include "engine/formats/json_text.h"

#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace modelpress::engine {
namespace {

using Kind = JsonValue::Kind;

TEST(ParseJsonTest, KeepsKindsOrderAndPlaces) {
  const absl::StatusOr<JsonValue> root =
      ParseJson("\xEF\xBB\xBF{\n \"b\": [1, -2.5, 1e3],\n \"a\\\"\\u00e9\": {\"x\" : \"y\"}, \"n\": null, \"t\":true}", "f");
  ASSERT_TRUE(root.ok()) << root.status();
  ASSERT_EQ(4, root->members.size());
  const auto& [name, list] = root->members[0];
  EXPECT_EQ("b", name);
  EXPECT_EQ(2, list.position.line);
  EXPECT_EQ(2, list.position.column);
  ASSERT_EQ(3, list.items.size());
  EXPECT_TRUE(list.items[0].is(Kind::kInteger));
  EXPECT_EQ(1, list.items[0].integer);
  EXPECT_TRUE(list.items[1].is(Kind::kFloat));
  EXPECT_EQ(-2.5, list.items[1].number);
  EXPECT_EQ(11, list.items[1].position.column);
  EXPECT_TRUE(list.items[2].is(Kind::kFloat));
  EXPECT_EQ("a\"\xC3\xA9", root->members[1].key);
  EXPECT_EQ("y", root->members[1].value.Find("x")->string);
  EXPECT_TRUE(root->Find("n")->is(Kind::kNull));
  EXPECT_TRUE(root->Find("t")->boolean);
  EXPECT_EQ(nullptr, root->Find("z"));
}

TEST(ParseJsonTest, IntegersBeyond64BitsStayIntegers) {
  const absl::StatusOr<JsonValue> root =
      ParseJson("[123456789012345678901234567890, -123456789012345678901234567890, 18446744073709551615]", "f");
  ASSERT_TRUE(root.ok()) << root.status();
  EXPECT_TRUE(root->items[0].is(Kind::kInteger));
  EXPECT_EQ(INT64_MAX, root->items[0].integer);
  EXPECT_EQ(INT64_MIN, root->items[1].integer);
  EXPECT_EQ(INT64_MAX, root->items[2].integer);
}

TEST(ParseJsonTest, RefusesWithPlace) {
  struct Case {
    std::string text;
    int line;
    int column;
  };
  for (const Case& c : std::vector<Case>{{"{\n\"a\": NaN}", 2, 6},
                                         {"[Infinity]", 1, 2},
                                         {"[1e999]", 1, 6},
                                         {"", 1, 1},
                                         {"{\"a\": 1,}", 1, 9},
                                         {"{\"a\": \"\xFF\"}", 1, 8},
                                         {"[1] x", 1, 5},
                                         {"{'a': 1}", 1, 2},
                                         {"[01]", 1, 3},
                                         {std::string("{}\0", 3), 1, 3},
                                         {std::string(100000, '['), 1, kMaxJsonDepth + 1}}) {
    const absl::Status status = ParseJson(c.text, "f.json").status();
    EXPECT_EQ(v1::CONFIG_SYNTAX, ReasonOf(status)) << c.text.substr(0, 50);
    EXPECT_EQ("f.json", PlaceOf(status).file);
    EXPECT_EQ(c.line, PlaceOf(status).line) << status;
    EXPECT_EQ(c.column, PlaceOf(status).column) << status;
    EXPECT_LT(status.message().size(), 500);
  }
}

TEST(ParseJsonTest, TakesSoManyValuesAndBytes) {
  std::string text = "[0";
  for (uint64_t i = 0; i < kMaxJsonValues; ++i) {
    text += ",0";
  }
  EXPECT_EQ(v1::CONFIG_SYNTAX, ReasonOf(ParseJson(text + "]", "f.json").status()));
  EXPECT_EQ(v1::CONFIG_SYNTAX, ReasonOf(ParseJson(std::string(kMaxJsonBytes, ' ') + "0", "f.json").status()));
}

TEST(ParseJsonTest, RepeatedKeysAreErrors) {
  const absl::Status status = ParseJson("{\"a\": {\"x\": 1, \"y\": {}},\n \"conv\": {\"x\": 1,\n  \"x\": 2}}", "f").status();
  EXPECT_EQ(v1::CONFIG_SYNTAX, ReasonOf(status));
  EXPECT_EQ(3, PlaceOf(status).line);
  EXPECT_EQ(3, PlaceOf(status).column);
  EXPECT_EQ("conv", PlaceOf(status).layer);
  EXPECT_EQ("x", MetadataOf(status)["key"]);
}

TEST(PrintPythonJsonTest, PrintsAsPythonDoes) {
  const nlohmann::ordered_json value = {{"b", 1},
                                        {"a", {1.0, 1e-5, 1e16, -0.0}},
                                        {"e", nlohmann::ordered_json::array()},
                                        {"o", nlohmann::ordered_json::object()},
                                        {"s", "\xE4\xB8\xAD\xF0\x9F\x98\x80\"\\\n\x7F\x01/"},
                                        {"n", nullptr},
                                        {"t", true}};
  EXPECT_EQ(
      "{\n    \"b\":1,\n    \"a\":[\n        1.0,\n        1e-05,\n        1e+16,\n        -0.0\n    ],\n    \"e\":[],\n    "
      "\"o\":{},\n"
      "    \"s\":\"\\u4e2d\\ud83d\\ude00\\\"\\\\\\n\\u007f\\u0001/\",\n    \"n\":null,\n    \"t\":true\n}",
      PrintPythonJson(value));
}

}  // namespace
}  // namespace modelpress::engine
