#include "server/jobs/sql_job_store.h"

#include <algorithm>
#include <charconv>
#include <compare>
#include <cstdint>
#include <limits>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "google/protobuf/util/time_util.h"
#include "server/base/page_token.h"
#include "server/base/sha256.h"
#include "server/log/trace.h"
#include "server/sql/schema.h"

namespace modelpress::server {
namespace {

using State = v1::OperationMetadata::State;
using google::protobuf::util::TimeUtil;

// The sets of states are written into the statements so that the indexes apply; the numbers are those of operations.proto.
constexpr char kHeld[] = "state IN (2, 3)";  // RUNNING, CANCELLING
constexpr char kUnfinished[] = "state IN (1, 2, 3)";
constexpr char kFinal[] = "state IN (4, 5, 6)";

constexpr char kFromJobs[] = " FROM jobs JOIN job_payloads USING (sequence) WHERE ";

enum class Request { kRead, kLeftOut };

std::string SelectJob(Request request) {
  return absl::StrCat(
      "SELECT id, workspace, method, state, attempt, create_time, start_time, end_time, lease_owner, beats, progress, ",
      request == Request::kRead ? "request" : "NULL",
      ", details, response, error, sequence, failures, project, memory_bytes, disk_bytes, cache_key, trace_parent", kFromJobs);
}

constexpr char kWorkspaces[] = "workspaces/";

SqlBlob ToBlob(const google::protobuf::MessageLite& message) { return {message.SerializeAsString()}; }

absl::Status ParseBlob(const std::string& bytes, const std::string& id, google::protobuf::MessageLite& message) {
  if (!message.ParseFromString(bytes)) {
    return MakeError(v1::STORAGE_ERROR, absl::StrCat("the stored ", message.GetTypeName(), " of operations/", id, " is damaged"));
  }
  return absl::OkStatus();
}

// The part of the metadata that has no columns.
v1::OperationMetadata Details(const v1::OperationMetadata& metadata) {
  v1::OperationMetadata details = metadata;
  details.clear_method();
  details.clear_workspace();
  details.clear_state();
  details.clear_progress();
  details.clear_attempt();
  details.clear_create_time();
  details.clear_start_time();
  details.clear_end_time();
  details.clear_trace_id();
  return details;
}

// The job in the current row of a SelectJob statement.
absl::StatusOr<Job> ReadJob(const Statement& row) {
  Job job;
  job.id = row.Bytes(0);
  MP_RETURN_IF_ERROR(ParseBlob(row.Bytes(12), job.id, job.metadata));
  job.metadata.set_workspace(absl::StrCat(kWorkspaces, row.Bytes(1)));
  job.metadata.set_method(row.Bytes(2));
  job.metadata.set_state(static_cast<State>(row.Integer(3)));
  job.metadata.set_attempt(static_cast<int>(row.Integer(4)));
  *job.metadata.mutable_create_time() = TimeUtil::MicrosecondsToTimestamp(row.Integer(5));
  if (!row.IsNull(6)) {
    *job.metadata.mutable_start_time() = TimeUtil::MicrosecondsToTimestamp(row.Integer(6));
  }
  if (!row.IsNull(7)) {
    *job.metadata.mutable_end_time() = TimeUtil::MicrosecondsToTimestamp(row.Integer(7));
  }
  job.failures = static_cast<int>(row.Integer(16));
  job.lease_owner = row.Bytes(8);
  job.beats = row.Integer(9);
  job.project = row.Bytes(17);
  job.cost = {static_cast<uint64_t>(row.Integer(18)), static_cast<uint64_t>(row.Integer(19))};
  job.cache_key = row.Bytes(20);
  job.trace_parent = row.Bytes(21);
  if (const std::optional<TraceContext> trace = ParseTraceparent(job.trace_parent); trace.has_value()) {
    job.metadata.set_trace_id(trace->trace_id);
  }
  if (!row.IsNull(10)) {
    MP_RETURN_IF_ERROR(ParseBlob(row.Bytes(10), job.id, *job.metadata.mutable_progress()));
  }
  MP_RETURN_IF_ERROR(ParseBlob(row.Bytes(11), job.id, job.request));
  if (!row.IsNull(13)) {
    MP_RETURN_IF_ERROR(ParseBlob(row.Bytes(13), job.id, job.response.emplace()));
  }
  if (!row.IsNull(14)) {
    MP_RETURN_IF_ERROR(ParseBlob(row.Bytes(14), job.id, job.error.emplace()));
  }
  return job;
}

// All jobs for which `condition` holds, with the ORDER BY and LIMIT that it ends with.
absl::StatusOr<std::vector<Job>> ReadJobs(Connection& connection, const std::string& condition,
                                          const std::vector<SqlValue>& values, Request request = Request::kRead) {
  MP_ASSIGN_OR_RETURN(Statement statement, connection.Query(absl::StrCat(SelectJob(request), condition), values));
  std::vector<Job> jobs;
  while (true) {
    MP_ASSIGN_OR_RETURN(bool row, statement.Step());
    if (!row) {
      return jobs;
    }
    MP_ASSIGN_OR_RETURN(Job job, ReadJob(statement));
    jobs.push_back(std::move(job));
  }
}

absl::Status NotFound(const std::string& id) {
  return MakeError(v1::OPERATION_NOT_FOUND, absl::StrCat("there is no operation operations/", id));
}

absl::StatusOr<Job> ReadJob(Connection& connection, const std::string& id, const std::string& condition,
                            const std::vector<SqlValue>& values) {
  MP_ASSIGN_OR_RETURN(std::vector<Job> jobs, ReadJobs(connection, condition, values));
  if (jobs.empty()) {
    return NotFound(id);
  }
  return std::move(jobs.front());
}

absl::StatusOr<Job> ReadJobById(Connection& connection, const std::string& id) {
  return ReadJob(connection, id, "id = ?1", {id});
}

// The same for whoever speaks for `project`: another's job does not exist. Nor is it come across, which would take time: BETWEEN
// has SQLite look into the index of the project's ids, where it would prefer that of all ids.
absl::StatusOr<Job> ReadJobOf(Connection& connection, const std::string& project, const std::string& id) {
  return ReadJob(connection, id, "project = ?1 AND id BETWEEN ?2 AND ?2", {project, id});
}

absl::StatusOr<std::string> WorkspaceId(const std::string& name) {
  absl::string_view id = name;
  if (!absl::ConsumePrefix(&id, kWorkspaces) || id.empty()) {
    return MakeError(v1::REQUEST_INVALID, absl::StrCat("'", name, "' is no workspace name; it must be workspaces/ID"),
                     {.field = "workspace"});
  }
  return std::string(id);
}

absl::Status NotHeld(const std::string& id, int attempt) {
  return absl::FailedPreconditionError(absl::StrCat("operations/", id, " is not held by attempt ", attempt, " any more"));
}

// What a transition of an unfinished job needs to know of it.
struct HeldJob {
  int64_t sequence;
  State state;
  WorkspaceKey workspace;
};

HeldJob ReadHeldRow(const Statement& row) {
  return {row.Integer(0), static_cast<State>(row.Integer(1)), {row.Bytes(2), row.Bytes(3)}};
}

// FAILED_PRECONDITION unless `attempt` holds the job and, where they are given, no heartbeats were added to `beats`.
absl::StatusOr<HeldJob> ReadHeldJob(Connection& connection, const std::string& id, int attempt,
                                    std::optional<int64_t> beats = std::nullopt) {
  MP_ASSIGN_OR_RETURN(
      Statement statement,
      connection.Query(
          absl::StrCat("SELECT sequence, state, project, workspace, beats FROM jobs WHERE id = ?1 AND attempt = ?2 AND ", kHeld),
          {id, static_cast<int64_t>(attempt)}));
  MP_ASSIGN_OR_RETURN(bool found, statement.Step());
  if (!found) {
    return NotHeld(id, attempt);
  }
  if (beats.has_value() && statement.Integer(4) != *beats) {
    return absl::FailedPreconditionError(absl::StrCat("attempt ", attempt, " at operations/", id, " has added heartbeats since"));
  }
  return ReadHeldRow(statement);
}

// Ends a job: final state, end time, no lease, no inputs that it needs.
absl::Status End(Connection& connection, const HeldJob& job, State state, absl::Time now, const SqlValue& response,
                 const SqlValue& error) {
  const int64_t sequence = job.sequence;
  MP_RETURN_IF_ERROR(connection.Execute("DELETE FROM job_inputs WHERE sequence = ?1", {sequence}).status());
  MP_RETURN_IF_ERROR(UseWorkspace(connection, job.workspace, 0, 0, now));
  MP_RETURN_IF_ERROR(connection
                         .Execute("UPDATE jobs SET state = ?2, end_time = ?3, lease_owner = NULL WHERE sequence = ?1",
                                  {sequence, static_cast<int64_t>(state), absl::ToUnixMicros(now)})
                         .status());
  return connection.Execute("UPDATE job_payloads SET response = ?2, error = ?3 WHERE sequence = ?1", {sequence, response, error})
      .status();
}

absl::Status EndCancelled(Connection& connection, const HeldJob& job, absl::Time now) {
  return End(connection, job, v1::OperationMetadata::CANCELLED, now, std::monostate(), ToBlob(CancelledError()));
}

// ---- Acceptance -------------------------------------------------------------------------------------------------------------

// What makes two requests the same.
std::string Fingerprint(const google::protobuf::Any& request) { return Sha256Hex(ToBlob(request).bytes); }

// The job that `request_id` led to before; nullopt if it is new. Errors as FindRequest, and OPERATION_NOT_FOUND.
absl::StatusOr<std::optional<Job>> ReadCreated(Connection& connection, const std::string& project, const std::string& request_id,
                                               const std::string& fingerprint) {
  MP_ASSIGN_OR_RETURN(const std::string id, FindRequest(connection, project, RequestKind::kOperation, request_id, fingerprint));
  if (id.empty()) {
    return std::nullopt;
  }
  return ReadJobById(connection, id);
}

SqlValue TextOrNull(const std::string& text) { return text.empty() ? SqlValue() : SqlValue(text); }

// Costs beyond what a column can hold are as good as its maximum.
int64_t ToColumn(uint64_t value) { return static_cast<int64_t>(std::min<uint64_t>(value, INT64_MAX)); }

absl::Status RequirePending(Connection& connection, const Quotas& quotas, const std::string& project) {
  const int limit = quotas.Of(project).pending;
  if (limit == 0) {
    return absl::OkStatus();
  }
  MP_ASSIGN_OR_RETURN(Statement statement,
                      connection.Query("SELECT COUNT(*) FROM jobs WHERE state = 1 AND project = ?1", {project}));
  MP_RETURN_IF_ERROR(statement.Step().status());
  return statement.Integer(0) >= limit ? QuotaExceeded("pending", limit, statement.Integer(0), 1) : absl::OkStatus();
}

// Never the same again, so that a page token does not come to mean another place when jobs are deleted.
absl::StatusOr<int64_t> NextNumber(Connection& connection, const std::string& project) {
  MP_ASSIGN_OR_RETURN(Statement statement,
                      connection.Query("INSERT INTO job_numbers (project, last) VALUES (?1, 1)"
                                       " ON CONFLICT (project) DO UPDATE SET last = job_numbers.last + 1 RETURNING last",
                                       {project}));
  MP_RETURN_IF_ERROR(statement.Step().status());
  const int64_t number = statement.Integer(0);
  MP_RETURN_IF_ERROR(statement.Step().status());  // to its end
  return number;
}

// Stores a job that nobody has worked on. Returns its sequence.
absl::StatusOr<int64_t> Insert(Connection& connection, const Job& job, const WorkspaceKey& workspace, State state, absl::Time now,
                               const v1::OperationMetadata& details) {
  MP_ASSIGN_OR_RETURN(const int64_t number, NextNumber(connection, workspace.project));
  int64_t sequence = 0;
  {
    MP_ASSIGN_OR_RETURN(
        Statement statement,
        connection.Query(
            "INSERT INTO jobs (id, project, workspace, method, state, attempt, create_time, memory_bytes, disk_bytes,"
            " cache_key, trace_parent, number) VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8, ?9, ?10, ?11) RETURNING sequence",
            {job.id, workspace.project, workspace.id, job.metadata.method(), static_cast<int64_t>(state), absl::ToUnixMicros(now),
             ToColumn(job.cost.memory_bytes), ToColumn(job.cost.disk_bytes), TextOrNull(job.cache_key),
             TextOrNull(job.trace_parent), number}));
    MP_RETURN_IF_ERROR(statement.Step().status());
    sequence = statement.Integer(0);
    MP_RETURN_IF_ERROR(statement.Step().status());  // to its end
  }
  MP_RETURN_IF_ERROR(connection
                         .Execute("INSERT INTO job_payloads (sequence, request, details) VALUES (?1, ?2, ?3)",
                                  {sequence, ToBlob(job.request), ToBlob(details)})
                         .status());
  return sequence;
}

// Stores which contents the job is to read, many to a statement: a folder of calibration data has thousands. FILE_CHANGED if one
// of them is in no file of the project any more, so that nothing protected it until now.
absl::Status InsertInputs(Connection& connection, int64_t sequence, const std::string& project,
                          const v1::OperationMetadata& metadata) {
  constexpr size_t kRows = 32;
  std::string sql = "INSERT INTO job_inputs (sequence, sha256) VALUES ";
  for (size_t row = 0; row < kRows; ++row) {
    absl::StrAppend(&sql, row == 0 ? "" : ", ", "(?1, ?", row + 2, ")");
  }
  sql += " ON CONFLICT DO NOTHING";
  for (int begin = 0; begin < metadata.inputs_size(); begin += kRows) {
    std::vector<SqlValue> values = {sequence};
    values.reserve(kRows + 1);
    for (size_t row = 0; row < kRows; ++row) {  // the last one fills the rest
      values.emplace_back(metadata.inputs(std::min(begin + static_cast<int>(row), metadata.inputs_size() - 1)).sha256());
    }
    MP_RETURN_IF_ERROR(connection.Execute(sql, values).status());
  }
  MP_ASSIGN_OR_RETURN(Statement statement,
                      connection.Query("SELECT sha256 FROM job_inputs WHERE sequence = ?1 AND NOT EXISTS (SELECT 1 FROM files"
                                       " WHERE files.sha256 = job_inputs.sha256 AND files.project = ?2) LIMIT 1",
                                       {sequence, project}));
  MP_ASSIGN_OR_RETURN(const bool gone, statement.Step());
  if (!gone) {
    return absl::OkStatus();
  }
  const auto input = std::ranges::find(metadata.inputs(), statement.Bytes(0), &v1::File::sha256);
  return MakeError(v1::FILE_CHANGED, absl::StrCat(input->name(), " was deleted or replaced in this moment; call again"));
}

std::string FilesPrefix(const WorkspaceKey& workspace) { return absl::StrCat(kWorkspaces, workspace.id, "/files/"); }

// By how many bytes the workspace grows when the outputs come into it.
absl::StatusOr<int64_t> GrowthBy(Connection& connection, const WorkspaceKey& workspace, const std::vector<OutputFile>& outputs) {
  int64_t growth = 0;
  for (const OutputFile& output : outputs) {
    MP_ASSIGN_OR_RETURN(const std::optional<int64_t> before, FileSize(connection, workspace, output.path));
    growth += static_cast<int64_t>(output.size_bytes) - before.value_or(0);
  }
  return growth;
}

// Points the names to the outputs and lists them in `details`.
absl::Status LinkOutputs(Connection& connection, const WorkspaceKey& workspace, const std::vector<OutputFile>& outputs,
                         absl::Time now, v1::OperationMetadata& details) {
  for (const OutputFile& output : outputs) {
    MP_RETURN_IF_ERROR(LinkFile(connection, workspace, output.path, output.sha256, output.size_bytes, now));
    v1::File& file = *details.add_outputs();
    file.set_name(absl::StrCat(FilesPrefix(workspace), output.path));
    file.set_sha256(output.sha256);
    file.set_size_bytes(output.size_bytes);
    *file.mutable_update_time() = TimeUtil::MicrosecondsToTimestamp(absl::ToUnixMicros(now));
  }
  return absl::OkStatus();
}

// The newest job that gives `job` its result.
absl::StatusOr<std::optional<Job>> FindCached(Connection& connection, const Job& job) {
  if (job.cache_key.empty()) {
    return std::nullopt;
  }
  MP_ASSIGN_OR_RETURN(std::vector<Job> jobs, ReadJobs(connection,
                                                      "state = 4 AND project = ?1 AND cache_key = ?2"
                                                      " ORDER BY sequence DESC LIMIT 1",
                                                      {job.project, job.cache_key}));
  if (jobs.empty()) {
    return std::nullopt;
  }
  for (const v1::File& output : jobs.front().metadata.outputs()) {
    // A blob that a file points to is there, and stays while this transaction runs.
    MP_ASSIGN_OR_RETURN(const bool held, HasContent(connection, job.project, output.sha256(), output.size_bytes()));
    if (!held) {
      return std::nullopt;
    }
  }
  return std::move(jobs.front());
}

// Stores `job` as ended with the result of `cached`.
absl::Status InsertCached(Connection& connection, const Quotas& quotas, const Job& job, const Job& cached,
                          const WorkspaceKey& workspace, absl::Time now) {
  const std::string before = absl::StrCat(cached.metadata.workspace(), "/files/");
  const std::string prefix = FilesPrefix(workspace);
  // The path in the workspace that `name` has in that of the cached job.
  auto path_of = [&](absl::string_view name) -> absl::StatusOr<std::string> {
    if (!absl::ConsumePrefix(&name, before)) {
      return MakeError(v1::STORAGE_ERROR,
                       absl::StrCat("operations/", cached.id, " has an output ", name, " outside its workspace"));
    }
    return std::string(name);
  };
  std::vector<OutputFile> outputs;
  outputs.reserve(cached.metadata.outputs_size());
  for (const v1::File& file : cached.metadata.outputs()) {
    MP_ASSIGN_OR_RETURN(std::string path, path_of(file.name()));
    outputs.push_back({std::move(path), file.sha256(), file.size_bytes()});
  }
  MP_ASSIGN_OR_RETURN(const google::protobuf::Any response, EditFiles(*cached.response, [&](v1::File& file) -> absl::Status {
                        MP_ASSIGN_OR_RETURN(const std::string path, path_of(file.name()));
                        file.set_name(absl::StrCat(prefix, path));
                        return absl::OkStatus();
                      }));
  MP_ASSIGN_OR_RETURN(const int64_t growth, GrowthBy(connection, workspace, outputs));
  MP_RETURN_IF_ERROR(RequireBytes(connection, quotas, workspace.project, growth));
  v1::OperationMetadata details = Details(job.metadata);
  details.set_cached(true);
  *details.mutable_warnings() = cached.metadata.warnings();
  MP_RETURN_IF_ERROR(LinkOutputs(connection, workspace, outputs, now, details));
  MP_ASSIGN_OR_RETURN(const int64_t sequence, Insert(connection, job, workspace, v1::OperationMetadata::SUCCEEDED, now, details));
  return End(connection, {sequence, v1::OperationMetadata::SUCCEEDED, workspace}, v1::OperationMetadata::SUCCEEDED, now,
             ToBlob(response), std::monostate());
}

// ---- The end of an attempt --------------------------------------------------------------------------------------------------

// JobStore::Finish. Returns the state that the job ends in.
absl::StatusOr<State> FinishHeld(Connection& connection, const Quotas& quotas, const std::string& id, const HeldJob& held,
                                 const Outcome& outcome, absl::Time now) {
  if (outcome.state == v1::OperationMetadata::CANCELLED && held.state != v1::OperationMetadata::CANCELLING) {
    return MakeError(v1::INTERNAL_ERROR, absl::StrCat("operations/", id, " cannot end CANCELLED: nobody asked for it"));
  }
  State ended = outcome.state;
  MP_ASSIGN_OR_RETURN(const Job job, ReadJobById(connection, id));
  v1::OperationMetadata details = Details(job.metadata);
  details.mutable_warnings()->Assign(outcome.warnings.begin(), outcome.warnings.end());
  details.set_report(outcome.report);
  SqlValue response = outcome.response ? SqlValue(ToBlob(*outcome.response)) : SqlValue();
  SqlValue error = outcome.error ? SqlValue(ToBlob(*outcome.error)) : SqlValue();
  MP_ASSIGN_OR_RETURN(const int64_t growth, GrowthBy(connection, held.workspace, outcome.outputs));
  if (absl::Status room = RequireBytes(connection, quotas, held.workspace.project, growth); room.ok()) {
    MP_RETURN_IF_ERROR(LinkOutputs(connection, held.workspace, outcome.outputs, now, details));
  } else if (ReasonOf(room) == v1::QUOTA_EXCEEDED) {
    ended = v1::OperationMetadata::FAILED;
    response = SqlValue();
    error = ToBlob(StoredError(room));
  } else {
    return room;
  }
  MP_RETURN_IF_ERROR(
      connection.Execute("UPDATE job_payloads SET details = ?2 WHERE sequence = ?1", {held.sequence, ToBlob(details)}).status());
  MP_RETURN_IF_ERROR(End(connection, held, ended, now, response, error));
  return ended;
}

// JobStore::Requeue.
absl::Status RequeueHeld(Connection& connection, const HeldJob& held, bool failed, absl::Time now) {
  if (held.state == v1::OperationMetadata::CANCELLING) {
    return EndCancelled(connection, held, now);
  }
  return connection
      .Execute(
          "UPDATE jobs SET state = ?2, lease_owner = NULL, progress = NULL, failures = failures + ?3"
          " WHERE sequence = ?1",
          {held.sequence, static_cast<int64_t>(v1::OperationMetadata::PENDING), static_cast<int64_t>(failed)})
      .status();
}

// ---- List -------------------------------------------------------------------------------------------------------------------

// The sequence before which the jobs of the project come whose number is less than the token's. The job of that number may be
// gone. Tokens do not hold the sequence itself: everybody can read them, and it counts what all projects do.
absl::StatusOr<int64_t> PositionOf(Connection& connection, const std::string& project, int64_t number) {
  MP_ASSIGN_OR_RETURN(Statement statement,
                      connection.Query("SELECT sequence FROM jobs WHERE project = ?1 AND number >= ?2 ORDER BY number LIMIT 1",
                                       {project, number}));
  MP_ASSIGN_OR_RETURN(const bool found, statement.Step());
  return found ? statement.Integer(0) : INT64_MAX;
}

// The first jobs for which `condition` holds, as far as they fit on one page.
struct PageExtent {
  int64_t jobs = 0;
  int64_t last_number = 0;  // of the last of them
  bool more = false;        // there are others behind it
};

// `values` end with the most jobs that are wanted and one more, which tells whether there are others; `condition` with that
// limit. Reads no payload, whatever the size.
absl::StatusOr<PageExtent> MeasurePage(Connection& connection, const std::string& condition,
                                       const std::vector<SqlValue>& values) {
  constexpr int64_t kOtherBytes = 512;  // of an operation, at most, that are not in these columns
  const auto limit = std::get<int64_t>(values.back());
  MP_ASSIGN_OR_RETURN(
      Statement statement,
      connection.Query(absl::StrCat("SELECT number, LENGTH(details) + COALESCE(LENGTH(response), 0) + COALESCE(LENGTH(error), 0)"
                                    " + COALESCE(LENGTH(progress), 0)",
                                    kFromJobs, condition),
                       values));
  PageExtent page;
  int64_t bytes = 0;
  while (true) {
    MP_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) {
      return page;
    }
    bytes += statement.Integer(1) + kOtherBytes;
    if (page.jobs + 1 == limit || (page.jobs > 0 && bytes > kJobPageBytes)) {
      page.more = true;
      return page;
    }
    ++page.jobs;
    page.last_number = statement.Integer(0);
  }
}

// ---- Claim ------------------------------------------------------------------------------------------------------------------

// The job whose turn it is; 0: none. Hops from project to project in the index, so that a long queue costs no more than a short
// one.
absl::StatusOr<int64_t> FindNext(Connection& connection, const Quotas& quotas, const JobCost& free) {
  struct Turn {
    int64_t running;
    int64_t sequence;
    auto operator<=>(const Turn&) const = default;
  };
  std::optional<Turn> next;
  {
    MP_ASSIGN_OR_RETURN(
        Statement statement,
        connection.Query("WITH RECURSIVE waiting (project) AS ("
                         "SELECT MIN(project) FROM jobs WHERE state = 1 UNION ALL"
                         " SELECT (SELECT MIN(jobs.project) FROM jobs WHERE jobs.state = 1 AND jobs.project > waiting.project)"
                         " FROM waiting WHERE waiting.project IS NOT NULL)"
                         " SELECT project,"
                         " (SELECT MIN(jobs.sequence) FROM jobs WHERE jobs.state = 1 AND jobs.project = waiting.project),"
                         " (SELECT COUNT(*) FROM jobs WHERE jobs.state IN (2, 3) AND jobs.project = waiting.project)"
                         " FROM waiting WHERE project IS NOT NULL"));
    while (true) {
      MP_ASSIGN_OR_RETURN(const bool row, statement.Step());
      if (!row) {
        break;
      }
      const Turn turn{statement.Integer(2), statement.Integer(1)};
      const int limit = quotas.Of(statement.Bytes(0)).running;
      if ((limit == 0 || turn.running < limit) && (!next.has_value() || turn < *next)) {
        next = turn;
      }
    }
  }
  if (!next.has_value()) {
    return 0;
  }
  MP_ASSIGN_OR_RETURN(Statement statement,
                      connection.Query("SELECT memory_bytes, disk_bytes FROM jobs WHERE sequence = ?1", {next->sequence}));
  MP_RETURN_IF_ERROR(statement.Step().status());
  const bool fits = static_cast<uint64_t>(statement.Integer(0)) <= free.memory_bytes &&
                    static_cast<uint64_t>(statement.Integer(1)) <= free.disk_bytes;
  return fits ? next->sequence : 0;
}

}  // namespace

absl::StatusOr<Job> SqlJobStore::Create(const Job& job, const std::string& request_id) {
  MP_ASSIGN_OR_RETURN(const std::string workspace_id, WorkspaceId(job.metadata.workspace()));
  const WorkspaceKey workspace{job.project, workspace_id};
  const std::string fingerprint = Fingerprint(job.request);
  std::optional<Job> created;
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(created, ReadCreated(connection, job.project, request_id, fingerprint));
    if (created.has_value()) {
      return absl::OkStatus();
    }
    const absl::Time now = clock_.Now();
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    MP_ASSIGN_OR_RETURN(const std::optional<Job> cached, FindCached(connection, job));
    if (cached.has_value()) {
      MP_RETURN_IF_ERROR(InsertCached(connection, quotas_, job, *cached, workspace, now));
    } else {
      MP_RETURN_IF_ERROR(RequirePending(connection, quotas_, job.project));
      MP_ASSIGN_OR_RETURN(const int64_t sequence,
                          Insert(connection, job, workspace, v1::OperationMetadata::PENDING, now, Details(job.metadata)));
      MP_RETURN_IF_ERROR(InsertInputs(connection, sequence, job.project, job.metadata));
    }
    MP_RETURN_IF_ERROR(UseWorkspace(connection, workspace, 0, 0, now));
    MP_RETURN_IF_ERROR(RememberRequest(connection, job.project, RequestKind::kOperation, request_id, fingerprint, job.id, now));
    MP_ASSIGN_OR_RETURN(created, ReadJobById(connection, job.id));
    return absl::OkStatus();
  }));
  return *std::move(created);
}

absl::StatusOr<std::optional<Job>> SqlJobStore::FindCreated(const std::string& project, const std::string& request_id,
                                                            const google::protobuf::Any& request) {
  std::optional<Job> created;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(created, ReadCreated(connection, project, request_id, Fingerprint(request)));
    return absl::OkStatus();
  }));
  return created;
}

absl::StatusOr<Job> SqlJobStore::Get(const std::string& id) {
  Job job;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(job, ReadJobById(connection, id));
    return absl::OkStatus();
  }));
  return job;
}

absl::StatusOr<Job> SqlJobStore::Find(const std::string& project, const std::string& id) {
  Job job;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(job, ReadJobOf(connection, project, id));
    return absl::OkStatus();
  }));
  return job;
}

absl::StatusOr<JobPage> SqlJobStore::List(const std::string& project, const JobFilter& filter, int page_size,
                                          const std::string& page_token) {
  MP_ASSIGN_OR_RETURN(const int size, ResolvePageSize(page_size));
  std::string condition = "sequence < ?1 AND project = ?2";
  std::vector<SqlValue> values = {INT64_MAX, project};
  std::string scope = absl::StrCat("projects/", project, "/operations");
  auto add = [&](const std::string& column, SqlValue value) {
    values.push_back(std::move(value));
    absl::StrAppend(&condition, " AND ", column, " = ?", values.size());
  };
  if (filter.workspace.has_value()) {
    MP_ASSIGN_OR_RETURN(std::string workspace, WorkspaceId(*filter.workspace));
    absl::StrAppend(&scope, " workspace=", workspace);
    add("workspace", workspace);
  }
  if (filter.method.has_value()) {
    absl::StrAppend(&scope, " method=", *filter.method);
    add("method", *filter.method);
  }
  if (filter.state.has_value()) {
    absl::StrAppend(&scope, " state=", static_cast<int>(*filter.state));
    add("state", static_cast<int64_t>(*filter.state));
  }
  if (filter.done.has_value()) {
    absl::StrAppend(&scope, " done=", static_cast<int>(*filter.done));
    absl::StrAppend(&condition, " AND ", *filter.done ? kFinal : kUnfinished);
  }
  int64_t number = INT64_MAX;
  if (!page_token.empty()) {
    MP_ASSIGN_OR_RETURN(const std::string key, DecodePageToken(scope, page_token));
    std::from_chars(key.data(), key.data() + key.size(), number);  // we wrote it
  }
  values.emplace_back(int64_t{size} + 1);
  absl::StrAppend(&condition, " ORDER BY sequence DESC LIMIT ?", values.size());
  JobPage page;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    if (!page_token.empty()) {
      MP_ASSIGN_OR_RETURN(values.front(), PositionOf(connection, project, number));
    }
    MP_ASSIGN_OR_RETURN(const PageExtent extent, MeasurePage(connection, condition, values));
    values.back() = extent.jobs;
    MP_ASSIGN_OR_RETURN(page.jobs, ReadJobs(connection, condition, values, Request::kLeftOut));
    if (extent.more) {
      page.next_page_token = EncodePageToken(scope, absl::StrCat(extent.last_number));
    }
    return absl::OkStatus();
  }));
  return page;
}

absl::Status SqlJobStore::Delete(const std::string& project, const std::string& id) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const Job job, ReadJobOf(connection, project, id));
    if (!job.done()) {
      return MakeError(v1::OPERATION_RUNNING,
                       absl::StrCat("operations/", id, " is ", v1::OperationMetadata::State_Name(job.metadata.state()),
                                    "; cancel it or wait for its end before deleting it"));
    }
    return connection.Execute("DELETE FROM jobs WHERE id = ?1", {id}).status();
  });
}

absl::StatusOr<Job> SqlJobStore::RequestCancel(const std::string& project, const std::string& id) {
  Job job;
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(ReadJobOf(connection, project, id).status());
    MP_ASSIGN_OR_RETURN(int64_t stopping, connection.Execute("UPDATE jobs SET state = ?2 WHERE id = ?1 AND state = ?3",
                                                             {id, static_cast<int64_t>(v1::OperationMetadata::CANCELLING),
                                                              static_cast<int64_t>(v1::OperationMetadata::RUNNING)}));
    if (stopping == 0) {
      std::optional<HeldJob> pending;
      {
        MP_ASSIGN_OR_RETURN(Statement statement,
                            connection.Query("SELECT sequence, state, project, workspace FROM jobs WHERE id = ?1 AND state = ?2",
                                             {id, static_cast<int64_t>(v1::OperationMetadata::PENDING)}));
        MP_ASSIGN_OR_RETURN(bool found, statement.Step());
        if (found) {
          pending = ReadHeldRow(statement);
        }
      }
      if (pending.has_value()) {
        MP_RETURN_IF_ERROR(EndCancelled(connection, *pending, clock_.Now()));
      }
    }
    MP_ASSIGN_OR_RETURN(job, ReadJobById(connection, id));
    return absl::OkStatus();
  }));
  return job;
}

absl::StatusOr<std::set<std::string>> SqlJobStore::Unfinished(const std::vector<std::string>& ids) {
  constexpr size_t kIds = 32;  // to a statement; the last one fills the rest
  std::string sql = absl::StrCat("SELECT id FROM jobs WHERE ", kUnfinished, " AND id IN (");
  for (size_t i = 1; i <= kIds; ++i) {
    absl::StrAppend(&sql, i == 1 ? "?" : ", ?", i);
  }
  sql += ")";
  std::set<std::string> unfinished;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    for (size_t begin = 0; begin < ids.size(); begin += kIds) {
      std::vector<SqlValue> values;
      values.reserve(kIds);
      for (size_t i = 0; i < kIds; ++i) {
        values.emplace_back(ids[std::min(begin + i, ids.size() - 1)]);
      }
      MP_ASSIGN_OR_RETURN(Statement statement, connection.Query(sql, values));
      while (true) {
        MP_ASSIGN_OR_RETURN(const bool row, statement.Step());
        if (!row) {
          break;
        }
        unfinished.insert(statement.Bytes(0));
      }
    }
    return absl::OkStatus();
  }));
  return unfinished;
}

absl::StatusOr<std::optional<Job>> SqlJobStore::Claim(const Claimant& claimant) {
  // A look that takes no lock first: many idle workers poll.
  int64_t sequence = 0;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(sequence, FindNext(connection, quotas_, claimant.free));
    return absl::OkStatus();
  }));
  std::optional<Job> claimed;
  if (sequence == 0) {
    return claimed;
  }
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(sequence, FindNext(connection, quotas_, claimant.free));
    if (sequence == 0) {
      return absl::OkStatus();
    }
    MP_RETURN_IF_ERROR(connection
                           .Execute("UPDATE jobs SET state = ?2, attempt = attempt + 1, start_time = ?3, lease_owner = ?4,"
                                    " beats = beats + 1, progress = NULL WHERE sequence = ?1",
                                    {sequence, static_cast<int64_t>(v1::OperationMetadata::RUNNING),
                                     absl::ToUnixMicros(clock_.Now()), claimant.owner})
                           .status());
    MP_ASSIGN_OR_RETURN(std::vector<Job> jobs, ReadJobs(connection, "sequence = ?1", {sequence}));
    claimed = std::move(jobs.front());
    return absl::OkStatus();
  }));
  return claimed;
}

absl::StatusOr<std::optional<Job>> SqlJobStore::NextInLine() {
  std::optional<Job> next;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const int64_t sequence, FindNext(connection, quotas_, {UINT64_MAX, UINT64_MAX}));
    if (sequence != 0) {
      MP_ASSIGN_OR_RETURN(std::vector<Job> jobs, ReadJobs(connection, "sequence = ?1", {sequence}));
      next = std::move(jobs.front());
    }
    return absl::OkStatus();
  }));
  return next;
}

absl::StatusOr<State> SqlJobStore::Heartbeat(const std::string& id, int attempt, const v1::Progress& progress) {
  State state = v1::OperationMetadata::STATE_UNSPECIFIED;
  MP_RETURN_IF_ERROR(database_.Write(Durability::kProcessCrash, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(HeldJob job, ReadHeldJob(connection, id, attempt));
    state = job.state;
    return connection
        .Execute("UPDATE jobs SET progress = ?2, beats = beats + 1 WHERE sequence = ?1", {job.sequence, ToBlob(progress)})
        .status();
  }));
  return state;
}

absl::StatusOr<State> SqlJobStore::HeldState(const std::string& id, int attempt) {
  State state = v1::OperationMetadata::STATE_UNSPECIFIED;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const HeldJob job, ReadHeldJob(connection, id, attempt));
    state = job.state;
    return absl::OkStatus();
  }));
  return state;
}

absl::StatusOr<State> SqlJobStore::Finish(const std::string& id, int attempt, const Outcome& outcome) {
  MP_RETURN_IF_ERROR(CheckOutcome(outcome));
  State ended = outcome.state;
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const HeldJob held, ReadHeldJob(connection, id, attempt));
    MP_ASSIGN_OR_RETURN(ended, FinishHeld(connection, quotas_, id, held, outcome, clock_.Now()));
    return absl::OkStatus();
  }));
  return ended;
}

absl::Status SqlJobStore::Requeue(const std::string& id, int attempt, bool failed) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const HeldJob held, ReadHeldJob(connection, id, attempt));
    return RequeueHeld(connection, held, failed, clock_.Now());
  });
}

absl::Status SqlJobStore::Revoke(const Lease& seen, const std::optional<Outcome>& outcome) {
  if (outcome.has_value()) {
    MP_RETURN_IF_ERROR(CheckOutcome(*outcome));
  }
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const HeldJob held, ReadHeldJob(connection, seen.job_id, seen.attempt, seen.beats));
    return outcome.has_value() ? FinishHeld(connection, quotas_, seen.job_id, held, *outcome, clock_.Now()).status()
                               : RequeueHeld(connection, held, /*failed=*/false, clock_.Now());
  });
}

absl::Status SqlJobStore::AwaitTurn() {
  return database_.Write(Durability::kProcessCrash, [](Connection&) { return absl::OkStatus(); });
}

absl::StatusOr<std::vector<Lease>> SqlJobStore::Leases() {
  std::vector<Lease> leases;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(
        Statement statement,
        connection.Query(absl::StrCat("SELECT id, attempt, lease_owner, beats FROM jobs WHERE ", kHeld, " ORDER BY sequence"),
                         {}));
    while (true) {
      MP_ASSIGN_OR_RETURN(const bool row, statement.Step());
      if (!row) {
        return absl::OkStatus();
      }
      leases.push_back({statement.Bytes(0), static_cast<int>(statement.Integer(1)), statement.Bytes(2), statement.Integer(3)});
    }
  }));
  return leases;
}

absl::StatusOr<int64_t> SqlJobStore::ForgetFinished(absl::Time ended_before, int limit) {
  return Forget("jobs", "end_time", ended_before, limit);
}

absl::StatusOr<int64_t> SqlJobStore::ForgetRequests(absl::Time came_before, int limit) {
  return Forget("requests", "create_time", came_before, limit);
}

absl::StatusOr<int64_t> SqlJobStore::Forget(absl::string_view table, absl::string_view time, absl::Time before, int limit) {
  // What is said to be older than something that came before it, was written under a clock that was behind: its age is unknown.
  // What is of the future, under one that was ahead: it tells nothing of others.
  const std::string first_young =
      absl::StrCat("SELECT sequence FROM ", table, " WHERE create_time >= ?1 AND create_time <= ?3 ORDER BY sequence LIMIT 1");
  int64_t forgotten = 0;
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(
        forgotten, connection.Execute(absl::StrCat("DELETE FROM ", table, " WHERE sequence IN (SELECT sequence FROM ", table,
                                                   " WHERE ", time, " < ?1 AND sequence < COALESCE((", first_young,
                                                   "), ?4) ORDER BY ", time, ", sequence LIMIT ?2)"),
                                      {absl::ToUnixMicros(before), static_cast<int64_t>(limit), absl::ToUnixMicros(clock_.Now()),
                                       std::numeric_limits<int64_t>::max()}));
    return absl::OkStatus();
  }));
  return forgotten;
}

absl::StatusOr<std::vector<std::pair<std::pair<std::string, State>, int64_t>>> SqlJobStore::Count() {
  std::vector<std::pair<std::pair<std::string, State>, int64_t>> counts;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(Statement statement, connection.Query("SELECT method, state, COUNT(*) FROM jobs GROUP BY method, state"));
    while (true) {
      MP_ASSIGN_OR_RETURN(bool row, statement.Step());
      if (!row) {
        return absl::OkStatus();
      }
      counts.push_back({{statement.Bytes(0), static_cast<State>(statement.Integer(1))}, statement.Integer(2)});
    }
  }));
  return counts;
}

absl::StatusOr<std::optional<absl::Time>> SqlJobStore::OldestPending() {
  std::optional<absl::Time> oldest;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(Statement statement, connection.Query("SELECT MIN(create_time) FROM jobs WHERE state = ?1",
                                                              {static_cast<int64_t>(v1::OperationMetadata::PENDING)}));
    MP_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (row && !statement.IsNull(0)) {
      oldest = absl::FromUnixMicros(statement.Integer(0));
    }
    return absl::OkStatus();
  }));
  return oldest;
}

}  // namespace modelpress::server
