// The report of a call as one HTML page for people: tables and plots, nothing loaded from elsewhere (docs/report.md).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_REPORT_HTML_H_
#define MODELPRESS_ENGINE_FUNCTIONS_REPORT_HTML_H_

#include <string>

#include "nlohmann/json.hpp"

namespace modelpress::engine {

// `report` as docs/report.md describes it; parts that a report lacks are left out. Names in it are the caller's and are escaped.
std::string ReportHtml(const nlohmann::ordered_json& report);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_REPORT_HTML_H_
