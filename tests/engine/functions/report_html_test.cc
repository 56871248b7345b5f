// The page is checked as text: it is well-formed XML by design, so that a small parser sees every tag and what is in it.
#include "engine/functions/report_html.h"

#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "openssl/sha.h"

namespace modelpress::engine {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

// What a page consists of.
struct Markup {
  std::string error;                  // of the first thing that is not well-formed
  std::multiset<std::string> tags;    // opened
  std::vector<std::string> texts;     // between tags, entities decoded
  std::vector<std::string> onclicks;  // attributes that would run something or load something
  int Count(const std::string& tag) const { return static_cast<int>(tags.count(tag)); }
  std::string Text() const {
    std::string all;
    for (const std::string& text : texts) {
      absl::StrAppend(&all, text, "\n");
    }
    return all;
  }
};

std::string Decode(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&#39;", "'"}, {"&amp;", "&"}});
}

// Every '&' must begin one of the five entities.
bool EntitiesAreRight(absl::string_view text) {
  for (size_t at = text.find('&'); at != absl::string_view::npos; at = text.find('&', at + 1)) {
    const absl::string_view rest = text.substr(at);
    if (!absl::StartsWith(rest, "&lt;") && !absl::StartsWith(rest, "&gt;") && !absl::StartsWith(rest, "&quot;") &&
        !absl::StartsWith(rest, "&#39;") && !absl::StartsWith(rest, "&amp;")) {
      return false;
    }
  }
  return true;
}

Markup Parse(absl::string_view page) {
  Markup markup;
  std::vector<std::string> open;
  const absl::string_view doctype = "<!DOCTYPE html>\n";
  if (!absl::ConsumePrefix(&page, doctype)) {
    markup.error = "no doctype";
    return markup;
  }
  while (!page.empty()) {
    const size_t begin = page.find('<');
    const absl::string_view text = page.substr(0, begin);
    if (!EntitiesAreRight(text)) {
      markup.error = absl::StrCat("bare & in ", text);
      return markup;
    }
    markup.texts.push_back(Decode(text));
    if (begin == absl::string_view::npos) {
      break;
    }
    page.remove_prefix(begin + 1);
    if (absl::ConsumePrefix(&page, "/")) {
      const size_t end = page.find('>');
      if (open.empty() || page.substr(0, end) != absl::string_view(open.back())) {
        markup.error = absl::StrCat("unexpected end of ", page.substr(0, end));
        return markup;
      }
      open.pop_back();
      page.remove_prefix(end + 1);
      continue;
    }
    size_t name = 0;
    while (name < page.size() && absl::ascii_isalnum(page[name])) {
      ++name;
    }
    const std::string tag(page.substr(0, name));
    page.remove_prefix(name);
    // Attributes, all name="value".
    while (absl::ConsumePrefix(&page, " ")) {
      if (absl::StartsWith(page, "/>")) {
        break;
      }
      const size_t equals = page.find("=\"");
      const size_t end = equals == absl::string_view::npos ? equals : page.find('"', equals + 2);
      if (end == absl::string_view::npos) {
        markup.error = absl::StrCat("attribute without value in ", tag);
        return markup;
      }
      const absl::string_view attribute = page.substr(0, equals);
      const absl::string_view value = page.substr(equals + 2, end - equals - 2);
      if (absl::StrContains(value, "<") || !EntitiesAreRight(value)) {
        markup.error = absl::StrCat("unescaped value of ", attribute);
        return markup;
      }
      if (absl::StartsWith(attribute, "on") || attribute == "src" || attribute == "href" || attribute == "style") {
        markup.onclicks.emplace_back(attribute);
      }
      page.remove_prefix(end + 1);
    }
    const bool empty = absl::ConsumePrefix(&page, "/");
    if (tag.empty() || !absl::ConsumePrefix(&page, ">")) {
      markup.error = absl::StrCat("bad tag ", tag, " before ", page.substr(0, 20));
      return markup;
    }
    markup.tags.insert(tag);
    if (!empty) {
      open.push_back(tag);
    }
  }
  if (!open.empty()) {
    markup.error = absl::StrCat("left open: ", open.back());
  }
  return markup;
}

// Row of tbody that a text is in, from 0 over the whole page.
size_t PositionOf(const std::string& page, absl::string_view text) { return page.find(absl::StrCat(">", text, "<")); }

Json QuantizedLayer(const std::string& name, const Json& sqnr) {
  return {{"name", name},
          {"op_type", "Conv"},
          {"type", "Conv2d"},
          {"quantized", true},
          {"activation_bits", 8},
          {"scale_d", 0.025},
          {"offset_d", -3},
          {"weight_scales", 16},
          {"weight_bits", 8},
          {"weight_shape", {16, 3, 3, 3}},
          {"weight_elements", 432},
          {"has_bias", true},
          {"activation_algorithm", "IFMR"},
          {"weight_algorithm", "ARQ"},
          {"activation",
           {{"count", 1000},
            {"minimum", -3.5},
            {"maximum", 4.5},
            {"clip_minimum", -3.125},
            {"clip_maximum", 3.25},
            {"saturated_share", 0.0125}}},
          {"error", {{"sqnr_db", sqnr}, {"cosine", 0.998}, {"max_error", 0.5}, {"mean_error", 0.01}}}};
}

Json FullReport() {
  const Json left_alone = {
      {"name", "head"}, {"op_type", "MatMul"}, {"quantized", false}, {"reason", "skipped by the configuration"}};
  return {{"function", "quantize_model"},
          {"engine_version", "1.2.3"},
          {"libraries", {{"onnxruntime", "9.9"}}},
          {"validate_only", false},
          {"inputs",
           {{{"name", "data.npz"}, {"size_bytes", 5}, {"sha256", "aa"}},
            {{"name", "net.onnx"}, {"size_bytes", 7}, {"sha256", "bb"}}}},
          {"layers", {QuantizedLayer("good", 41.5), QuantizedLayer("exact", nullptr), QuantizedLayer("bad", -2.25), left_alone}},
          {"outputs_error",
           {{{"name", "logits"}, {"sqnr_db", 33.25}, {"cosine", 0.9987}, {"max_error", 0.75}, {"mean_error", 0.01}},
            {{"name", "aside"}, {"sqnr_db", nullptr}, {"cosine", 1.0}, {"max_error", 0.0}, {"mean_error", 0.0}}}},
          {"worst_first", {"bad", "good", "exact"}},
          {"sizes",
           {{"model_bytes", 4000000}, {"modified_bytes", 4100000}, {"deploy_bytes", 1000000}, {"fake_quant_bytes", 4200000}}},
          {"calibration", {{"batches", 2}, {"samples", 20}, {"passes", 1}, {"data_source", "second inference pass"}}},
          {"comparison", {{"batches", 1}, {"samples", 10}}},
          {"configuration", {{"batch_num", 2}, {"activation_offset", true}}},
          {"deviations", {"section 5: rounds to even"}},
          {"warnings", {"nothing to worry about"}},
          {"outputs", {{{"name", "out_deploy_model.onnx"}, {"size_bytes", 1000000}, {"sha256", "cc"}}}}};
}

TEST(ReportHtml, ShowsEveryPartOfAFullReport) {
  const std::string page = ReportHtml(FullReport());
  const Markup markup = Parse(page);
  ASSERT_EQ(markup.error, "");
  EXPECT_EQ(markup.Count("svg"), 4);  // sizes, errors, ranges, saturation
  const std::string text = markup.Text();
  for (const char* expected : {"quantize_model: net.onnx",
                               "33.25 dB",
                               "25 %",
                               "3 of 4",
                               "float model: 4.00 MB",
                               "deploy model: 1.00 MB",
                               "logits",
                               "aside",
                               "second inference pass",
                               "batch_num",
                               "section 5: rounds to even",
                               "nothing to worry about",
                               "out_deploy_model.onnx",
                               "skipped by the configuration",
                               "head",
                               "1.25 %",
                               "-3.5 to 4.5",
                               "-3.125 to 3.25",
                               "IFMR",
                               "ARQ",
                               "Conv2d",
                               "16\u00D73\u00D73\u00D73",
                               "1.2.3",
                               "9.9",
                               "compared on 10 samples in 1 batch",
                               "3 bad: -2.25 dB",
                               "2 exact: \xE2\x88\x9E dB"}) {
    EXPECT_THAT(text, HasSubstr(expected));
  }
}

TEST(ReportHtml, LoadsNothingAndRunsOnlyItsOwnScript) {
  const std::string page = ReportHtml(FullReport());
  const Markup markup = Parse(page);
  EXPECT_THAT(markup.onclicks, IsEmpty());
  EXPECT_THAT(markup.tags, Not(Contains("link")));
  EXPECT_EQ(markup.Count("script"), 1);
  EXPECT_THAT(page, Not(HasSubstr("url(")));
  EXPECT_THAT(page, Not(HasSubstr("@import")));
  const size_t begin = page.find("<script>") + 8;
  const std::string script = page.substr(begin, page.find("</script>") - begin);
  uint8_t digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const uint8_t*>(script.data()), script.size(), digest);
  EXPECT_THAT(page, HasSubstr(absl::StrCat(
                        "script-src 'sha256-",
                        absl::Base64Escape(absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest))), "'")));
}

TEST(ReportHtml, ListsLayersWorstFirstWhateverTheGraphOrder) {
  const std::string page = ReportHtml(FullReport());
  EXPECT_LT(PositionOf(page, "bad"), PositionOf(page, "good"));
  EXPECT_LT(PositionOf(page, "good"), PositionOf(page, "exact"));

  Json without = FullReport();
  without.erase("worst_first");
  const std::string sorted = ReportHtml(without);
  EXPECT_LT(PositionOf(sorted, "bad"), PositionOf(sorted, "good"));
  EXPECT_LT(PositionOf(sorted, "good"), PositionOf(sorted, "exact"));
}

TEST(ReportHtml, MarksTheWorstLayersButNoneWithoutError) {
  Json report = FullReport();
  report["layers"].push_back(QuantizedLayer("odd", std::numeric_limits<double>::quiet_NaN()));
  report["worst_first"] = Json::array();
  const std::string page = ReportHtml(report);
  EXPECT_LT(PositionOf(page, "odd"), PositionOf(page, "bad"));
  EXPECT_THAT(page, HasSubstr("3 bad: -2.25 dB</title><rect class=\"mark\""));
  EXPECT_THAT(page, HasSubstr("1 good: 41.5 dB</title><rect class=\"mark\""));
  EXPECT_THAT(page, HasSubstr("2 exact: \xE2\x88\x9E dB</title><rect class=\"bar\""));
}

TEST(ReportHtml, EscapesNamesWhereverTheyStand) {
  const std::string evil = "<script>alert(\"x\")</script>'&amp;\x01\x7F\xFF\xC0\xAF\xED\xA0\x80\xE2\x80\xAE";
  Json report = FullReport();
  report["configuration"] = {{"one", "entry"}};
  const size_t tags = Parse(ReportHtml(report)).tags.size();
  for (Json& layer : report["layers"]) {
    for (const char* key : {"name", "op_type", "type", "reason", "activation_algorithm", "weight_algorithm"}) {
      if (layer.contains(key)) {
        layer[key] = evil;
      }
    }
  }
  report["function"] = evil;
  report["engine_version"] = evil;
  report["libraries"] = {{evil, evil}};
  report["inputs"][1]["name"] = evil + ".onnx";
  report["inputs"][1]["sha256"] = evil;
  report["outputs_error"][0]["name"] = evil;
  report["worst_first"] = {evil};
  report["calibration"]["data_source"] = evil;
  report["configuration"] = {{evil, {evil}}};
  report["warnings"] = {evil};
  report["deviations"] = {evil};
  report["outputs"][0]["name"] = evil;
  const std::string page = ReportHtml(report);
  const Markup markup = Parse(page);
  ASSERT_EQ(markup.error, "");
  EXPECT_EQ(markup.Count("script"), 1);
  EXPECT_THAT(markup.onclicks, IsEmpty());
  EXPECT_THAT(markup.tags, SizeIs(tags));
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_THAT(markup.Text(), HasSubstr(absl::StrCat("<script>alert(\"x\")</script>'&amp;", r, r, r, r, r, r, r, r, r)));
  for (const char byte : {'\x01', '\x7F', '\xFF', '\xC0'}) {
    EXPECT_EQ(page.find(byte), std::string::npos) << static_cast<int>(byte);
  }
}

TEST(ReportHtml, KeepsNamesOfOtherScripts) {
  Json report = FullReport();
  report["layers"][0]["name"] = "\xE5\xB1\x82/\xD0\xA1\xD0\xBB\xD0\xBE\xD0\xB9 \xF0\x9F\x99\x82";
  EXPECT_THAT(ReportHtml(report), HasSubstr("\xE5\xB1\x82/\xD0\xA1\xD0\xBB\xD0\xBE\xD0\xB9 \xF0\x9F\x99\x82"));
}

TEST(ReportHtml, CutsEndlessNames) {
  Json report = FullReport();
  report["layers"][0]["name"] = std::string(1 << 20, 'x');
  EXPECT_LT(ReportHtml(report).size(), 64 << 10);
}

TEST(ReportHtml, LeavesOutWhatIsMissing) {
  const Json full = FullReport();
  for (const auto& [key, value] : full.items()) {
    Json report = full;
    report.erase(key);
    EXPECT_EQ(Parse(ReportHtml(report)).error, "") << "without " << key;
  }
  for (const auto& [key, value] : full["layers"][0].items()) {
    Json report = full;
    report["layers"][0].erase(key);
    EXPECT_EQ(Parse(ReportHtml(report)).error, "") << "layer without " << key;
  }
  const Markup empty = Parse(ReportHtml(Json::object()));
  EXPECT_EQ(empty.error, "");
  EXPECT_EQ(empty.Count("table"), 0);
  EXPECT_EQ(empty.Count("svg"), 0);
  EXPECT_EQ(empty.Count("section"), 0);
}

// save_model's report has layers without measurements: a table and no plots.
TEST(ReportHtml, ShowsLayersWithoutMeasurements) {
  Json report = FullReport();
  for (Json& layer : report["layers"]) {
    layer.erase("activation");
    layer.erase("error");
  }
  report.erase("sizes");
  const Markup markup = Parse(ReportHtml(report));
  EXPECT_EQ(markup.error, "");
  EXPECT_EQ(markup.Count("svg"), 0);
  EXPECT_THAT(markup.Text(), HasSubstr("good"));
}

TEST(ReportHtml, TakesValuesOfAnyTypeForMissing) {
  const Json full = FullReport();
  for (const Json& odd : std::vector<Json>{nullptr, 1, "text", true, Json::array({1, "x", nullptr}), {{"a", 1}}}) {
    for (const auto& [key, value] : full.items()) {
      Json report = full;
      report[key] = odd;
      EXPECT_EQ(Parse(ReportHtml(report)).error, "") << key << " is " << odd;
    }
    for (const auto& [key, value] : full["layers"][0].items()) {
      Json report = full;
      report["layers"][0][key] = odd;
      EXPECT_EQ(Parse(ReportHtml(report)).error, "") << "layer's " << key << " is " << odd;
    }
  }
}

TEST(ReportHtml, DrawsNumbersThatAreNone) {
  for (const double odd : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                           -std::numeric_limits<double>::infinity(), 1e308, -1e308, 0.0, 1e-300}) {
    Json report = FullReport();
    Json& layer = report["layers"][0];
    for (const char* part : {"activation", "error"}) {
      for (auto& [key, value] : layer[part].items()) {
        value = odd;
      }
    }
    layer["scale_d"] = odd;
    report["sizes"]["model_bytes"] = odd;
    report["outputs_error"][0]["sqnr_db"] = odd;
    const std::string page = ReportHtml(report);
    EXPECT_EQ(Parse(page).error, "") << odd;
    for (const char* attribute : {"x", "y", "x1", "y1", "y2", "width", "height"}) {
      for (const char* value : {"nan", "-nan", "inf", "-inf"}) {
        EXPECT_THAT(page, Not(HasSubstr(absl::StrCat(" ", attribute, "=\"", value, "\"")))) << odd;
      }
    }
    EXPECT_LT(page.size(), 64 << 10) << odd;
  }
}

TEST(ReportHtml, ManagesNoLayersAndAThousand) {
  Json report = FullReport();
  report["layers"] = Json::array();
  EXPECT_EQ(Parse(ReportHtml(report)).error, "");
  report.erase("worst_first");
  for (int i = 0; i < 1000; ++i) {
    report["layers"].push_back(QuantizedLayer(absl::StrCat("layer", i), (i * 7) % 60));
  }
  const std::string page = ReportHtml(report);
  const Markup markup = Parse(page);
  EXPECT_EQ(markup.error, "");
  EXPECT_GE(markup.Count("tr"), 1000);
  EXPECT_EQ(markup.Count("g"), 3000);
  EXPECT_LT(page.size(), 4 << 20);
}

TEST(ReportHtml, GivesTheSameBytesForTheSameReport) { EXPECT_EQ(ReportHtml(FullReport()), ReportHtml(FullReport())); }

}  // namespace
}  // namespace modelpress::engine
