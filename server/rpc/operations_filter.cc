#include "server/rpc/operations_filter.h"

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "server/rpc/names.h"

namespace modelpress::server {
namespace {

absl::Status BadFilter(absl::string_view message) {
  return MakeError(v1::REQUEST_INVALID,
                   absl::StrCat(message,
                                "; terms are `workspace = \"workspaces/x\"`, `method = \"SaveModel\"`, `state = RUNNING`, "
                                "`done = true`, joined by \" AND \""),
                   {.field = "filter"});
}

// `"text"` -> text.
absl::StatusOr<std::string> Quoted(const std::string& key, absl::string_view value) {
  if (value.size() < 3 || !absl::ConsumePrefix(&value, "\"") || !absl::ConsumeSuffix(&value, "\"") ||
      value.find('"') != absl::string_view::npos) {
    return BadFilter(absl::StrCat("the value of '", key, "' is not a text in double quotes"));
  }
  return std::string(value);
}

absl::Status AddTerm(absl::string_view term, JobFilter& filter) {
  const std::vector<absl::string_view> sides = absl::StrSplit(term, absl::MaxSplits('=', 1));
  if (sides.size() != 2) {
    return BadFilter("a term has no '='");
  }
  const std::string key(absl::StripAsciiWhitespace(sides[0]));
  const absl::string_view value = absl::StripAsciiWhitespace(sides[1]);
  auto once = [&key](bool is_set) { return is_set ? BadFilter(absl::StrCat("'", key, "' comes twice")) : absl::OkStatus(); };
  if (key == "workspace") {
    MP_RETURN_IF_ERROR(once(filter.workspace.has_value()));
    MP_ASSIGN_OR_RETURN(const std::string name, Quoted(key, value));
    MP_RETURN_IF_ERROR(ParseWorkspaceName(name, "filter").status());
    filter.workspace = name;
  } else if (key == "method") {
    MP_RETURN_IF_ERROR(once(filter.method.has_value()));
    MP_ASSIGN_OR_RETURN(filter.method, Quoted(key, value));
  } else if (key == "state") {
    MP_RETURN_IF_ERROR(once(filter.state.has_value()));
    v1::OperationMetadata::State state = v1::OperationMetadata::STATE_UNSPECIFIED;
    if (!v1::OperationMetadata::State_Parse(std::string(value), &state) || state == v1::OperationMetadata::STATE_UNSPECIFIED) {
      return BadFilter("the value of 'state' is not PENDING, RUNNING, CANCELLING, SUCCEEDED, FAILED or CANCELLED");
    }
    filter.state = state;
  } else if (key == "done") {
    MP_RETURN_IF_ERROR(once(filter.done.has_value()));
    if (value != "true" && value != "false") {
      return BadFilter("the value of 'done' is not true or false");
    }
    filter.done = value == "true";
  } else {
    return BadFilter("a term begins with none of the known names");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JobFilter> ParseFilter(const std::string& filter) {
  JobFilter parsed;
  if (absl::StripAsciiWhitespace(filter).empty()) {
    return parsed;
  }
  for (absl::string_view term : absl::StrSplit(filter, " AND ")) {
    MP_RETURN_IF_ERROR(AddTerm(term, parsed));
  }
  return parsed;
}

}  // namespace modelpress::server
