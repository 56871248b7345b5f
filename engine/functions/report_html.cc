#include "engine/functions/report_html.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/substitute.h"

namespace modelpress::engine {
namespace {

using Json = nlohmann::ordered_json;

// Longest name and longest sentence of a page, in bytes; the JSON report has them whole.
constexpr size_t kNameBytes = 300;
constexpr size_t kSentenceBytes = 4000;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Only this page's own style and script run: the policy holds the script's digest, so that nothing a name could smuggle in would
// run. The markup is well-formed XML too; therefore the script has no '<' and no '&'. $0: the digest.
constexpr absl::string_view kHead = R"(<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="color-scheme" content="light dark" />
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-$0'" />
)";

constexpr absl::string_view kStyle = R"(<style>
:root { --back: #fff; --text: #1c2127; --soft: #5c6570; --line: #d9dde2; --band: #f4f5f7; --bar: #3b76b8; --mark: #c8501e; }
@media screen and (prefers-color-scheme: dark) {
  :root { --back: #15181c; --text: #e4e7eb; --soft: #9aa4af; --line: #343a42; --band: #1e2329; --bar: #6ba4e0; --mark: #f08a55; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0.3rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
p { margin: 0.4rem 0; max-width: 50rem; }
.soft, figcaption { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: 0.6rem; margin: 1rem 0; padding: 0; list-style: none; }
.facts li { background: var(--band); border-radius: 0.4rem; padding: 0.5rem 0.9rem; }
.facts b { display: block; font-size: 1.3rem; }
.scroll { overflow-x: auto; }
figure { margin: 1rem 0; }
figcaption { max-width: 50rem; }
svg { display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.sizes svg { width: 100%; max-width: 40rem; height: auto; }
.sizes text { fill: var(--text); }
.bar { fill: var(--bar); }
.mark { fill: var(--mark); }
.box { fill: var(--line); }
.span { stroke: var(--bar); stroke-width: 2; }
.span.mark { stroke: var(--mark); }
.grid { stroke: var(--line); stroke-width: 1; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; }
td.n { text-align: right; white-space: nowrap; }
td.name { min-width: 9rem; max-width: 24rem; overflow-wrap: anywhere; }
td.digest { font: 12px/1.5 monospace; overflow-wrap: anywhere; min-width: 12rem; }
th button { font: inherit; font-weight: bold; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " \25B2"; }
th[aria-sort=descending] button::after { content: " \25BC"; }
@media print {
  body { font-size: 10px; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  svg { max-width: 100%; height: auto; }
  figure, tr { break-inside: avoid; }
}
</style>
)";

// Makes the headings of sortable tables buttons.
constexpr absl::string_view kScript = R"(
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const sign = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', sign === 1 ? 'ascending' : 'descending');
      const numeric = head.hasAttribute('data-numeric');
      const key = (row) => row.cells[column].getAttribute('data-v') ?? row.cells[column].textContent;
      const rows = Array.from(table.tBodies[0].rows);
      rows.sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === '' || y === '') return (x === '') - (y === '');
        return sign * (numeric ? (Number(x) - Number(y) || 0) : x.localeCompare(y));
      });
      table.tBodies[0].append(...rows);
    });
  });
}
)";
// SHA-256 of kScript in base64.
constexpr absl::string_view kScriptDigest = "w9sqsf87BbVLRTX8pAaVjIUCnKqmzzUTFdmV/8kCosE=";

// ---- text -------------------------------------------------------------------------------------------------------------------

// Length of the well-formed UTF-8 sequence at the start of `text` and its code point; 0: it starts with none.
std::pair<size_t, uint32_t> DecodeUtf8(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) {
    return {1, first};
  }
  const size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) {
    return {0, 0};
  }
  uint32_t code = first & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) {
      return {0, 0};
    }
    code = code << 6 | (byte(i) & 0x3F);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
  return overlong || surrogate || code > 0x10FFFF ? std::pair<size_t, uint32_t>{0, 0} : std::pair{length, code};
}

// Control characters, those that turn the direction of text around (a name must not look like another), and what XML forbids.
bool IsUnfit(uint32_t code) {
  return (code < 0x20 && code != '\t' && code != '\n') || (code >= 0x7F && code <= 0x9F) || code == 0x200E || code == 0x200F ||
         (code >= 0x202A && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069) || (code & 0xFFFE) == 0xFFFE;
}

// Text for an element's content or a quoted attribute, in HTML and SVG: no more than `limit` bytes of it.
std::string Escape(absl::string_view text, size_t limit = kNameBytes) {
  std::string out;
  size_t taken = 0;
  while (taken < text.size()) {
    if (taken >= limit) {
      return out + "\xE2\x80\xA6";  // …
    }
    const auto [length, code] = DecodeUtf8(text.substr(taken));
    if (length == 0 || IsUnfit(code)) {
      absl::StrAppend(&out, kReplacement);
      taken += std::max<size_t>(length, 1);
      continue;
    }
    switch (code) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        absl::StrAppend(&out, text.substr(taken, length));
    }
    taken += length;
  }
  return out;
}

std::string Number(double value) {
  if (std::isnan(value)) {
    return "not a number";
  }
  if (std::isinf(value)) {
    return value > 0 ? "\xE2\x88\x9E" : "\xE2\x88\x92\xE2\x88\x9E";  // ∞
  }
  return absl::StrFormat("%.4g", value);
}

std::string Percent(double share) { return share > 0 && share < 1e-4 ? "< 0.01 %" : absl::StrFormat("%.2f %%", 100 * share); }

std::string Bytes(double bytes) {
  if (bytes < 1e3) {
    return absl::StrFormat("%.0f bytes", bytes);
  }
  if (bytes < 1e6) {
    return absl::StrFormat("%.1f kB", bytes / 1e3);
  }
  return bytes < 1e9 ? absl::StrFormat("%.2f MB", bytes / 1e6) : absl::StrFormat("%.2f GB", bytes / 1e9);
}

std::string Count(size_t count, absl::string_view what) { return absl::StrCat(count, " ", what, count == 1 ? "" : "s"); }

// ---- what the report says, whatever of it is there --------------------------------------------------------------------------

const Json& Part(const Json& object, const char* key) {
  static const Json& nothing = *new Json();
  if (!object.is_object()) {
    return nothing;
  }
  const auto it = object.find(key);
  return it == object.end() ? nothing : *it;
}

std::string TextOf(const Json& object, const char* key) {
  const Json& value = Part(object, key);
  return value.is_string() ? value.get<std::string>() : "";
}

std::optional<double> NumberOf(const Json& object, const char* key) {
  const Json& value = Part(object, key);
  return value.is_number() ? std::optional(value.get<double>()) : std::nullopt;
}

bool IsTrue(const Json& object, const char* key) {
  const Json& value = Part(object, key);
  return value.is_boolean() && value.get<bool>();
}

// Signal to noise in dB; a report has null where there is no noise at all.
std::optional<double> SqnrOf(const Json& error) {
  const Json& value = Part(error, "sqnr_db");
  if (value.is_null() && error.is_object() && error.contains("sqnr_db")) {
    return kInfinity;
  }
  return value.is_number() ? std::optional(value.get<double>()) : std::nullopt;
}

// For sorting: unknown comes last, like no noise at all; not a number is worse than everything.
double SqnrKey(std::optional<double> sqnr) {
  const double value = sqnr.value_or(kInfinity);
  return std::isnan(value) ? -kInfinity : value;
}

// Any value on one line, escaped.
std::string ValueText(const Json& value) {
  if (value.is_string()) {
    return Escape(value.get<std::string>());
  }
  if (value.is_number_float()) {
    return Number(value.get<double>());
  }
  return Escape(value.dump(-1, ' ', false, Json::error_handler_t::replace), kSentenceBytes);
}

// A quantizable layer of the report.
struct Layer {
  int number = 0;  // in graph order, from 1
  const Json* json = nullptr;
  std::string name;
  std::optional<double> sqnr;
  bool worst = false;  // among the first kMarked of the worst
};

constexpr int kMarked = 3;

std::vector<Layer> LayersOf(const Json& report) {
  std::vector<Layer> layers;
  const Json& list = Part(report, "layers");
  if (!list.is_array()) {
    return layers;
  }
  layers.reserve(list.size());
  for (const Json& json : list) {
    layers.push_back({.number = static_cast<int>(layers.size()) + 1,
                      .json = &json,
                      .name = TextOf(json, "name"),
                      .sqnr = SqnrOf(Part(json, "error"))});
  }
  return layers;
}

// The quantized layers, the worst first; marks the first few in `layers` and in the result.
std::vector<Layer> WorstFirst(const Json& report, std::vector<Layer>& layers) {
  std::map<std::string, size_t> ranks;
  const Json& names = Part(report, "worst_first");
  if (names.is_array()) {
    for (const Json& name : names) {
      if (name.is_string()) {
        ranks.emplace(name.get<std::string>(), ranks.size());
      }
    }
  }
  const auto rank = [&](const Layer& layer) {
    const auto it = ranks.find(layer.name);
    return std::pair(it == ranks.end() ? ranks.size() : it->second, SqnrKey(layer.sqnr));
  };
  std::vector<Layer> sorted;
  std::copy_if(layers.begin(), layers.end(), std::back_inserter(sorted),
               [](const Layer& layer) { return IsTrue(*layer.json, "quantized"); });
  std::stable_sort(sorted.begin(), sorted.end(), [&](const Layer& a, const Layer& b) { return rank(a) < rank(b); });
  for (size_t i = 0; i < sorted.size() && i < kMarked; ++i) {
    if (SqnrKey(sorted[i].sqnr) < kInfinity) {
      sorted[i].worst = true;
      layers[sorted[i].number - 1].worst = true;
    }
  }
  return sorted;
}

// ---- plots ------------------------------------------------------------------------------------------------------------------

// A plot with one column per layer, as wide as its columns need: the page scrolls it sideways.
class ColumnPlot {
 public:
  // `low` and `high`: ends of the vertical axis, low < high.
  ColumnPlot(size_t columns, double low, double high)
      : columns_(columns),
        low_(low),
        high_(high),
        step_(columns <= 24   ? 24
              : columns <= 80 ? 12
                              : 7) {}

  void GridLine(double value, absl::string_view label) {
    absl::SubstituteAndAppend(&body_, "<line class=\"grid\" x1=\"$0\" y1=\"$2\" x2=\"$1\" y2=\"$2\" />", kLeft,
                              Fixed(Width() - 4), Y(value));
    absl::SubstituteAndAppend(&body_, "<text x=\"$0\" y=\"$1\" text-anchor=\"end\">$2</text>\n", kLeft - 6,
                              Fixed(Height(value) + 4), label);
  }

  // The number below a column, where there is room for it.
  void Label(size_t column, int number) {
    const size_t every = step_ >= 24 ? 1 : step_ >= 12 ? 5 : 10;
    if (column % every == 0) {
      absl::SubstituteAndAppend(&body_, "<text x=\"$0\" y=\"$1\" text-anchor=\"middle\">$2</text>\n", X(column, 0.5),
                                kTop + kPlot + 18, number);
    }
  }

  // All that belongs to one layer, with a text for the pointer.
  void BeginColumn(absl::string_view escaped_title) { absl::StrAppend(&body_, "<g><title>", escaped_title, "</title>"); }
  void EndColumn() { absl::StrAppend(&body_, "</g>\n"); }

  // A bar from one value to another over the middle `share` of the column.
  void Bar(size_t column, double from, double to, double share, absl::string_view css) {
    const double top = Height(std::max(from, to));
    const double bottom = Height(std::min(from, to));
    absl::SubstituteAndAppend(&body_, "<rect class=\"$0\" x=\"$1\" y=\"$2\" width=\"$3\" height=\"$4\" />", css,
                              X(column, (1 - share) / 2), Fixed(top), Fixed(step_ * share), Fixed(std::max(bottom - top, 1.0)));
  }

  void Span(size_t column, double from, double to, absl::string_view css) {
    absl::SubstituteAndAppend(&body_, "<line class=\"$0\" x1=\"$1\" y1=\"$2\" x2=\"$1\" y2=\"$3\" />", css, X(column, 0.5),
                              Y(from), Y(to));
  }

  std::string Figure(absl::string_view caption) const {
    return absl::Substitute(
        "<figure><div class=\"scroll\"><svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"$0\" height=\"$1\" "
        "viewBox=\"0 0 $0 $1\">\n$2</svg></div>\n<figcaption>$3</figcaption></figure>\n",
        Fixed(Width()), kTop + kPlot + 26, body_, caption);
  }

 private:
  static constexpr int kLeft = 56;
  static constexpr int kTop = 10;
  static constexpr int kPlot = 180;

  static std::string Fixed(double value) { return absl::StrFormat("%.1f", value); }
  double Width() const { return kLeft + 8 + step_ * static_cast<double>(std::max<size_t>(columns_, 8)); }
  double Height(double value) const { return kTop + kPlot * (high_ - std::clamp(value, low_, high_)) / (high_ - low_); }
  std::string Y(double value) const { return Fixed(Height(value)); }
  std::string X(size_t column, double part) const { return Fixed(kLeft + step_ * (static_cast<double>(column) + part)); }

  size_t columns_;
  double low_;
  double high_;
  double step_;
  std::string body_;
};

std::string TitleOf(const Layer& layer) { return absl::StrCat(layer.number, " ", Escape(layer.name)); }

absl::string_view BarClass(const Layer& layer) { return layer.worst ? "mark" : "bar"; }

std::string SqnrPlot(const std::vector<Layer>& layers) {
  constexpr double kLowest = -100;
  constexpr double kHighest = 200;
  std::vector<Layer> shown;
  double low = 0;
  double high = 10;
  for (const Layer& layer : layers) {
    if (layer.sqnr.has_value() && !std::isnan(*layer.sqnr)) {
      shown.push_back(layer);
      if (std::isfinite(*layer.sqnr)) {
        low = std::max(kLowest, std::min(low, 10 * std::floor(*layer.sqnr / 10)));
        high = std::min(kHighest, std::max(high, 10 * std::ceil(*layer.sqnr / 10)));
      }
    }
  }
  if (shown.empty()) {
    return "";
  }
  ColumnPlot plot(shown.size(), low, high);
  const double line = 10 * std::max(1.0, std::ceil((high - low) / 80));
  for (double value = line * std::ceil(low / line); value <= high; value += line) {
    plot.GridLine(value, absl::StrFormat("%.0f dB", value));
  }
  for (size_t i = 0; i < shown.size(); ++i) {
    plot.BeginColumn(absl::StrCat(TitleOf(shown[i]), ": ", Number(*shown[i].sqnr), " dB"));
    plot.Bar(i, 0, *shown[i].sqnr, 0.7, BarClass(shown[i]));
    plot.EndColumn();
    plot.Label(i, shown[i].number);
  }
  return plot.Figure(
      "Signal to quantization noise at each layer's output, in graph order; higher is better, and 6 dB are one bit. The numbers "
      "are "
      "those of the table; the worst layers are marked. A bar over the whole height: no difference at all.");
}

// Observed and representable range of a layer's input.
struct Ranges {
  double minimum;
  double maximum;
  double clip_minimum;
  double clip_maximum;
};

std::optional<Ranges> RangesOf(const Layer& layer) {
  const Json& activation = Part(*layer.json, "activation");
  const auto minimum = NumberOf(activation, "minimum");
  const auto maximum = NumberOf(activation, "maximum");
  const auto clip_minimum = NumberOf(activation, "clip_minimum");
  const auto clip_maximum = NumberOf(activation, "clip_maximum");
  if (!minimum || !maximum || !clip_minimum || !clip_maximum) {
    return std::nullopt;
  }
  const Ranges ranges{*minimum, *maximum, *clip_minimum, *clip_maximum};
  const bool finite = std::isfinite(ranges.minimum) && std::isfinite(ranges.maximum) && std::isfinite(ranges.clip_minimum) &&
                      std::isfinite(ranges.clip_maximum);
  return finite ? std::optional(ranges) : std::nullopt;
}

std::string RangeText(double low, double high) { return absl::StrCat(Number(low), " to ", Number(high)); }

std::string RangePlot(const std::vector<Layer>& layers) {
  constexpr double kEnd = 2;
  std::vector<std::pair<Layer, Ranges>> shown;
  for (const Layer& layer : layers) {
    const auto ranges = RangesOf(layer);
    if (ranges.has_value() && std::max(std::abs(ranges->clip_minimum), std::abs(ranges->clip_maximum)) > 0) {
      shown.emplace_back(layer, *ranges);
    }
  }
  if (shown.empty()) {
    return "";
  }
  ColumnPlot plot(shown.size(), -kEnd, kEnd);
  for (const auto& [value, label] : std::vector<std::pair<double, const char*>>{{2, "200 %"},
                                                                                {1, "100 %"},
                                                                                {0, "0"},
                                                                                {-1,
                                                                                 "\xE2\x88\x92"
                                                                                 "100 %"},
                                                                                {-2,
                                                                                 "\xE2\x88\x92"
                                                                                 "200 %"}}) {
    plot.GridLine(value, label);
  }
  for (size_t i = 0; i < shown.size(); ++i) {
    const auto& [layer, ranges] = shown[i];
    const double unit = std::max(std::abs(ranges.clip_minimum), std::abs(ranges.clip_maximum));
    plot.BeginColumn(absl::StrCat(TitleOf(layer), ": observed ", RangeText(ranges.minimum, ranges.maximum), ", represented ",
                                  RangeText(ranges.clip_minimum, ranges.clip_maximum)));
    plot.Bar(i, ranges.clip_minimum / unit, ranges.clip_maximum / unit, 0.7, "box");
    plot.Span(i, ranges.minimum / unit, ranges.maximum / unit, layer.worst ? "span mark" : "span");
    plot.EndColumn();
    plot.Label(i, layer.number);
  }
  return plot.Figure(
      "Range of each layer's input. Box: what the quantizer can represent, each column scaled to it; line: what the calibration "
      "data "
      "had. Where the line leaves the box, values are saturated; where it is much shorter, precision is wasted. Lines end at "
      "twice "
      "the box; the table has the numbers.");
}

std::string SaturationPlot(const std::vector<Layer>& layers) {
  std::vector<std::pair<Layer, double>> shown;
  double high = 0;
  for (const Layer& layer : layers) {
    const auto share = NumberOf(Part(*layer.json, "activation"), "saturated_share");
    if (share.has_value() && *share >= 0 && *share <= 1) {
      shown.emplace_back(layer, *share);
      high = std::max(high, *share);
    }
  }
  if (shown.empty()) {
    return "";
  }
  // The next of 1, 2, 5 times a power of ten.
  const double ten = std::pow(10, std::floor(std::log10(std::max(high, 1e-4))));
  high = high <= ten ? ten : high <= 2 * ten ? 2 * ten : high <= 5 * ten ? 5 * ten : 10 * ten;
  ColumnPlot plot(shown.size(), 0, high);
  for (int i = 0; i <= 4; ++i) {
    plot.GridLine(high * i / 4, absl::StrFormat("%.3g %%", 100 * high * i / 4));
  }
  for (size_t i = 0; i < shown.size(); ++i) {
    const auto& [layer, share] = shown[i];
    plot.BeginColumn(absl::StrCat(TitleOf(layer), ": ", Escape(Percent(share))));
    if (share > 0) {
      plot.Bar(i, 0, share, 0.7, BarClass(layer));
    }
    plot.EndColumn();
    plot.Label(i, layer.number);
  }
  return plot.Figure("Share of the values of each layer's input that lay outside of the range and were saturated.");
}

// ---- tables -----------------------------------------------------------------------------------------------------------------

std::string TextCell(absl::string_view escaped, absl::string_view css = "") {
  return absl::StrCat("<td", css.empty() ? "" : absl::StrCat(" class=\"", css, "\""), ">", escaped, "</td>");
}

// What sortable tables compare, as JavaScript reads numbers.
std::string SortKey(double value) {
  return std::isinf(value) ? (value > 0 ? "Infinity" : "-Infinity") : absl::StrFormat("%.9g", value);
}

std::string NumberCell(std::optional<double> value, const std::function<std::string(double)>& text = Number) {
  if (!value.has_value() || std::isnan(*value)) {
    return absl::StrCat("<td class=\"n\" data-v=\"\">", value.has_value() ? Number(*value) : "", "</td>");
  }
  return absl::StrCat("<td class=\"n\" data-v=\"", SortKey(*value), "\">", Escape(text(*value)), "</td>");
}

struct Column {
  absl::string_view title;
  bool numeric = false;
};

std::string Table(const std::vector<Column>& columns, const std::vector<std::string>& rows, bool sortable) {
  std::string out = absl::StrCat("<div class=\"scroll\"><table", sortable ? " class=\"sortable\"" : "", ">\n<thead><tr>");
  for (const Column& column : columns) {
    absl::StrAppend(&out, column.numeric ? "<th data-numeric=\"\">" : "<th>", column.title, "</th>");
  }
  absl::StrAppend(&out, "</tr></thead>\n<tbody>\n");
  for (const std::string& row : rows) {
    absl::StrAppend(&out, "<tr>", row, "</tr>\n");
  }
  return absl::StrCat(out, "</tbody></table></div>\n");
}

std::string Section(absl::string_view id, absl::string_view title, absl::string_view content) {
  return content.empty() ? "" : absl::Substitute("<section id=\"$0\">\n<h2>$1</h2>\n$2</section>\n", id, title, content);
}

std::string ErrorCells(const Json& error) {
  return absl::StrCat(NumberCell(SqnrOf(error)),
                      NumberCell(NumberOf(error, "cosine"), [](double value) { return absl::StrFormat("%.6f", value); }),
                      NumberCell(NumberOf(error, "max_error")), NumberCell(NumberOf(error, "mean_error")));
}

std::string ShapeText(const Json& dims) {
  std::vector<std::string> parts;
  if (dims.is_array()) {
    for (const Json& dim : dims) {
      parts.push_back(ValueText(dim));
    }
  }
  return absl::StrJoin(parts, "\xC3\x97");  // ×
}

std::string LayerTable(const std::vector<Layer>& worst_first) {
  std::vector<std::string> rows;
  rows.reserve(worst_first.size());
  for (const Layer& layer : worst_first) {
    const Json& json = *layer.json;
    const Json& activation = Part(json, "activation");
    const auto ranges = RangesOf(layer);
    const std::string type = TextOf(json, "type");
    std::string row = absl::StrCat(NumberCell(layer.number), TextCell(Escape(layer.name), "name"),
                                   TextCell(Escape(type.empty() ? TextOf(json, "op_type") : type)));
    absl::StrAppend(&row, ErrorCells(Part(json, "error")), NumberCell(NumberOf(activation, "saturated_share"), Percent),
                    "<td class=\"n\" data-v=\"", ranges ? SortKey(ranges->maximum - ranges->minimum) : "", "\">",
                    ranges ? RangeText(ranges->minimum, ranges->maximum) : "", "</td><td class=\"n\" data-v=\"",
                    ranges ? SortKey(ranges->clip_maximum - ranges->clip_minimum) : "", "\">",
                    ranges ? RangeText(ranges->clip_minimum, ranges->clip_maximum) : "", "</td>");
    absl::StrAppend(&row, NumberCell(NumberOf(json, "activation_bits")), TextCell(Escape(TextOf(json, "activation_algorithm"))),
                    NumberCell(NumberOf(json, "scale_d")), NumberCell(NumberOf(json, "offset_d")),
                    NumberCell(NumberOf(json, "weight_bits")), TextCell(Escape(TextOf(json, "weight_algorithm"))),
                    NumberCell(NumberOf(json, "weight_scales")), TextCell(ShapeText(Part(json, "weight_shape"))));
    rows.push_back(std::move(row));
  }
  if (rows.empty()) {
    return "";
  }
  return Table({{"#", true},
                {"layer"},
                {"type"},
                {"SQNR, dB", true},
                {"cosine", true},
                {"max error", true},
                {"mean error", true},
                {"saturated", true},
                {"observed", true},
                {"represented", true},
                {"input bits", true},
                {"algorithm"},
                {"scale_d", true},
                {"offset_d", true},
                {"weight bits", true},
                {"algorithm"},
                {"scales", true},
                {"weight"}},
               rows, true);
}

// Layers by the reason why they were left alone, reasons in the order in which they appear first.
std::string LeftAlone(const std::vector<Layer>& layers) {
  std::vector<std::pair<std::string, std::vector<std::string>>> reasons;
  for (const Layer& layer : layers) {
    if (IsTrue(*layer.json, "quantized")) {
      continue;
    }
    const std::string reason = TextOf(*layer.json, "reason");
    auto it = std::find_if(reasons.begin(), reasons.end(), [&](const auto& entry) { return entry.first == reason; });
    if (it == reasons.end()) {
      it = reasons.insert(reasons.end(), {reason, {}});
    }
    it->second.push_back(
        absl::StrCat(Escape(layer.name), " <span class=\"soft\">", Escape(TextOf(*layer.json, "op_type")), "</span>"));
  }
  std::vector<std::string> rows;
  rows.reserve(reasons.size());
  for (const auto& [reason, names] : reasons) {
    rows.push_back(absl::StrCat(TextCell(Escape(reason, kSentenceBytes), "name"), NumberCell(names.size()), "<td class=\"name\">",
                                absl::StrJoin(names, "<br />"), "</td>"));
  }
  return rows.empty() ? "" : Table({{"reason"}, {"layers", true}, {"which"}}, rows, false);
}

std::string Sentences(const Json& list) {
  std::string out;
  if (list.is_array()) {
    for (const Json& sentence : list) {
      absl::StrAppend(&out, "<li>",
                      sentence.is_string() ? Escape(sentence.get<std::string>(), kSentenceBytes) : ValueText(sentence),
                      "</li>\n");
    }
  }
  return out.empty() ? "" : absl::StrCat("<ul>\n", out, "</ul>\n");
}

std::string FileTable(const Json& files) {
  std::vector<std::string> rows;
  if (files.is_array()) {
    for (const Json& file : files) {
      rows.push_back(absl::StrCat(TextCell(Escape(TextOf(file, "name")), "name"), NumberCell(NumberOf(file, "size_bytes"), Bytes),
                                  TextCell(Escape(TextOf(file, "sha256")), "digest")));
    }
  }
  return rows.empty() ? "" : Table({{"file"}, {"size", true}, {"SHA-256"}}, rows, false);
}

std::string KeyValueTable(const std::vector<std::pair<std::string, const Json*>>& parts) {
  std::vector<std::string> rows;
  for (const auto& [prefix, object] : parts) {
    if (!object->is_object()) {
      continue;
    }
    for (const auto& [key, value] : object->items()) {
      rows.push_back(absl::StrCat(TextCell(absl::StrCat(prefix, Escape(key))), "<td class=\"name\">", ValueText(value), "</td>"));
    }
  }
  return rows.empty() ? "" : Table({{"what"}, {"value"}}, rows, false);
}

std::string OutputTable(const Json& outputs) {
  std::vector<std::string> rows;
  if (outputs.is_array()) {
    for (const Json& output : outputs) {
      rows.push_back(absl::StrCat(TextCell(Escape(TextOf(output, "name")), "name"), ErrorCells(output)));
    }
  }
  return rows.empty()
             ? ""
             : Table({{"output"}, {"SQNR, dB", true}, {"cosine", true}, {"max error", true}, {"mean error", true}}, rows, false);
}

// ---- the top ----------------------------------------------------------------------------------------------------------------

// Name of the model that was compressed: the first input that looks like one.
std::string ModelName(const Json& report) {
  const Json& inputs = Part(report, "inputs");
  if (inputs.is_array()) {
    for (const Json& input : inputs) {
      if (const std::string name = TextOf(input, "name"); absl::EndsWith(name, ".onnx")) {
        return name;
      }
    }
  }
  return "";
}

std::string SizeBars(const Json& sizes) {
  std::vector<std::pair<const char*, double>> bars;
  double largest = 0;
  for (const auto& [key, label] : std::vector<std::pair<const char*, const char*>>{{"model_bytes", "float model"},
                                                                                   {"modified_bytes", "modified model"},
                                                                                   {"deploy_bytes", "deploy model"},
                                                                                   {"fake_quant_bytes", "fake-quant model"}}) {
    if (const auto bytes = NumberOf(sizes, key); bytes.has_value() && *bytes > 0 && std::isfinite(*bytes)) {
      bars.emplace_back(label, *bytes);
      largest = std::max(largest, *bytes);
    }
  }
  if (bars.empty()) {
    return "";
  }
  std::string body;
  for (size_t i = 0; i < bars.size(); ++i) {
    const auto& [label, bytes] = bars[i];
    const size_t top = 36 * i;
    absl::SubstituteAndAppend(
        &body, "<text x=\"0\" y=\"$0\">$1: $2</text><rect class=\"bar\" x=\"0\" y=\"$3\" width=\"$4\" height=\"10\" />\n",
        top + 14, label, Bytes(bytes), top + 20, absl::StrFormat("%.1f", std::max(1.0, 320 * (bytes / largest))));
  }
  return absl::Substitute(
      "<div class=\"sizes\"><svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 320 $0\">\n$1</svg></div>\n",
      36 * bars.size(), body);
}

std::string Fact(absl::string_view value, absl::string_view what) {
  return absl::StrCat("<li><b>", value, "</b>", what, "</li>\n");
}

std::string Facts(const Json& report, const std::vector<Layer>& layers) {
  std::string out;
  const Json& outputs = Part(report, "outputs_error");
  if (outputs.is_array() && !outputs.empty()) {
    // The worst output stands for all.
    const Json& worst = *std::min_element(outputs.begin(), outputs.end(),
                                          [](const Json& a, const Json& b) { return SqnrKey(SqnrOf(a)) < SqnrKey(SqnrOf(b)); });
    const std::string of = absl::StrCat(" of ", outputs.size() == 1 ? "the output" : "the worst output");
    if (const auto value = SqnrOf(worst)) {
      absl::StrAppend(&out, Fact(absl::StrCat(Number(*value), " dB"), absl::StrCat("signal to noise", of)));
    }
    if (const auto cosine = NumberOf(worst, "cosine")) {
      absl::StrAppend(&out, Fact(absl::StrFormat("%.5f", *cosine), absl::StrCat("cosine", of)));
    }
    if (const auto error = NumberOf(worst, "max_error")) {
      absl::StrAppend(&out, Fact(Number(*error), absl::StrCat("largest error", of)));
    }
  }
  const Json& sizes = Part(report, "sizes");
  const auto before = NumberOf(sizes, "model_bytes");
  const auto after = NumberOf(sizes, "deploy_bytes");
  if (before.has_value() && after.has_value() && *before > 0) {
    absl::StrAppend(&out,
                    Fact(absl::StrFormat("%.0f %%", 100 * *after / *before), "size of the deploy model, of the float model"));
  }
  if (!layers.empty()) {
    const auto quantized =
        std::count_if(layers.begin(), layers.end(), [](const Layer& l) { return IsTrue(*l.json, "quantized"); });
    absl::StrAppend(&out, Fact(absl::StrCat(quantized, " of ", layers.size()), "layers quantized"));
  }
  for (const auto& [key, what] :
       std::vector<std::pair<const char*, const char*>>{{"warnings", "warning"}, {"deviations", "deviation"}}) {
    if (const Json& list = Part(report, key); list.is_array() && !list.empty()) {
      absl::StrAppend(&out, Fact(absl::StrCat(list.size()), absl::StrCat(what, list.size() == 1 ? "" : "s")));
    }
  }
  return out.empty() ? "" : absl::StrCat("<ul class=\"facts\">\n", out, "</ul>\n");
}

std::string ComparedOn(const Json& comparison) {
  const auto samples = NumberOf(comparison, "samples");
  const auto batches = NumberOf(comparison, "batches");
  if (!samples.has_value() || !batches.has_value()) {
    return "";
  }
  return absl::StrCat("<p class=\"soft\">Float and fake-quant model compared on ", Count(static_cast<size_t>(*samples), "sample"),
                      " in ", *batches, *batches == 1 ? " batch" : " batches", " of the calibration data.</p>\n");
}

}  // namespace

std::string ReportHtml(const Json& report) {
  std::vector<Layer> layers = LayersOf(report);
  const std::vector<Layer> worst_first = WorstFirst(report, layers);
  const std::string function = Escape(TextOf(report, "function"));
  const std::string model = Escape(ModelName(report));
  const std::string title = absl::StrCat(function.empty() ? "modelpress" : function, model.empty() ? "" : ": ", model);

  std::string page = absl::StrCat(absl::Substitute(kHead, kScriptDigest), "<title>", title, "</title>\n", kStyle,
                                  "</head>\n<body>\n<main>\n<header>\n<h1>", title, "</h1>\n",
                                  IsTrue(report, "validate_only") ? "<p>Everything was checked and nothing written.</p>\n" : "",
                                  Facts(report, layers), SizeBars(Part(report, "sizes")), "</header>\n");
  if (IsTrue(report, "reference_defects")) {
    absl::StrAppend(&page, "<p>The bytes of the reference were asked for where it is wrong.</p>\n");
  }
  const Json& comparison = Part(report, "comparison");
  const Json& calibration = Part(report, "calibration");
  const Json& configuration = Part(report, "configuration");
  const Json& libraries = Part(report, "libraries");
  const Json engine = Part(report, "engine_version").is_null() ? Json() : Json{{"modelpress", Part(report, "engine_version")}};
  const std::string plots = absl::StrCat(SqnrPlot(layers), RangePlot(layers), SaturationPlot(layers));
  absl::StrAppend(&page, Section("warnings", "Warnings", Sentences(Part(report, "warnings"))));
  const std::string outputs = OutputTable(Part(report, "outputs_error"));
  absl::StrAppend(&page, Section("outputs_error", "Error at the model's outputs",
                                 outputs.empty() ? "" : absl::StrCat(ComparedOn(comparison), outputs)));
  absl::StrAppend(&page, Section("plots", "Layers in graph order", plots));
  absl::StrAppend(&page, Section("layers", "Quantized layers, the worst first", LayerTable(worst_first)));
  absl::StrAppend(&page, Section("left_alone", "Layers left alone", LeftAlone(layers)));
  absl::StrAppend(&page, Section("deviations", "Other than the reference", Sentences(Part(report, "deviations"))));
  absl::StrAppend(&page,
                  Section("settings", "Calibration and configuration",
                          KeyValueTable({{"calibration: ", &calibration}, {"comparison: ", &comparison}, {"", &configuration}})));
  absl::StrAppend(&page, Section("inputs", "Files read", FileTable(Part(report, "inputs"))));
  absl::StrAppend(&page, Section("outputs", "Files written", FileTable(Part(report, "outputs"))));
  absl::StrAppend(&page, Section("versions", "Versions", KeyValueTable({{"", &engine}, {"", &libraries}})));
  return absl::StrCat(page, "</main>\n<script>", kScript, "</script>\n</body>\n</html>\n");
}

}  // namespace modelpress::engine
