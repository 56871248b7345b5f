// The cases of golden/config, and what tests say about their errors.
#ifndef MODELPRESS_TESTS_GOLDEN_CONFIG_CASES_H_
#define MODELPRESS_TESTS_GOLDEN_CONFIG_CASES_H_

#include <algorithm>
#include <filesystem>
#include <ostream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/golden/files.h"

namespace modelpress::engine {

inline const std::filesystem::path kConfigCases = std::filesystem::path(MODELPRESS_TEST_DATA) / "golden" / "config";

struct ConfigCase {
  std::string name;
  nlohmann::json info;

  std::filesystem::path folder() const { return kConfigCases / name; }
  std::filesystem::path model() const { return folder() / std::string(info["model"]); }
  bool succeeds() const { return info["result"] == "success"; }
  bool has(const std::string& file) const { return std::filesystem::exists(folder() / file); }
  std::string kind() const { return info["kind"]; }
};

inline void PrintTo(const ConfigCase& golden, std::ostream* out) { *out << golden.name; }
inline std::string NameOf(const testing::TestParamInfo<ConfigCase>& info) { return info.param.name; }

inline std::vector<ConfigCase> ConfigCasesOf(const std::set<std::string>& kinds, const std::set<std::string>& except = {},
                                             bool successes_only = false) {
  std::vector<ConfigCase> cases;
  for (const auto& entry : std::filesystem::directory_iterator(kConfigCases)) {
    if (std::filesystem::exists(entry.path() / "case.json")) {
      ConfigCase golden = {entry.path().filename().string(), nlohmann::json::parse(ReadFile(entry.path() / "case.json"))};
      if (kinds.contains(golden.kind()) && !except.contains(golden.name) && (golden.succeeds() || !successes_only)) {
        cases.push_back(std::move(golden));
      }
    }
  }
  std::sort(cases.begin(), cases.end(), [](const ConfigCase& a, const ConfigCase& b) { return a.name < b.name; });
  return cases;
}

// Everything that tells who is to blame: "CONFIG_VALUE key=batch_num in.cfg:1:1 layer=conv1".
inline std::string Blame(const absl::Status& status) {
  const ErrorPlace place = PlaceOf(status);
  std::string text = v1::Reason_Name(ReasonOf(status));
  const auto metadata = MetadataOf(status);
  if (auto key = metadata.find("key"); key != metadata.end()) {
    absl::StrAppend(&text, " key=", key->second);
  }
  if (!place.file.empty()) {
    absl::StrAppend(&text, " ", place.file);
  }
  if (place.line > 0) {
    absl::StrAppend(&text, ":", place.line, ":", place.column);
  }
  if (!place.layer.empty()) {
    absl::StrAppend(&text, " layer=", place.layer);
  }
  return text;
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_GOLDEN_CONFIG_CASES_H_
