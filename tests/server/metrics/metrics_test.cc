#include "server/metrics/metrics.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "tests/server/testing/daemon_fixture.h"

namespace modelpress::server {
namespace {

// What Prometheus gets.
std::string Scrape(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n";
  EXPECT_EQ(send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t count = 1; count > 0;) {
    count = recv(fd, buffer, sizeof(buffer), 0);
    answer.append(buffer, static_cast<size_t>(std::max<ssize_t>(count, 0)));
  }
  close(fd);
  const size_t body = answer.find("\r\n\r\n");
  EXPECT_NE(body, std::string::npos) << answer;
  return answer.substr(body + 4);
}

struct Exposed {
  std::map<std::string, std::string> types;  // by name of the family
  std::set<std::string> helped;
  std::map<std::string, double> samples;  // by name with labels
};

// The text format, read strictly.
Exposed Parse(const std::string& text) {
  Exposed exposed;
  static const auto& sample = *new std::regex(R"re(([a-z_]+)(\{[^}]*\})? (\S+))re");
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipWhitespace())) {
    const std::vector<std::string> words = absl::StrSplit(line, absl::MaxSplits(' ', 3));
    std::smatch match;
    const std::string copy(line);
    if (absl::StartsWith(line, "# HELP ")) {
      EXPECT_EQ(words.size(), 4) << line;
      exposed.helped.insert(words[2]);
    } else if (absl::StartsWith(line, "# TYPE ")) {
      EXPECT_TRUE(exposed.types.emplace(words[2], words[3]).second) << line << " comes twice";
    } else if (std::regex_match(copy, match, sample)) {
      exposed.samples[absl::StrCat(match[1].str(), match[2].str())] = std::stod(match[3]);
    } else {
      ADD_FAILURE() << line;
    }
  }
  return exposed;
}

// Names in the first column of the table below "## Metrics" of docs/server.md.
std::set<std::string> Documented() {
  std::ifstream file(MODELPRESS_TEST_DATA "/../docs/server.md");
  std::set<std::string> names;
  bool is_inside = false;
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, "## ")) {
      is_inside = line == "## Metrics";
    }
    static const auto& name = *new std::regex("`((?:modelpress|process)_[a-z_]+)`");
    const std::string cell = is_inside && absl::StartsWith(line, "|") ? line.substr(0, line.find('|', 1)) : "";
    for (std::sregex_iterator it(cell.begin(), cell.end(), name); it != std::sregex_iterator(); ++it) {
      names.insert((*it)[1]);
    }
  }
  return names;
}

class MetricsTest : public DaemonFixture {
 protected:
  void StartWithMetrics() {
    DaemonOptions options = Options();
    options.metrics_listen = "127.0.0.1:0";
    Start(options);
  }
  Exposed Now() { return Parse(Scrape(daemon_->metrics_port())); }
};

TEST_F(MetricsTest, EveryMetricHasAUnitAHelpATypeAndALineInTheDocs) {
  StartWithMetrics();
  Metrics& metrics = daemon_->metrics();
  // What has labels shows up once it was counted.
  metrics.OperationEnded("SaveModel", v1::OperationMetadata::SUCCEEDED, absl::Seconds(1));
  metrics.OperationStarted("SaveModel", absl::Seconds(1));
  metrics.ChildEnded("SaveModel", 1);
  metrics.ChildDied("SIGSEGV");
  metrics.OperationRetried("lost");
  metrics.StoreFailed(v1::STORAGE_FULL);
  metrics.QuotaRejected("bytes");
  metrics.SetIsolation("seccomp", true);
  metrics.AuthFailed("missing");
  metrics.ReloadFailed("tls");
  metrics.TlsCertificateExpires(absl::UnixEpoch());
  metrics.SetStorageBytes("blobs", 1);
  MakeWorkspace("w1");
  Exposed exposed = Now();
  while (!exposed.types.contains("modelpress_rpc_duration_seconds")) {  // a call is counted some moments after its answer
    exposed = Now();
  }
  std::set<std::string> names;
  // Things that are counted as they stand: no unit to name.
  const std::set<std::string> counts = {
      "modelpress_operations", "modelpress_workers", "modelpress_workers_busy",    "modelpress_rpcs_in_flight",
      "process_open_fds",      "process_max_fds",    "modelpress_child_isolation", "modelpress_admission_waiting"};
  for (const auto& [name, type] : exposed.types) {
    if (absl::StartsWith(name, "exposer_")) {
      continue;  // prometheus-cpp's own
    }
    names.insert(name);
    EXPECT_TRUE(exposed.helped.contains(name)) << name;
    EXPECT_EQ(type == "counter", absl::EndsWith(name, "_total")) << name;
    const bool has_unit = absl::EndsWith(name, "_seconds") || absl::EndsWith(name, "_bytes") || absl::EndsWith(name, "_total") ||
                          absl::EndsWith(name, "_info");
    EXPECT_NE(has_unit, counts.contains(name)) << name;
  }
  names.insert("modelpress_operations");  // there is none yet
  EXPECT_EQ(names, Documented());
}

TEST_F(MetricsTest, CallersMakeUpNoLabels) {
  StartWithMetrics();
  grpc::GenericStub stub(channel_);
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::Slice empty;
    const auto call =
        stub.PrepareUnaryCall(&context, absl::StrCat("/made.up.Service/Method", i), grpc::ByteBuffer(&empty, 1), &queue);
    call->StartCall();
    grpc::ByteBuffer answer;
    grpc::Status status;
    call->Finish(&answer, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  }
  MakeWorkspace("w1");
  // A call is counted some moments after it was answered.
  bool is_seen = false;
  while (!is_seen) {
    for (const auto& [sample, value] : Now().samples) {
      EXPECT_EQ(sample.find("made.up"), std::string::npos) << sample;
      is_seen =
          is_seen ||
          sample == "modelpress_rpc_duration_seconds_count{code=\"OK\",method=\"/modelpress.v1.Workspaces/CreateWorkspace\"}" ||
          sample == "modelpress_rpc_duration_seconds_count{method=\"/modelpress.v1.Workspaces/CreateWorkspace\",code=\"OK\"}";
    }
  }
}

TEST_F(MetricsTest, GaugesGoBack) {
  StartWithMetrics();
  MakeWorkspace("w1");
  Metrics& metrics = daemon_->metrics();
  metrics.SetWorkers(3);
  metrics.WorkerBusy(true);
  metrics.WorkerBusy(true);
  metrics.WorkerBusy(false);
  const Exposed exposed = Now();
  EXPECT_EQ(exposed.samples.at("modelpress_workers"), 3);
  EXPECT_EQ(exposed.samples.at("modelpress_workers_busy"), 1);
  EXPECT_EQ(exposed.samples.at("modelpress_oldest_pending_seconds"), 0);
  EXPECT_EQ(exposed.samples.at(absl::StrCat("modelpress_build_info{version=\"", MODELPRESS_VERSION, "\"}")), 1);
  EXPECT_GT(exposed.samples.at("process_resident_memory_bytes"), 1e6);
  EXPECT_GT(exposed.samples.at("process_start_time_seconds"), 1e9);
  EXPECT_GT(exposed.samples.at("process_open_fds"), 3);
}

TEST_F(MetricsTest, ErrorsOfTheStoresByReasonAndNoOthers) {
  StartWithMetrics();
  daemon_->metrics().StoreFailed(v1::STORAGE_ERROR);
  daemon_->metrics().StoreFailed(v1::REQUEST_INVALID);
  const Exposed exposed = Now();
  EXPECT_EQ(exposed.samples.at("modelpress_store_errors_total{reason=\"STORAGE_ERROR\"}"), 1);
  EXPECT_FALSE(exposed.samples.contains("modelpress_store_errors_total{reason=\"REQUEST_INVALID\"}"));
}

}  // namespace
}  // namespace modelpress::server
