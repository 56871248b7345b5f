// What every driver of JobStore must do, in any place where jobs are kept. A driver's test includes this once and instantiates
// JobStoreConformance with a factory of its harness.
#ifndef MODELPRESS_TESTS_SERVER_JOBS_JOB_STORE_CONFORMANCE_H_
#define MODELPRESS_TESTS_SERVER_JOBS_JOB_STORE_CONFORMANCE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/time_util.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "modelpress/v1/compression.pb.h"
#include "server/base/page_token.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/store_harness.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {

using Metadata = v1::OperationMetadata;
using testing::ElementsAre;
using testing::IsEmpty;

inline constexpr char kProject[] = "p";

class JobStoreConformance : public testing::TestWithParam<StoreHarnessFactory> {
 protected:
  void SetUp() override { Reset(); }

  // A new, empty store with the workspace "w".
  void Reset() {
    handle_.reset();
    harness_ = GetParam()();
    Reopen();
    MakeProjects({kProject});
  }
  void Reopen() {
    handle_.reset();
    handle_ = harness_->Open(clock_, quotas_);
    ASSERT_NE(handle_, nullptr);
  }

  JobStore& jobs() { return handle_->jobs(); }
  WorkspaceStore& workspaces() { return handle_->workspaces(); }

  static google::protobuf::Any AnyOf(const std::string& text) {
    google::protobuf::Any any;
    any.set_type_url("type.googleapis.com/modelpress.v1.SaveModelRequest");
    any.set_value(text);
    return any;
  }

  static Job NewJob(const std::string& id, const std::string& workspace = "w", const std::string& method = "SaveModel") {
    Job job;
    job.id = id;
    job.project = kProject;
    job.request = AnyOf("request of " + id);
    job.metadata.set_workspace("workspaces/" + workspace);
    job.metadata.set_method(method);
    v1::File& input = *job.metadata.add_inputs();
    input.set_name("workspaces/" + workspace + "/files/model.onnx");
    input.set_sha256(std::string(64, 'a'));
    input.set_size_bytes(uint64_t{1} << 40);
    return job;
  }

  static Outcome Success(std::vector<OutputFile> outputs = {}) {
    return {.state = Metadata::SUCCEEDED, .response = AnyOf("response"), .outputs = std::move(outputs)};
  }
  static Outcome Failure(Metadata::State state = Metadata::FAILED) {
    google::rpc::Status error;
    error.set_code(3);
    error.set_message("no");
    return {.state = state, .error = error};
  }
  static OutputFile Output(const std::string& path, char digit = 'b') { return {path, std::string(64, digit), 7}; }

  // Brings a new job, the only one that is not final, into `state`; its latest attempt is 1 (0 where it was never claimed).
  void MakeJobIn(Metadata::State state, const std::string& id) {
    ASSERT_OK(jobs().Create(NewJob(id), ""));
    if (state == Metadata::PENDING) {
      return;
    }
    ASSERT_OK_AND_ASSIGN(std::optional<Job> claimed, jobs().Claim({"worker"}));
    ASSERT_EQ(claimed->id, id);
    if (state == Metadata::CANCELLING || state == Metadata::CANCELLED) {
      ASSERT_OK(jobs().RequestCancel(kProject, id));
    }
    if (state == Metadata::SUCCEEDED || state == Metadata::FAILED || state == Metadata::CANCELLED) {
      ASSERT_OK(jobs().Finish(id, 1, state == Metadata::SUCCEEDED ? Success() : Failure(state)));
    }
  }

  // Projects of their own, each with a workspace "w" that holds the input of NewJob.
  void MakeProjects(const std::vector<std::string>& projects) {
    for (const std::string& project : projects) {
      ASSERT_OK(workspaces().CreateWorkspace({project, "w"}, "", ""));
      ASSERT_OK(workspaces().PutFile({project, "w"}, {.path = "model.onnx", .sha256 = std::string(64, 'a')}));
    }
  }
  static Job JobOf(const std::string& project, const std::string& id) {
    Job job = NewJob(id);
    job.project = project;
    return job;
  }

  // The id of the job that is claimed; "": none.
  std::string ClaimId(const JobCost& free = Claimant().free) {
    absl::StatusOr<std::optional<Job>> job = jobs().Claim({"worker", free});
    EXPECT_OK(job);
    return job.ok() && job->has_value() ? (*job)->id : "";
  }

  // How often `act` succeeds, which eight threads of two processes do at once, with numbers of their own.
  int CountOk(const std::function<bool(StoreHandle&, int)>& act) {
    std::unique_ptr<StoreHandle> other = harness_->Open(clock_, quotas_);
    std::atomic<int> count = 0;
    std::vector<std::thread> threads;
    threads.reserve(8);
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&, i] { count += act(i % 2 == 0 ? *handle_ : *other, i) ? 1 : 0; });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    return count;
  }

  // A job whose result may be used again, and such a result.
  static Job Cacheable(const std::string& id, const std::string& workspace = "w") {
    Job job = NewJob(id, workspace);
    job.cache_key = "key";
    return job;
  }
  static Outcome CacheableSuccess(const std::string& workspace) {
    v1::SaveModelResponse response;
    response.mutable_deploy_model()->set_name(absl::StrCat("workspaces/", workspace, "/files/out/a"));
    response.mutable_deploy_model()->set_sha256(std::string(64, 'b'));
    response.add_external_data()->set_name(absl::StrCat("workspaces/", workspace, "/files/out/b"));
    Outcome outcome = Success({Output("out/a", 'b'), Output("out/b", 'c')});
    outcome.response->PackFrom(response);
    outcome.warnings = {"warned"};
    return outcome;
  }
  void RunCacheable(const std::string& id) {
    ASSERT_OK(jobs().Create(Cacheable(id), ""));
    ASSERT_EQ(ClaimId(), id);
    ASSERT_OK(jobs().Finish(id, 1, CacheableSuccess("w")));
  }

  Metadata::State StateOf(const std::string& id) {
    absl::StatusOr<Job> job = jobs().Get(id);
    EXPECT_OK(job);
    return job.ok() ? job->metadata.state() : Metadata::STATE_UNSPECIFIED;
  }

  static std::vector<std::string> Ids(const std::vector<Job>& jobs) {
    std::vector<std::string> ids;
    ids.reserve(jobs.size());
    for (const Job& job : jobs) {
      ids.push_back(job.id);
    }
    return ids;
  }

  FakeClock clock_;
  Quotas quotas_;  // none at first; the stores see what a test assigns
  std::unique_ptr<StoreHarness> harness_;
  std::unique_ptr<StoreHandle> handle_;
};

inline const std::vector<Metadata::State>& AllStates() {
  static const auto* const states = new std::vector<Metadata::State>{Metadata::PENDING,   Metadata::RUNNING, Metadata::CANCELLING,
                                                                     Metadata::SUCCEEDED, Metadata::FAILED,  Metadata::CANCELLED};
  return *states;
}

// Byte by byte: an Any need not hold what its type says.
inline bool SameMessage(const google::protobuf::Message& a, const google::protobuf::Message& b) {
  return a.SerializeAsString() == b.SerializeAsString();
}

inline bool SameJob(const Job& a, const Job& b) {
  auto same = [](const auto& x, const auto& y) {
    return x.has_value() == y.has_value() && (!x.has_value() || SameMessage(*x, *y));
  };
  return a.id == b.id && a.lease_owner == b.lease_owner && a.beats == b.beats && SameMessage(a.request, b.request) &&
         SameMessage(a.metadata, b.metadata) && same(a.response, b.response) && same(a.error, b.error);
}

// ---- Create, Get ------------------------------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, WhoWaitsForRoomIsKnown) {
  ASSERT_OK_AND_ASSIGN(std::optional<Job> none, jobs().NextInLine());
  EXPECT_FALSE(none.has_value());
  Job big = NewJob("big");
  big.cost = {.memory_bytes = 100, .disk_bytes = 10};
  ASSERT_OK(jobs().Create(big, ""));
  ASSERT_OK(jobs().Create(NewJob("small"), ""));
  EXPECT_EQ(ClaimId({.memory_bytes = 99, .disk_bytes = 10}), "");
  ASSERT_OK_AND_ASSIGN(std::optional<Job> next, jobs().NextInLine());
  ASSERT_TRUE(next.has_value());
  EXPECT_EQ(next->id, "big");
  EXPECT_EQ(next->cost.memory_bytes, 100);
  EXPECT_EQ(StateOf("big"), Metadata::PENDING);
  EXPECT_EQ(ClaimId({.memory_bytes = 100, .disk_bytes = 10}), "big");
}

TEST_P(JobStoreConformance, CreateKeepsWhatItIsGiven) {
  Job given = NewJob("o1");
  ASSERT_OK_AND_ASSIGN(Job created, jobs().Create(given, "r1"));
  EXPECT_EQ(created.id, "o1");
  EXPECT_TRUE(SameMessage(created.request, given.request));
  EXPECT_EQ(created.metadata.state(), Metadata::PENDING);
  EXPECT_EQ(created.metadata.attempt(), 0);
  EXPECT_EQ(created.metadata.workspace(), "workspaces/w");
  EXPECT_EQ(created.metadata.method(), "SaveModel");
  EXPECT_EQ(google::protobuf::util::TimeUtil::TimestampToMicroseconds(created.metadata.create_time()),
            absl::ToUnixMicros(clock_.Now()));
  EXPECT_FALSE(created.metadata.has_start_time());
  EXPECT_FALSE(created.metadata.has_end_time());
  ASSERT_EQ(created.metadata.inputs_size(), 1);
  EXPECT_TRUE(SameMessage(created.metadata.inputs(0), given.metadata.inputs(0)));
  EXPECT_EQ(created.lease_owner, "");
  EXPECT_FALSE(created.done());

  Reopen();
  ASSERT_OK_AND_ASSIGN(Job stored, jobs().Get("o1"));
  EXPECT_TRUE(SameJob(stored, created));
  EXPECT_REASON(jobs().Get("o2"), OPERATION_NOT_FOUND);
}

TEST_P(JobStoreConformance, CreateNeedsTheWorkspace) {
  EXPECT_REASON(jobs().Create(NewJob("o1", "gone"), ""), WORKSPACE_NOT_FOUND);
  Job unnamed = NewJob("o2");
  unnamed.metadata.set_workspace("w");
  EXPECT_REASON(jobs().Create(unnamed, ""), REQUEST_INVALID);
  EXPECT_REASON(jobs().Get("o1"), OPERATION_NOT_FOUND);
}

TEST_P(JobStoreConformance, CreateNeedsTheInputs) {
  Job job = NewJob("o1");
  constexpr int kInputs = 100;
  for (int i = 0; i < kInputs; ++i) {
    const FileRow file{
        .path = absl::StrCat("data/", i), .sha256 = absl::StrCat(1'000 + i, std::string(60, 'd')), .size_bytes = 1};
    ASSERT_OK(workspaces().PutFile({kProject, "w"}, file));
    v1::File& input = *job.metadata.add_inputs();
    input.set_name("workspaces/w/files/" + file.path);
    input.set_sha256(file.sha256);
  }
  ASSERT_OK(workspaces().CreateWorkspace({kProject, "v"}, "", ""));
  ASSERT_OK(workspaces().CreateWorkspace({"q", "w"}, "", ""));
  const FileRow last{.path = "kept", .sha256 = job.metadata.inputs(kInputs).sha256(), .size_bytes = 1};
  ASSERT_OK(workspaces().PutFile({kProject, "v"}, last));
  ASSERT_OK(workspaces().PutFile({"q", "w"}, last));
  ASSERT_OK(workspaces().DeleteFile({kProject, "w"}, absl::StrCat("data/", kInputs - 1)));
  EXPECT_OK(jobs().Create(job, ""));  // the content is still there
  ASSERT_OK(workspaces().DeleteFile({kProject, "v"}, "kept"));
  job.id = "o2";
  EXPECT_REASON(jobs().Create(job, ""), FILE_CHANGED);
  EXPECT_REASON(jobs().Get("o2"), OPERATION_NOT_FOUND);
  // The first job keeps all of them.
  for (const v1::File& input : job.metadata.inputs()) {
    ASSERT_OK_AND_ASSIGN(const bool removed, workspaces().RemoveUnreferenced(input.sha256(), [] { return absl::OkStatus(); }));
    EXPECT_FALSE(removed);
  }
}

TEST_P(JobStoreConformance, RequestIdGivesTheJobOfThatTime) {
  ASSERT_OK(jobs().Create(NewJob("o1"), "r1"));
  Job again = NewJob("o1");
  again.id = "o2";
  ASSERT_OK_AND_ASSIGN(Job replayed, jobs().Create(again, "r1"));
  EXPECT_EQ(replayed.id, "o1");
  EXPECT_REASON(jobs().Get("o2"), OPERATION_NOT_FOUND);

  EXPECT_REASON(jobs().Create(NewJob("o3"), "r1"), REQUEST_ID_REUSED);
  Job other_type = again;
  other_type.request.set_type_url("type.googleapis.com/modelpress.v1.SavePruneRetrainModelRequest");
  EXPECT_REASON(jobs().Create(other_type, "r1"), REQUEST_ID_REUSED);

  ASSERT_OK_AND_ASSIGN(Job other_id, jobs().Create(again, "r2"));
  EXPECT_EQ(other_id.id, "o2");

  // Also in another process, when it is finished, and whatever the clock says.
  ASSERT_OK(jobs().RequestCancel(kProject, "o1"));
  clock_.Advance(absl::Hours(1000));
  Reopen();
  ASSERT_OK_AND_ASSIGN(replayed, jobs().Create(again, "r1"));
  EXPECT_EQ(replayed.id, "o1");
  EXPECT_EQ(replayed.metadata.state(), Metadata::CANCELLED);
}

TEST_P(JobStoreConformance, WhatARequestIdLedToIsFoundWithoutCreatingAnything) {
  MakeProjects({"q"});
  const Job job = NewJob("o1");
  auto find = [&](const std::string& project, const std::string& request_id, const google::protobuf::Any& request) {
    const absl::StatusOr<std::optional<Job>> found = jobs().FindCreated(project, request_id, request);
    EXPECT_OK(found);
    return found.ok() && found->has_value() ? (*found)->id : "";
  };
  EXPECT_EQ(find(kProject, "r1", job.request), "");
  ASSERT_OK(jobs().Create(job, "r1"));
  ASSERT_OK(jobs().Create(NewJob("o2"), ""));
  EXPECT_EQ(find(kProject, "r1", job.request), "o1");
  EXPECT_EQ(find(kProject, "r2", job.request), "");
  EXPECT_EQ(find(kProject, "", job.request), "");
  EXPECT_EQ(find("q", "r1", job.request), "");
  EXPECT_REASON(jobs().FindCreated(kProject, "r1", AnyOf("other")), REQUEST_ID_REUSED);
  // Its input and its workspace may be gone.
  ASSERT_OK(jobs().RequestCancel(kProject, "o1"));
  ASSERT_OK(jobs().RequestCancel(kProject, "o2"));
  ASSERT_OK(workspaces().DeleteWorkspace({kProject, "w"}));
  EXPECT_EQ(find(kProject, "r1", job.request), "o1");
  ASSERT_OK(jobs().Delete(kProject, "o1"));
  EXPECT_REASON(jobs().FindCreated(kProject, "r1", job.request), OPERATION_NOT_FOUND);
}

TEST_P(JobStoreConformance, ForgottenRequestIdsAreNewAgain) {
  ASSERT_OK(workspaces().CreateWorkspace({kProject, "x"}, "", "r1"));
  for (const char* id : {"1", "2", "3"}) {
    clock_.Advance(absl::Seconds(1));
    ASSERT_OK(jobs().Create(NewJob(absl::StrCat("o", id)), absl::StrCat("r", id)));
  }
  ASSERT_OK_AND_ASSIGN(int64_t forgotten, jobs().ForgetRequests(clock_.Now(), 2));
  EXPECT_EQ(forgotten, 2);
  ASSERT_OK_AND_ASSIGN(forgotten, jobs().ForgetRequests(clock_.Now(), 2));
  EXPECT_EQ(forgotten, 1);
  ASSERT_OK_AND_ASSIGN(forgotten, jobs().ForgetRequests(clock_.Now(), 2));
  EXPECT_EQ(forgotten, 0);
  Job again = NewJob("again");
  ASSERT_OK_AND_ASSIGN(const Job job, jobs().Create(again, "r1"));
  EXPECT_EQ(job.id, "again");
  EXPECT_REASON(jobs().Create(again, "r3"), REQUEST_ID_REUSED);
  ASSERT_OK(workspaces().CreateWorkspace({kProject, "y"}, "", "r1"));
}

TEST_P(JobStoreConformance, AnEmptyRequestIdIsNone) {
  Job job = NewJob("o1");
  ASSERT_OK(jobs().Create(job, ""));
  job.id = "o2";
  ASSERT_OK_AND_ASSIGN(Job second, jobs().Create(job, ""));
  EXPECT_EQ(second.id, "o2");
}

TEST_P(JobStoreConformance, AReplayNeverRunsADeletedJobAgain) {
  ASSERT_OK(jobs().Create(NewJob("o1"), "r1"));
  ASSERT_OK(jobs().RequestCancel(kProject, "o1"));
  ASSERT_OK(jobs().Delete(kProject, "o1"));
  EXPECT_REASON(jobs().Create(NewJob("o1"), "r1"), OPERATION_NOT_FOUND);
}

TEST_P(JobStoreConformance, OneRequestIdFromManyThreadsMakesOneJob) {
  std::unique_ptr<StoreHandle> other = harness_->Open(clock_, quotas_);
  std::mutex mutex;
  std::set<std::string> ids;
  std::vector<std::thread> threads;
  threads.reserve(6);
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      Job job = NewJob("o");
      job.id = absl::StrCat("o", i);
      absl::StatusOr<Job> created = (i % 2 == 0 ? jobs() : other->jobs()).Create(job, "r");
      std::lock_guard<std::mutex> lock(mutex);
      EXPECT_OK(created);
      ids.insert(created.ok() ? created->id : "none");
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(ids.size(), 1);
}

// ---- Claim ------------------------------------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, ClaimTakesTheOldest) {
  ASSERT_OK_AND_ASSIGN(std::optional<Job> none, jobs().Claim({"worker"}));
  EXPECT_FALSE(none.has_value());
  ASSERT_OK(jobs().Create(NewJob("oz"), ""));
  ASSERT_OK(jobs().Create(NewJob("oa"), ""));
  clock_.Advance(absl::Seconds(5));
  ASSERT_OK_AND_ASSIGN(std::optional<Job> first, jobs().Claim({"worker"}));
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->id, "oz");
  EXPECT_EQ(first->metadata.state(), Metadata::RUNNING);
  EXPECT_EQ(first->metadata.attempt(), 1);
  EXPECT_EQ(first->lease_owner, "worker");
  EXPECT_EQ(google::protobuf::util::TimeUtil::TimestampToMicroseconds(first->metadata.start_time()),
            absl::ToUnixMicros(clock_.Now()));
  ASSERT_OK_AND_ASSIGN(Job stored, jobs().Get("oz"));
  EXPECT_TRUE(SameJob(stored, *first));
  ASSERT_OK_AND_ASSIGN(std::optional<Job> second, jobs().Claim({"worker"}));
  EXPECT_EQ(second->id, "oa");
  ASSERT_OK_AND_ASSIGN(none, jobs().Claim({"worker"}));
  EXPECT_FALSE(none.has_value());
}

TEST_P(JobStoreConformance, EachJobIsClaimedOnceByManyThreadsOfTwoProcesses) {
  constexpr int kJobs = 40;
  for (int i = 0; i < kJobs; ++i) {
    ASSERT_OK(jobs().Create(NewJob(absl::StrCat("o", i)), ""));
  }
  std::unique_ptr<StoreHandle> other = harness_->Open(clock_, quotas_);
  std::mutex mutex;
  std::map<std::string, int> claims;
  std::vector<std::thread> threads;
  threads.reserve(8);
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      JobStore& store = i % 2 == 0 ? jobs() : other->jobs();
      while (true) {
        absl::StatusOr<std::optional<Job>> job = store.Claim({absl::StrCat("worker", i)});
        EXPECT_OK(job);
        if (!job.ok() || !job->has_value()) {
          return;
        }
        EXPECT_EQ((*job)->metadata.attempt(), 1);
        EXPECT_EQ((*job)->lease_owner, absl::StrCat("worker", i));
        std::lock_guard<std::mutex> lock(mutex);
        ++claims[(*job)->id];
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(claims.size(), kJobs);
  for (const auto& [id, count] : claims) {
    EXPECT_EQ(count, 1) << id;
  }
}

// ---- Heartbeat, leases ------------------------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, HeartbeatExtendsTheLeaseAndShowsProgress) {
  MakeJobIn(Metadata::RUNNING, "o1");
  v1::Progress progress;
  progress.set_stage("quantize");
  progress.set_done(3);
  progress.set_total(9);
  clock_.Advance(absl::Seconds(10));
  ASSERT_OK_AND_ASSIGN(Metadata::State state, jobs().Heartbeat("o1", 1, progress));
  EXPECT_EQ(state, Metadata::RUNNING);
  ASSERT_OK_AND_ASSIGN(state, jobs().HeldState("o1", 1));
  EXPECT_EQ(state, Metadata::RUNNING);
  ASSERT_OK_AND_ASSIGN(Job job, jobs().Get("o1"));
  EXPECT_TRUE(SameMessage(job.metadata.progress(), progress));

  ASSERT_OK(jobs().RequestCancel(kProject, "o1"));
  ASSERT_OK_AND_ASSIGN(state, jobs().HeldState("o1", 1));
  EXPECT_EQ(state, Metadata::CANCELLING);
  ASSERT_OK_AND_ASSIGN(state, jobs().Heartbeat("o1", 1, progress));
  EXPECT_EQ(state, Metadata::CANCELLING);
}

TEST_P(JobStoreConformance, HeartbeatsAreCountedWhileALeaseIsHeld) {
  MakeJobIn(Metadata::RUNNING, "o1");
  MakeJobIn(Metadata::CANCELLING, "o2");
  ASSERT_OK(jobs().Create(NewJob("o3"), ""));
  auto beats = [this] {
    std::map<std::string, int64_t> of;
    absl::StatusOr<std::vector<Lease>> leases = jobs().Leases();
    EXPECT_OK(leases);
    for (const Lease& lease : *leases) {
      of[lease.job_id] = lease.beats;
    }
    return of;
  };
  std::map<std::string, int64_t> first = beats();
  ASSERT_EQ(first.size(), 2);
  Reopen();
  EXPECT_EQ(beats(), first);

  ASSERT_OK(jobs().Heartbeat("o1", 1, {}));
  std::map<std::string, int64_t> second = beats();
  EXPECT_GT(second["o1"], first["o1"]);
  EXPECT_EQ(second["o2"], first["o2"]);

  // A new attempt never looks like one that stands still.
  ASSERT_OK(jobs().Requeue("o1", 1, /*failed=*/true));
  ASSERT_OK(jobs().Claim({"other"}));
  EXPECT_GT(beats()["o1"], second["o1"]);

  ASSERT_OK(jobs().Finish("o1", 2, Success()));
  ASSERT_OK(jobs().Requeue("o2", 1, /*failed=*/true));
  EXPECT_TRUE(beats().empty());
}

// ---- The transitions, all of them -------------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, OnlyTheHolderMovesAJob) {
  for (Metadata::State state : AllStates()) {
    SCOPED_TRACE(Metadata::State_Name(state));
    Reset();
    MakeJobIn(state, "o1");
    ASSERT_OK_AND_ASSIGN(Job before, jobs().Get("o1"));
    bool held = state == Metadata::RUNNING || state == Metadata::CANCELLING;
    for (int attempt : {0, 1, 2}) {
      if (held && attempt == 1) {
        continue;
      }
      EXPECT_NOT_HELD(jobs().Heartbeat("o1", attempt, {}));
      EXPECT_NOT_HELD(jobs().HeldState("o1", attempt));
      EXPECT_NOT_HELD(jobs().Finish("o1", attempt, Success({Output("results/x")})));
      EXPECT_NOT_HELD(jobs().Finish("o1", attempt, Failure()));
      EXPECT_NOT_HELD(jobs().Requeue("o1", attempt, /*failed=*/true));
    }
    ASSERT_OK_AND_ASSIGN(Job after, jobs().Get("o1"));
    EXPECT_TRUE(SameJob(before, after));
    EXPECT_REASON(workspaces().GetFile({kProject, "w"}, "results/x"), FILE_NOT_FOUND);
  }
  EXPECT_NOT_HELD(jobs().Heartbeat("none", 1, {}));
  EXPECT_NOT_HELD(jobs().HeldState("none", 1));
  EXPECT_NOT_HELD(jobs().Finish("none", 1, Success()));
  EXPECT_NOT_HELD(jobs().Requeue("none", 1, /*failed=*/true));
}

TEST_P(JobStoreConformance, ClaimLeavesAllButPendingJobsAlone) {
  for (Metadata::State state : AllStates()) {
    SCOPED_TRACE(Metadata::State_Name(state));
    Reset();
    MakeJobIn(state, "o1");
    ASSERT_OK_AND_ASSIGN(std::optional<Job> job, jobs().Claim({"other"}));
    EXPECT_EQ(job.has_value(), state == Metadata::PENDING);
    EXPECT_EQ(StateOf("o1"), state == Metadata::PENDING ? Metadata::RUNNING : state);
  }
}

TEST_P(JobStoreConformance, CancelInEveryState) {
  const std::map<Metadata::State, Metadata::State> next = {{Metadata::PENDING, Metadata::CANCELLED},
                                                           {Metadata::RUNNING, Metadata::CANCELLING}};
  for (Metadata::State state : AllStates()) {
    SCOPED_TRACE(Metadata::State_Name(state));
    Reset();
    MakeJobIn(state, "o1");
    ASSERT_OK_AND_ASSIGN(Job before, jobs().Get("o1"));
    ASSERT_OK_AND_ASSIGN(Job after, jobs().RequestCancel(kProject, "o1"));
    auto changed = next.find(state);
    EXPECT_EQ(after.metadata.state(), changed == next.end() ? state : changed->second);
    if (changed == next.end()) {
      EXPECT_TRUE(SameJob(before, after));
    }
    ASSERT_OK_AND_ASSIGN(Job stored, jobs().Get("o1"));
    EXPECT_TRUE(SameJob(stored, after));
    if (state == Metadata::PENDING) {
      ASSERT_TRUE(after.error.has_value());
      EXPECT_EQ(after.error->code(), static_cast<int>(absl::StatusCode::kCancelled));
      EXPECT_TRUE(after.metadata.has_end_time());
      EXPECT_FALSE(after.response.has_value());
    }
  }
  EXPECT_REASON(jobs().RequestCancel(kProject, "none"), OPERATION_NOT_FOUND);
}

TEST_P(JobStoreConformance, DeleteInEveryState) {
  for (Metadata::State state : AllStates()) {
    SCOPED_TRACE(Metadata::State_Name(state));
    Reset();
    MakeJobIn(state, "o1");
    if (state == Metadata::PENDING || state == Metadata::RUNNING || state == Metadata::CANCELLING) {
      EXPECT_REASON(jobs().Delete(kProject, "o1"), OPERATION_RUNNING);
      EXPECT_EQ(StateOf("o1"), state);
    } else {
      EXPECT_OK(jobs().Delete(kProject, "o1"));
      EXPECT_REASON(jobs().Get("o1"), OPERATION_NOT_FOUND);
      EXPECT_REASON(jobs().Delete(kProject, "o1"), OPERATION_NOT_FOUND);
    }
  }
}

TEST_P(JobStoreConformance, FinishFromRunningAndCancelling) {
  for (Metadata::State from : {Metadata::RUNNING, Metadata::CANCELLING}) {
    for (Metadata::State to : {Metadata::SUCCEEDED, Metadata::FAILED, Metadata::CANCELLED}) {
      SCOPED_TRACE(absl::StrCat(Metadata::State_Name(from), " to ", Metadata::State_Name(to)));
      Reset();
      MakeJobIn(from, "o1");
      absl::StatusOr<Metadata::State> ended = jobs().Finish("o1", 1, to == Metadata::SUCCEEDED ? Success() : Failure(to));
      if (from == Metadata::RUNNING && to == Metadata::CANCELLED) {
        EXPECT_REASON(ended, INTERNAL_ERROR);
        EXPECT_EQ(StateOf("o1"), from);
        continue;
      }
      ASSERT_OK(ended);
      EXPECT_EQ(*ended, to);
      ASSERT_OK_AND_ASSIGN(Job job, jobs().Get("o1"));
      EXPECT_EQ(job.metadata.state(), to);
      EXPECT_EQ(job.response.has_value(), to == Metadata::SUCCEEDED);
      EXPECT_EQ(job.error.has_value(), to != Metadata::SUCCEEDED);
      EXPECT_TRUE(job.done());
      EXPECT_EQ(job.lease_owner, "");
    }
  }
}

TEST_P(JobStoreConformance, RequeueGivesAnotherAttempt) {
  MakeJobIn(Metadata::RUNNING, "o1");
  ASSERT_OK(jobs().Create(NewJob("o2"), ""));
  v1::Progress progress;
  progress.set_done(5);
  ASSERT_OK(jobs().Heartbeat("o1", 1, progress));
  ASSERT_OK(jobs().Requeue("o1", 1, /*failed=*/true));
  ASSERT_OK_AND_ASSIGN(Job job, jobs().Get("o1"));
  EXPECT_EQ(job.metadata.state(), Metadata::PENDING);
  EXPECT_EQ(job.metadata.attempt(), 1);
  EXPECT_EQ(job.metadata.progress().done(), 0);
  EXPECT_EQ(job.lease_owner, "");

  ASSERT_OK_AND_ASSIGN(std::optional<Job> claimed, jobs().Claim({"second"}));
  EXPECT_EQ(claimed->id, "o1");  // it keeps its place in the queue
  EXPECT_EQ(claimed->metadata.attempt(), 2);
  // What is left of the first attempt can do no harm.
  EXPECT_NOT_HELD(jobs().Heartbeat("o1", 1, progress));
  EXPECT_NOT_HELD(jobs().HeldState("o1", 1));
  EXPECT_NOT_HELD(jobs().Finish("o1", 1, Success({Output("results/x")})));
  EXPECT_NOT_HELD(jobs().Requeue("o1", 1, /*failed=*/true));
  ASSERT_OK_AND_ASSIGN(job, jobs().Get("o1"));
  EXPECT_TRUE(SameJob(job, *claimed));
  EXPECT_REASON(workspaces().GetFile({kProject, "w"}, "results/x"), FILE_NOT_FOUND);
  EXPECT_OK(jobs().Finish("o1", 2, Success()));
}

TEST_P(JobStoreConformance, OnlyFailedAttemptsCountAsFailures) {
  MakeJobIn(Metadata::RUNNING, "o1");
  int failures = 0;
  for (int attempt = 1; attempt <= 4; ++attempt) {
    const bool failed = attempt % 2 == 0;
    ASSERT_OK(jobs().Requeue("o1", attempt, failed));
    failures += failed ? 1 : 0;
    ASSERT_OK_AND_ASSIGN(std::optional<Job> job, jobs().Claim({"w"}));
    ASSERT_TRUE(job.has_value());
    EXPECT_EQ(job->failures, failures);
  }
}

TEST_P(JobStoreConformance, RequeueEndsACancelledJob) {
  MakeJobIn(Metadata::CANCELLING, "o1");
  ASSERT_OK(jobs().Requeue("o1", 1, /*failed=*/true));
  ASSERT_OK_AND_ASSIGN(Job job, jobs().Get("o1"));
  EXPECT_EQ(job.metadata.state(), Metadata::CANCELLED);
  ASSERT_TRUE(job.error.has_value());
  EXPECT_EQ(job.error->code(), static_cast<int>(absl::StatusCode::kCancelled));
  EXPECT_TRUE(job.metadata.has_end_time());
  EXPECT_EQ(job.lease_owner, "");
}

TEST_P(JobStoreConformance, RevokeTakesFromTheSilentOnly) {
  MakeJobIn(Metadata::RUNNING, "o1");
  auto leased = [&] {
    const absl::StatusOr<std::vector<Lease>> held = jobs().Leases();
    EXPECT_OK(held);
    return held.ok() && held->size() == 1 ? held->front() : Lease();
  };
  EXPECT_OK(jobs().AwaitTurn());
  Lease seen = leased();
  EXPECT_EQ(seen.owner, "worker");
  ASSERT_OK(jobs().Heartbeat("o1", 1, {}));
  EXPECT_NOT_HELD(jobs().Revoke(seen, std::nullopt));
  EXPECT_NOT_HELD(jobs().Revoke(seen, Failure()));
  EXPECT_EQ(StateOf("o1"), Metadata::RUNNING);
  seen = leased();
  ASSERT_OK(jobs().Revoke(seen, std::nullopt));
  ASSERT_OK_AND_ASSIGN(const Job job, jobs().Get("o1"));
  EXPECT_EQ(job.metadata.state(), Metadata::PENDING);
  EXPECT_EQ(job.failures, 0);
  EXPECT_EQ(job.lease_owner, "");
  EXPECT_NOT_HELD(jobs().Revoke(seen, std::nullopt));

  ASSERT_EQ(ClaimId(), "o1");
  seen = leased();
  ASSERT_OK(jobs().RequestCancel(kProject, "o1"));  // no sign of life
  ASSERT_OK(jobs().Revoke(seen, std::nullopt));
  EXPECT_EQ(StateOf("o1"), Metadata::CANCELLED);

  MakeJobIn(Metadata::RUNNING, "o2");
  ASSERT_OK(jobs().Revoke(leased(), Failure()));
  EXPECT_EQ(StateOf("o2"), Metadata::FAILED);
  EXPECT_OK(jobs().AwaitTurn());
}

TEST_P(JobStoreConformance, FinishLinksTheOutputs) {
  ASSERT_OK(workspaces().PutFile({kProject, "w"}, {.path = "results/a", .sha256 = std::string(64, 'f'), .size_bytes = 1}));
  MakeJobIn(Metadata::RUNNING, "o1");
  clock_.Advance(absl::Seconds(3));
  Outcome outcome = Success({Output("results/a", 'b'), Output("results/b", 'c')});
  outcome.warnings = {"w1", "w2"};
  outcome.report = "{}";
  ASSERT_OK(jobs().Finish("o1", 1, outcome));
  Reopen();
  ASSERT_OK_AND_ASSIGN(Job job, jobs().Get("o1"));
  EXPECT_EQ(job.response->value(), "response");
  EXPECT_THAT(job.metadata.warnings(), ElementsAre("w1", "w2"));
  EXPECT_EQ(job.metadata.report(), "{}");
  EXPECT_EQ(job.metadata.inputs_size(), 1);
  ASSERT_EQ(job.metadata.outputs_size(), 2);
  EXPECT_EQ(job.metadata.outputs(0).name(), "workspaces/w/files/results/a");
  EXPECT_EQ(job.metadata.outputs(0).sha256(), std::string(64, 'b'));
  EXPECT_EQ(job.metadata.outputs(0).size_bytes(), 7);
  EXPECT_EQ(google::protobuf::util::TimeUtil::TimestampToMicroseconds(job.metadata.end_time()), absl::ToUnixMicros(clock_.Now()));
  ASSERT_OK_AND_ASSIGN(FileRow a, workspaces().GetFile({kProject, "w"}, "results/a"));
  EXPECT_EQ(a.sha256, std::string(64, 'b'));
  EXPECT_EQ(a.size_bytes, 7);
  EXPECT_EQ(a.update_time, clock_.Now());
  EXPECT_OK(workspaces().GetFile({kProject, "w"}, "results/b"));
}

TEST_P(JobStoreConformance, FinishRefusesWhatIsNoOutcome) {
  MakeJobIn(Metadata::RUNNING, "o1");
  Outcome without_response = Success();
  without_response.response.reset();
  Outcome with_both = Success();
  with_both.error = google::rpc::Status();
  Outcome without_error = Failure();
  without_error.error.reset();
  Outcome failed_with_outputs = Failure();
  failed_with_outputs.outputs = {Output("results/x")};
  Outcome not_final = Success();
  not_final.state = Metadata::PENDING;
  for (const Outcome& outcome : {without_response, with_both, without_error, failed_with_outputs, not_final}) {
    EXPECT_REASON(jobs().Finish("o1", 1, outcome), INTERNAL_ERROR);
  }
  EXPECT_EQ(StateOf("o1"), Metadata::RUNNING);
}

// ---- List, Count, Version ---------------------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, ListsNewestFirstInPages) {
  for (int i = 0; i < 7; ++i) {
    ASSERT_OK(jobs().Create(NewJob(absl::StrCat("o", 9 - i)), ""));  // ids against the order of time
  }
  ASSERT_OK_AND_ASSIGN(JobPage page, jobs().List(kProject, {}, 3, ""));
  EXPECT_THAT(Ids(page.jobs), ElementsAre("o3", "o4", "o5"));
  ASSERT_NE(page.next_page_token, "");
  ASSERT_OK(jobs().Create(NewJob("onew"), ""));  // newer ones do not shift the pages
  Reopen();
  ASSERT_OK_AND_ASSIGN(page, jobs().List(kProject, {}, 3, page.next_page_token));
  EXPECT_THAT(Ids(page.jobs), ElementsAre("o6", "o7", "o8"));
  ASSERT_OK_AND_ASSIGN(page, jobs().List(kProject, {}, 3, page.next_page_token));
  EXPECT_THAT(Ids(page.jobs), ElementsAre("o9"));
  EXPECT_EQ(page.next_page_token, "");
  // A page that is exactly full and the last.
  ASSERT_OK_AND_ASSIGN(page, jobs().List(kProject, {}, 8, ""));
  EXPECT_EQ(page.jobs.size(), 8);
  EXPECT_EQ(page.next_page_token, "");
}

TEST_P(JobStoreConformance, PagesGoOnWhereTheirJobsWereDeleted) {
  for (int i = 0; i < 6; ++i) {
    ASSERT_OK(jobs().Create(NewJob(absl::StrCat("o", i)), ""));
  }
  ASSERT_OK_AND_ASSIGN(JobPage page, jobs().List(kProject, {}, 2, ""));
  EXPECT_THAT(Ids(page.jobs), ElementsAre("o5", "o4"));
  for (const char* id : {"o5", "o4", "o3"}) {
    ASSERT_OK(jobs().RequestCancel(kProject, id));
    ASSERT_OK(jobs().Delete(kProject, id));
  }
  ASSERT_OK(jobs().Create(NewJob("onew"), ""));
  ASSERT_OK_AND_ASSIGN(page, jobs().List(kProject, {}, 2, page.next_page_token));
  EXPECT_THAT(Ids(page.jobs), ElementsAre("o2", "o1"));
}

TEST_P(JobStoreConformance, TellsWhichJobsAreUnfinished) {
  std::vector<std::string> asked = {"none"};
  for (int i = 0; i < 70; ++i) {
    asked.push_back(absl::StrCat("o", i));
    ASSERT_OK(jobs().Create(NewJob(asked.back()), ""));
  }
  ASSERT_EQ(ClaimId(), "o0");  // RUNNING
  ASSERT_OK(jobs().RequestCancel(kProject, "o1"));
  ASSERT_OK(jobs().RequestCancel(kProject, "o2"));
  ASSERT_OK(jobs().Delete(kProject, "o2"));
  std::set<std::string> unfinished(asked.begin(), asked.end());
  for (const char* id : {"none", "o1", "o2"}) {
    unfinished.erase(id);
  }
  ASSERT_OK_AND_ASSIGN(std::set<std::string> told, jobs().Unfinished(asked));
  EXPECT_EQ(told, unfinished);
  ASSERT_OK_AND_ASSIGN(told, jobs().Unfinished({}));
  EXPECT_TRUE(told.empty());
}

TEST_P(JobStoreConformance, PageTokensDoNotCountWhatOthersDo) {
  MakeProjects({"q"});
  ASSERT_OK(jobs().Create(NewJob("o1"), ""));
  for (int i = 0; i < 5; ++i) {
    ASSERT_OK(jobs().Create(JobOf("q", absl::StrCat("q", i)), ""));
  }
  ASSERT_OK(jobs().Create(NewJob("o2"), ""));
  ASSERT_OK_AND_ASSIGN(const JobPage page, jobs().List(kProject, {}, 1, ""));
  ASSERT_OK_AND_ASSIGN(const std::string key,
                       DecodePageToken(absl::StrCat("projects/", kProject, "/operations"), page.next_page_token));
  EXPECT_EQ(key, "2");
}

TEST_P(JobStoreConformance, PageSizesAndTokensByTheRules) {
  for (int i = 0; i < 52; ++i) {
    ASSERT_OK(jobs().Create(NewJob(absl::StrCat("o", i)), ""));
  }
  ASSERT_OK_AND_ASSIGN(JobPage page, jobs().List(kProject, {}, 0, ""));
  EXPECT_EQ(page.jobs.size(), 50);
  const std::string token = page.next_page_token;
  ASSERT_OK_AND_ASSIGN(page, jobs().List(kProject, {}, 1'000'000, token));
  EXPECT_EQ(page.jobs.size(), 2);
  EXPECT_REASON(jobs().List(kProject, {}, -1, ""), REQUEST_INVALID);
  EXPECT_REASON(jobs().List(kProject, {}, 10, "x"), PAGE_TOKEN_INVALID);
  EXPECT_REASON(jobs().List(kProject, {}, 10, "!" + token), PAGE_TOKEN_INVALID);
  std::string changed = token;
  changed[0] = changed[0] == 'A' ? 'B' : 'A';
  EXPECT_REASON(jobs().List(kProject, {}, 10, changed), PAGE_TOKEN_INVALID);
  EXPECT_REASON(jobs().List(kProject, {.done = true}, 10, token), PAGE_TOKEN_INVALID);
  ASSERT_OK_AND_ASSIGN(Page<WorkspaceRow> other_list, workspaces().ListWorkspaces(kProject, 1, ""));
  EXPECT_REASON(workspaces().ListWorkspaces(kProject, 1, token), PAGE_TOKEN_INVALID);
}

TEST_P(JobStoreConformance, BigJobsMakeShortPages) {
  const std::string megabyte(1 << 20, 'x');
  for (int i = 0; i < 5; ++i) {
    MakeJobIn(Metadata::RUNNING, absl::StrCat("warned", i));
    Outcome outcome = Success();
    outcome.warnings = {megabyte};
    ASSERT_OK(jobs().Finish(absl::StrCat("warned", i), 1, outcome));
  }
  MakeJobIn(Metadata::RUNNING, "huge");
  Outcome outcome = Success();
  outcome.response = AnyOf(std::string(kJobPageBytes, 'x'));
  ASSERT_OK(jobs().Finish("huge", 1, outcome));
  for (int i = 0; i < 5; ++i) {  // requests are not listed
    Job job = NewJob(absl::StrCat("asked", i));
    job.request = AnyOf(megabyte);
    ASSERT_OK(jobs().Create(job, ""));
  }
  std::vector<std::vector<std::string>> pages;
  std::string token;
  do {
    ASSERT_OK_AND_ASSIGN(const JobPage page, jobs().List(kProject, {}, 100, token));
    pages.push_back(Ids(page.jobs));
    size_t bytes = 0;
    for (const Job& job : page.jobs) {
      EXPECT_EQ(job.request.ByteSizeLong(), 0);
      bytes += ToOperation(job).ByteSizeLong();
    }
    EXPECT_TRUE(page.jobs.size() == 1 || bytes <= kJobPageBytes) << bytes;
    token = page.next_page_token;
  } while (!token.empty());
  EXPECT_THAT(pages, ElementsAre(ElementsAre("asked4", "asked3", "asked2", "asked1", "asked0"), ElementsAre("huge"),
                                 ElementsAre("warned4", "warned3"), ElementsAre("warned2", "warned1"), ElementsAre("warned0")));
  // The number of jobs is a limit as before.
  ASSERT_OK_AND_ASSIGN(const JobPage page, jobs().List(kProject, {.state = Metadata::SUCCEEDED}, 1, ""));
  EXPECT_THAT(Ids(page.jobs), ElementsAre("huge"));
  EXPECT_NE(page.next_page_token, "");
}

TEST_P(JobStoreConformance, Filters) {
  ASSERT_OK(workspaces().CreateWorkspace({kProject, "v"}, "", ""));
  MakeJobIn(Metadata::SUCCEEDED, "o1");
  MakeJobIn(Metadata::FAILED, "o2");
  MakeJobIn(Metadata::RUNNING, "o3");
  ASSERT_OK(jobs().Create(NewJob("o4", "v"), ""));
  ASSERT_OK(jobs().Create(NewJob("o5", "w", "SavePruneRetrainModel"), ""));
  auto ids = [this](const JobFilter& filter) {
    absl::StatusOr<JobPage> page = jobs().List(kProject, filter, 0, "");
    EXPECT_OK(page);
    return page.ok() ? Ids(page->jobs) : std::vector<std::string>();
  };
  EXPECT_THAT(ids({.workspace = "workspaces/v"}), ElementsAre("o4"));
  EXPECT_THAT(ids({.workspace = "workspaces/none"}), IsEmpty());
  EXPECT_THAT(ids({.method = "SaveModel"}), ElementsAre("o4", "o3", "o2", "o1"));
  EXPECT_THAT(ids({.state = Metadata::PENDING}), ElementsAre("o5", "o4"));
  EXPECT_THAT(ids({.done = true}), ElementsAre("o2", "o1"));
  EXPECT_THAT(ids({.done = false}), ElementsAre("o5", "o4", "o3"));
  EXPECT_THAT(ids({.workspace = "workspaces/w", .method = "SaveModel", .done = false}), ElementsAre("o3"));
  EXPECT_THAT(ids({.state = Metadata::PENDING, .done = true}), IsEmpty());

  ASSERT_OK_AND_ASSIGN(auto counts, jobs().Count());
  std::map<std::pair<std::string, Metadata::State>, int64_t> expected = {{{"SaveModel", Metadata::PENDING}, 1},
                                                                         {{"SaveModel", Metadata::RUNNING}, 1},
                                                                         {{"SaveModel", Metadata::SUCCEEDED}, 1},
                                                                         {{"SaveModel", Metadata::FAILED}, 1},
                                                                         {{"SavePruneRetrainModel", Metadata::PENDING}, 1}};
  EXPECT_EQ((std::map<std::pair<std::string, Metadata::State>, int64_t>(counts.begin(), counts.end())), expected);
}

TEST_P(JobStoreConformance, VersionTellsOfEveryChangeByAnyProcess) {
  std::unique_ptr<StoreHandle> other = harness_->Open(clock_, quotas_);
  uint64_t here = *jobs().Version();
  uint64_t there = *other->jobs().Version();
  auto changed = [&](const char* what) {
    SCOPED_TRACE(what);
    ASSERT_OK_AND_ASSIGN(uint64_t now_here, jobs().Version());
    ASSERT_OK_AND_ASSIGN(uint64_t now_there, other->jobs().Version());
    EXPECT_NE(now_here, here);
    EXPECT_NE(now_there, there);
    here = now_here;
    there = now_there;
  };
  ASSERT_OK(jobs().Create(NewJob("o1"), ""));
  changed("create");
  ASSERT_OK(other->jobs().Claim({"worker"}));
  changed("claim elsewhere");
  ASSERT_OK(jobs().Heartbeat("o1", 1, {}));
  changed("heartbeat");
  ASSERT_OK(jobs().RequestCancel(kProject, "o1"));
  changed("cancel");
  ASSERT_OK(other->jobs().Finish("o1", 1, Failure()));
  changed("finish elsewhere");
  ASSERT_OK(jobs().Delete(kProject, "o1"));
  changed("delete");
  ASSERT_OK(jobs().List(kProject, {}, 0, ""));
  ASSERT_OK(other->jobs().Claim({"worker"}));
  EXPECT_EQ(*jobs().Version(), here);
  EXPECT_EQ(*other->jobs().Version(), there);
}

TEST_P(JobStoreConformance, AnotherProcessSeesEveryChangeAtOnce) {
  std::unique_ptr<StoreHandle> other = harness_->Open(clock_, quotas_);
  ASSERT_OK(jobs().Create(NewJob("o1"), ""));
  ASSERT_OK_AND_ASSIGN(std::optional<Job> claimed, other->jobs().Claim({"other"}));
  ASSERT_TRUE(claimed.has_value());
  EXPECT_EQ(StateOf("o1"), Metadata::RUNNING);
  ASSERT_OK(jobs().RequestCancel(kProject, "o1"));
  ASSERT_OK_AND_ASSIGN(Metadata::State state, other->jobs().Heartbeat("o1", 1, {}));
  EXPECT_EQ(state, Metadata::CANCELLING);
}

// ---- Turns ------------------------------------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, ProjectsTakeTurns) {
  MakeProjects({"a", "b", "c"});
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK(jobs().Create(JobOf("a", absl::StrCat("a", i)), ""));
  }
  EXPECT_EQ(ClaimId(), "a0");
  ASSERT_OK(jobs().Create(JobOf("b", "b0"), ""));
  ASSERT_OK(jobs().Create(JobOf("b", "b1"), ""));
  EXPECT_EQ(ClaimId(), "b0");  // nothing of b runs yet
  EXPECT_EQ(ClaimId(), "a1");  // as many of each run: a has waited longer
  ASSERT_OK(jobs().Create(JobOf("c", "c0"), ""));
  EXPECT_EQ(ClaimId(), "c0");
  EXPECT_EQ(ClaimId(), "b1");
  ASSERT_OK(jobs().Finish("a0", 1, Success()));
  ASSERT_OK(jobs().RequestCancel("a", "a1"));  // ends some time, runs until then
  EXPECT_EQ(ClaimId(), "a2");
  // A job that comes back has its old place.
  ASSERT_OK(jobs().Requeue("b0", 1, /*failed=*/false));
  ASSERT_OK(jobs().Finish("b1", 1, Failure()));
  EXPECT_EQ(ClaimId(), "b0");
}

TEST_P(JobStoreConformance, NoProjectRunsMoreThanItsQuota) {
  quotas_ = Quotas({.running = 2}, {{"a", {.running = 1}}, {"b", {}}});
  MakeProjects({"a", "b"});
  for (int i = 0; i < 4; ++i) {
    ASSERT_OK(jobs().Create(JobOf("a", absl::StrCat("a", i)), ""));
    ASSERT_OK(jobs().Create(NewJob(absl::StrCat("o", i)), ""));
  }
  EXPECT_EQ(ClaimId(), "a0");
  EXPECT_EQ(ClaimId(), "o0");
  EXPECT_EQ(ClaimId(), "o1");
  EXPECT_EQ(ClaimId(), "");
  for (int i = 0; i < 4; ++i) {
    ASSERT_OK(jobs().Create(JobOf("b", absl::StrCat("b", i)), ""));
    EXPECT_EQ(ClaimId(), absl::StrCat("b", i));
  }
  ASSERT_OK(jobs().RequestCancel("a", "a0"));
  EXPECT_EQ(ClaimId(), "");  // it runs until it has ended
  ASSERT_OK(jobs().Finish("a0", 1, Failure(Metadata::CANCELLED)));
  EXPECT_EQ(ClaimId(), "a1");
  ASSERT_OK(jobs().Requeue("o0", 1, /*failed=*/false));
  EXPECT_EQ(ClaimId(), "o0");
  EXPECT_EQ(ClaimId(), "");
}

TEST_P(JobStoreConformance, ManyWorkersDoNotOvershootTheQuotaOfRunningJobs) {
  quotas_ = Quotas({.running = 3}, {});
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK(jobs().Create(NewJob(absl::StrCat("o", i)), ""));
  }
  EXPECT_EQ(CountOk([](StoreHandle& handle, int) { return handle.jobs().Claim({"worker"})->has_value(); }), 3);
}

TEST_P(JobStoreConformance, ABigJobIsNotOvertaken) {
  MakeProjects({"a"});
  Job big = JobOf("a", "big");
  big.cost = {.memory_bytes = 100, .disk_bytes = 1000};
  ASSERT_OK(jobs().Create(big, ""));
  Job small = JobOf("a", "small");
  small.cost = {.memory_bytes = 1};
  ASSERT_OK(jobs().Create(small, ""));
  ASSERT_OK(jobs().Create(NewJob("other"), ""));  // nor by other projects while it is its turn
  EXPECT_EQ(ClaimId({.memory_bytes = 99, .disk_bytes = 1000}), "");
  EXPECT_EQ(ClaimId({.memory_bytes = 100, .disk_bytes = 999}), "");
  EXPECT_EQ(ClaimId({.memory_bytes = 100, .disk_bytes = 1000}), "big");
  ASSERT_OK_AND_ASSIGN(Job stored, jobs().Get("big"));
  EXPECT_EQ(stored.cost.memory_bytes, 100);
  EXPECT_EQ(stored.cost.disk_bytes, 1000);
  EXPECT_EQ(ClaimId({.memory_bytes = 0, .disk_bytes = 0}), "other");  // its cost is not known
  EXPECT_EQ(ClaimId({.memory_bytes = 0, .disk_bytes = 0}), "");
  EXPECT_EQ(ClaimId({.memory_bytes = 1, .disk_bytes = 0}), "small");

  Job huge = NewJob("huge");
  huge.cost = {.memory_bytes = UINT64_MAX, .disk_bytes = UINT64_MAX};
  ASSERT_OK(jobs().Create(huge, ""));
  EXPECT_EQ(ClaimId({.memory_bytes = uint64_t{1} << 62, .disk_bytes = uint64_t{1} << 62}), "");
  EXPECT_EQ(ClaimId(), "huge");
}

// ---- Quotas -----------------------------------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, NoMoreJobsWaitThanTheQuotaAllows) {
  quotas_ = Quotas({.pending = 2}, {{"free", {}}});
  MakeProjects({"free"});
  ASSERT_OK(jobs().Create(NewJob("o1"), "r1"));
  ASSERT_OK(jobs().Create(NewJob("o2"), ""));
  const absl::Status refused = jobs().Create(NewJob("o3"), "r3").status();
  EXPECT_REASON(refused, QUOTA_EXCEEDED);
  EXPECT_THAT(MetadataOf(refused), testing::IsSupersetOf({testing::Pair("quota", "pending"), testing::Pair("limit", "2"),
                                                          testing::Pair("used", "2")}));
  EXPECT_REASON(jobs().Get("o3"), OPERATION_NOT_FOUND);
  EXPECT_OK(jobs().Create(NewJob("o1"), "r1"));  // nothing new
  for (int i = 0; i < 5; ++i) {
    EXPECT_OK(jobs().Create(JobOf("free", absl::StrCat("f", i)), ""));
  }
  ASSERT_OK(jobs().RequestCancel(kProject, "o1"));
  EXPECT_OK(jobs().Create(NewJob("o3"), "r3"));  // what was refused was not remembered
  EXPECT_REASON(jobs().Create(NewJob("o4"), ""), QUOTA_EXCEEDED);
  ASSERT_OK(jobs().Claim({"worker"}));
  ASSERT_OK(jobs().Claim({"worker"}));
  EXPECT_OK(jobs().Create(NewJob("o4"), ""));
}

TEST_P(JobStoreConformance, ManyCallersDoNotOvershootTheQuotaOfWaitingJobs) {
  quotas_ = Quotas({.pending = 5}, {});
  EXPECT_EQ(CountOk([](StoreHandle& handle, int i) { return handle.jobs().Create(NewJob(absl::StrCat("o", i)), "").ok(); }), 5);
  ASSERT_OK_AND_ASSIGN(const ProjectUsage usage, workspaces().Usage(kProject));
  EXPECT_EQ(usage.pending, 5);
}

TEST_P(JobStoreConformance, OutputsThatDoNotFitFailTheJob) {
  quotas_ = Quotas({.bytes = 20}, {});
  ASSERT_OK(workspaces().PutFile({kProject, "w"}, {.path = "results/a", .sha256 = std::string(64, 'f'), .size_bytes = 7}));
  for (const char* id : {"o1", "o2", "o3"}) {
    ASSERT_OK(jobs().Create(NewJob(id), ""));
    ASSERT_EQ(ClaimId(), id);
  }
  Outcome outcome = Success({Output("results/a"), Output("results/b"), Output("results/c")});  // 21 bytes
  outcome.warnings = {"warned"};
  ASSERT_OK_AND_ASSIGN(Metadata::State state, jobs().Finish("o1", 1, outcome));
  EXPECT_EQ(state, Metadata::FAILED);
  ASSERT_OK_AND_ASSIGN(Job job, jobs().Get("o1"));
  EXPECT_EQ(job.metadata.state(), Metadata::FAILED);
  EXPECT_EQ(job.metadata.outputs_size(), 0);
  EXPECT_THAT(job.metadata.warnings(), ElementsAre("warned"));
  EXPECT_FALSE(job.response.has_value());
  ASSERT_TRUE(job.error.has_value());
  EXPECT_EQ(job.error->code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  google::rpc::ErrorInfo info;
  ASSERT_EQ(job.error->details_size(), 1);
  ASSERT_TRUE(job.error->details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "QUOTA_EXCEEDED");
  EXPECT_EQ(info.metadata().at("quota"), "bytes");
  EXPECT_EQ(info.metadata().at("limit"), "20");
  EXPECT_EQ(info.metadata().at("used"), "7");
  ASSERT_OK_AND_ASSIGN(FileRow a, workspaces().GetFile({kProject, "w"}, "results/a"));
  EXPECT_EQ(a.sha256, std::string(64, 'f'));
  EXPECT_REASON(workspaces().GetFile({kProject, "w"}, "results/b"), FILE_NOT_FOUND);

  // What replaces a file needs the difference only.
  ASSERT_OK_AND_ASSIGN(state, jobs().Finish("o2", 1, Success({Output("results/a"), Output("results/b")})));
  EXPECT_EQ(state, Metadata::SUCCEEDED);
  ASSERT_OK_AND_ASSIGN(const ProjectUsage usage, workspaces().Usage(kProject));
  EXPECT_EQ(usage.bytes, 14);
  EXPECT_EQ(usage.files, 3);
  // And where the project is over its quota already, whatever adds nothing still ends well.
  quotas_ = Quotas({.bytes = 1}, {});
  ASSERT_OK_AND_ASSIGN(state, jobs().Finish("o3", 1, Success({Output("results/b", 'c')})));
  EXPECT_EQ(state, Metadata::SUCCEEDED);
}

// ---- Results that are there already -----------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, TheSameCallGetsTheSameResultAtOnce) {
  RunCacheable("o1");
  ASSERT_OK(workspaces().CreateWorkspace({kProject, "v"}, "", ""));
  clock_.Advance(absl::Seconds(5));
  ASSERT_OK_AND_ASSIGN(Job created, jobs().Create(Cacheable("o2", "v"), "r2"));
  EXPECT_EQ(created.id, "o2");
  EXPECT_TRUE(created.done());
  EXPECT_EQ(created.metadata.state(), Metadata::SUCCEEDED);
  EXPECT_TRUE(created.metadata.cached());
  EXPECT_EQ(created.metadata.attempt(), 0);
  EXPECT_FALSE(created.metadata.has_start_time());
  EXPECT_EQ(google::protobuf::util::TimeUtil::TimestampToMicroseconds(created.metadata.end_time()),
            absl::ToUnixMicros(clock_.Now()));
  EXPECT_THAT(created.metadata.warnings(), ElementsAre("warned"));
  EXPECT_EQ(created.metadata.inputs(0).name(), "workspaces/v/files/model.onnx");
  ASSERT_EQ(created.metadata.outputs_size(), 2);
  EXPECT_EQ(created.metadata.outputs(0).name(), "workspaces/v/files/out/a");
  v1::SaveModelResponse response;
  ASSERT_TRUE(created.response->UnpackTo(&response));
  EXPECT_EQ(response.deploy_model().name(), "workspaces/v/files/out/a");
  EXPECT_EQ(response.deploy_model().sha256(), std::string(64, 'b'));
  ASSERT_EQ(response.external_data_size(), 1);
  EXPECT_EQ(response.external_data(0).name(), "workspaces/v/files/out/b");
  ASSERT_OK_AND_ASSIGN(FileRow a, workspaces().GetFile({kProject, "v"}, "out/a"));
  EXPECT_EQ(a.sha256, std::string(64, 'b'));
  EXPECT_EQ(a.update_time, clock_.Now());
  EXPECT_OK(workspaces().GetFile({kProject, "v"}, "out/b"));
  EXPECT_EQ(ClaimId(), "");
  ASSERT_OK_AND_ASSIGN(Job first, jobs().Get("o1"));
  EXPECT_FALSE(first.metadata.cached());
  EXPECT_EQ(first.metadata.outputs(0).name(), "workspaces/w/files/out/a");

  Reopen();
  ASSERT_OK_AND_ASSIGN(Job stored, jobs().Get("o2"));
  EXPECT_TRUE(SameJob(stored, created));
  ASSERT_OK_AND_ASSIGN(Job replayed, jobs().Create(Cacheable("o3", "v"), ""));  // the result of a result
  EXPECT_TRUE(replayed.metadata.cached());
  ASSERT_OK_AND_ASSIGN(replayed, jobs().Create(Cacheable("o2", "v"), "r2"));
  EXPECT_EQ(replayed.id, "o2");
}

TEST_P(JobStoreConformance, OnlyACompleteResultIsUsedAgain) {
  RunCacheable("o1");
  auto is_cached = [this](const Job& job) {
    absl::StatusOr<Job> created = jobs().Create(job, "");
    EXPECT_OK(created);
    const bool cached = created.ok() && created->metadata.cached();
    EXPECT_EQ(ClaimId(), cached ? "" : job.id);
    if (!cached) {
      EXPECT_OK(jobs().Finish(job.id, 1, Failure()));
    }
    return cached;
  };
  EXPECT_TRUE(is_cached(Cacheable("o2")));
  Job other_key = Cacheable("o3");
  other_key.cache_key = "other";
  EXPECT_FALSE(is_cached(other_key));
  EXPECT_FALSE(is_cached(NewJob("o4")));  // no key
  EXPECT_FALSE(is_cached(NewJob("o5")));

  ASSERT_OK(workspaces().CreateWorkspace({kProject, "v"}, "", ""));
  const std::string b = std::string(64, 'c');
  ASSERT_OK(workspaces().PutFile({kProject, "v"}, {.path = "somewhere", .sha256 = b, .size_bytes = 7}));
  ASSERT_OK(workspaces().DeleteFile({kProject, "w"}, "out/b"));
  EXPECT_TRUE(is_cached(Cacheable("o6")));  // the content is there, whatever its name is
  ASSERT_OK(workspaces().DeleteFile({kProject, "w"}, "out/b"));
  ASSERT_OK(workspaces().DeleteFile({kProject, "v"}, "somewhere"));
  EXPECT_FALSE(is_cached(Cacheable("o7")));
  ASSERT_OK(workspaces().CreateWorkspace({"q", "w"}, "", ""));
  ASSERT_OK(workspaces().PutFile({"q", "w"}, {.path = "out/b", .sha256 = b, .size_bytes = 7}));
  EXPECT_FALSE(is_cached(Cacheable("o8")));  // what others have does not count
}

TEST_P(JobStoreConformance, FailuresAndOtherProjectsResultsAreNotUsedAgain) {
  ASSERT_OK(jobs().Create(Cacheable("o1"), ""));
  ASSERT_EQ(ClaimId(), "o1");
  ASSERT_OK_AND_ASSIGN(Job second, jobs().Create(Cacheable("o2"), ""));
  EXPECT_FALSE(second.done());  // the first runs still
  ASSERT_OK(jobs().Finish("o1", 1, Failure()));
  ASSERT_OK_AND_ASSIGN(Job third, jobs().Create(Cacheable("o3"), ""));
  EXPECT_FALSE(third.done());
  ASSERT_EQ(ClaimId(), "o2");
  ASSERT_OK(jobs().Finish("o2", 1, CacheableSuccess("w")));

  MakeProjects({"q"});
  Job others = Cacheable("q1");
  others.project = "q";
  ASSERT_OK_AND_ASSIGN(others, jobs().Create(others, ""));
  EXPECT_FALSE(others.done());
  // Not even where it has the same contents.
  for (const char digit : {'b', 'c'}) {
    ASSERT_OK(
        workspaces().PutFile({"q", "w"}, {.path = std::string(1, digit), .sha256 = std::string(64, digit), .size_bytes = 7}));
  }
  others = Cacheable("q2");
  others.project = "q";
  ASSERT_OK_AND_ASSIGN(others, jobs().Create(others, ""));
  EXPECT_FALSE(others.done());
}

TEST_P(JobStoreConformance, ACachedResultKeepsToTheQuotas) {
  RunCacheable("o1");
  ASSERT_OK(workspaces().CreateWorkspace({kProject, "v"}, "", ""));
  quotas_ = Quotas({.bytes = 27, .pending = 1}, {});
  EXPECT_REASON(jobs().Create(Cacheable("o2", "v"), "r"), QUOTA_EXCEEDED);
  EXPECT_REASON(jobs().Get("o2"), OPERATION_NOT_FOUND);
  EXPECT_REASON(workspaces().GetFile({kProject, "v"}, "out/a"), FILE_NOT_FOUND);
  quotas_ = Quotas({.bytes = 28, .pending = 1}, {});
  ASSERT_OK(jobs().Create(NewJob("waits"), ""));
  ASSERT_OK_AND_ASSIGN(Job job, jobs().Create(Cacheable("o2", "v"), "r"));  // it does not wait
  EXPECT_TRUE(job.metadata.cached());
  ASSERT_OK_AND_ASSIGN(job, jobs().Create(Cacheable("o3", "v"), ""));  // in the place of the same
  EXPECT_TRUE(job.metadata.cached());
}

TEST_P(JobStoreConformance, TheTraceOfTheCallIsKept) {
  Job job = NewJob("o1");
  job.trace_parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  ASSERT_OK(jobs().Create(job, ""));
  ASSERT_OK(jobs().Create(NewJob("o2"), ""));
  Reopen();
  ASSERT_OK_AND_ASSIGN(Job stored, jobs().Get("o1"));
  EXPECT_EQ(stored.trace_parent, job.trace_parent);
  EXPECT_EQ(stored.metadata.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
  ASSERT_OK_AND_ASSIGN(stored, jobs().Get("o2"));
  EXPECT_EQ(stored.trace_parent, "");
  EXPECT_EQ(stored.metadata.trace_id(), "");
}

// ---- Retention --------------------------------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, OldFinishedJobsAreForgotten) {
  for (const Metadata::State state : AllStates()) {
    Reset();
    SCOPED_TRACE(Metadata::State_Name(state));
    MakeJobIn(state, "o1");
    ASSERT_OK_AND_ASSIGN(int64_t forgotten, jobs().ForgetFinished(clock_.Now() + absl::Seconds(1), 10));
    const bool final = IsFinal(state);
    EXPECT_EQ(forgotten, final ? 1 : 0);
    EXPECT_EQ(jobs().Get("o1").ok(), !final);
  }
  Reset();
  for (const char* id : {"o1", "o2", "o3", "o4"}) {
    ASSERT_OK(jobs().Create(NewJob(id), ""));
  }
  for (const char* id : {"o3", "o1", "o2", "o4"}) {  // the order in which they end
    clock_.Advance(absl::Seconds(1));
    ASSERT_OK(jobs().RequestCancel(kProject, id));
  }
  ASSERT_OK_AND_ASSIGN(int64_t forgotten, jobs().ForgetFinished(clock_.Now(), 2));
  EXPECT_EQ(forgotten, 2);
  EXPECT_REASON(jobs().Get("o3"), OPERATION_NOT_FOUND);
  EXPECT_REASON(jobs().Get("o1"), OPERATION_NOT_FOUND);
  ASSERT_OK_AND_ASSIGN(forgotten, jobs().ForgetFinished(clock_.Now(), 2));
  EXPECT_EQ(forgotten, 1);
  EXPECT_OK(jobs().Get("o4"));  // ended at that very moment
}

TEST_P(JobStoreConformance, WhatCameWhileTheClockWasBehindIsNotOld) {
  ASSERT_OK(jobs().Create(NewJob("before"), "r1"));
  clock_.Jump(-absl::Hours(1000));
  ASSERT_OK(jobs().Create(NewJob("behind"), "r2"));
  ASSERT_OK(jobs().RequestCancel(kProject, "behind"));
  clock_.Jump(absl::Hours(1000));
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK_AND_ASSIGN(int64_t forgotten, jobs().ForgetFinished(clock_.Now() - absl::Hours(1), 10));
    EXPECT_EQ(forgotten, i);
    ASSERT_OK_AND_ASSIGN(forgotten, jobs().ForgetRequests(clock_.Now() - absl::Hours(1), 10));
    EXPECT_EQ(forgotten, 2 * i);
    clock_.Advance(absl::Hours(2));
  }
  EXPECT_REASON(jobs().Get("behind"), OPERATION_NOT_FOUND);
}

TEST_P(JobStoreConformance, WhatCameWhileTheClockWasAheadKeepsNothingElse) {
  clock_.Jump(absl::Hours(1000));
  ASSERT_OK(jobs().Create(NewJob("ahead"), "r1"));
  clock_.Jump(-absl::Hours(1000));
  ASSERT_OK(jobs().Create(NewJob("after"), "r2"));
  ASSERT_OK(jobs().RequestCancel(kProject, "after"));
  clock_.Advance(absl::Hours(2));
  ASSERT_OK_AND_ASSIGN(int64_t forgotten, jobs().ForgetFinished(clock_.Now() - absl::Hours(1), 10));
  EXPECT_EQ(forgotten, 1);
  ASSERT_OK_AND_ASSIGN(forgotten, jobs().ForgetRequests(clock_.Now() - absl::Hours(1), 10));
  EXPECT_EQ(forgotten, 1);
  EXPECT_OK(jobs().Get("ahead"));
}

// ---- Projects ---------------------------------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, WhatOthersHaveDoesNotExist) {
  MakeProjects({"q"});
  ASSERT_OK(workspaces().CreateWorkspace({"q", "theirs"}, "", ""));
  ASSERT_OK(jobs().Create(JobOf("q", "running"), "r1"));
  ASSERT_EQ(ClaimId(), "running");
  ASSERT_OK(jobs().Create(JobOf("q", "done"), ""));
  ASSERT_OK(jobs().RequestCancel("q", "done"));
  ASSERT_OK(jobs().Create(JobOf("q", "waiting"), ""));
  for (const char* id : {"running", "done", "waiting"}) {
    SCOPED_TRACE(id);
    ASSERT_OK_AND_ASSIGN(const Job before, jobs().Get(id));
    EXPECT_EQ(TextOf(jobs().Find(kProject, id), id), TextOf(jobs().Find(kProject, "none"), "none"));
    EXPECT_EQ(TextOf(jobs().Delete(kProject, id), id), TextOf(jobs().Delete(kProject, "none"), "none"));
    EXPECT_EQ(TextOf(jobs().RequestCancel(kProject, id), id), TextOf(jobs().RequestCancel(kProject, "none"), "none"));
    EXPECT_REASON(jobs().Find(kProject, id), OPERATION_NOT_FOUND);
    EXPECT_REASON(jobs().Delete(kProject, id), OPERATION_NOT_FOUND);
    EXPECT_REASON(jobs().RequestCancel(kProject, id), OPERATION_NOT_FOUND);
    ASSERT_OK_AND_ASSIGN(const Job after, jobs().Find("q", id));
    EXPECT_TRUE(SameJob(before, after));
  }
  EXPECT_EQ(TextOf(jobs().Create(NewJob("new", "theirs"), ""), "theirs"),
            TextOf(jobs().Create(NewJob("new", "none"), ""), "none"));

  // Lists and their tokens.
  ASSERT_OK(jobs().Create(NewJob("mine"), ""));
  for (const JobFilter& filter : {JobFilter(), JobFilter{.workspace = "workspaces/w"}, JobFilter{.method = "SaveModel"},
                                  JobFilter{.done = false}, JobFilter{.state = Metadata::PENDING}}) {
    ASSERT_OK_AND_ASSIGN(const JobPage page, jobs().List(kProject, filter, 0, ""));
    EXPECT_THAT(Ids(page.jobs), ElementsAre("mine"));
  }
  ASSERT_OK_AND_ASSIGN(const JobPage page, jobs().List("q", {}, 1, ""));
  EXPECT_REASON(jobs().List(kProject, {}, 1, page.next_page_token), PAGE_TOKEN_INVALID);
  EXPECT_EQ(TextOf(jobs().List(kProject, {}, 1, page.next_page_token), ""), TextOf(jobs().List(kProject, {}, 1, "x"), ""));

  // A request id that q used is free here, for another request.
  ASSERT_OK_AND_ASSIGN(const Job same_id, jobs().Create(NewJob("mine2"), "r1"));
  EXPECT_EQ(same_id.id, "mine2");
  EXPECT_EQ(same_id.project, kProject);
  Job again = JobOf("q", "running");
  again.id = "other";
  ASSERT_OK_AND_ASSIGN(const Job replayed, jobs().Create(again, "r1"));
  EXPECT_EQ(replayed.id, "running");
}

// ---- Sudden death -----------------------------------------------------------------------------------------------------------

TEST_P(JobStoreConformance, KilledWhileWritingNothingAcknowledgedIsLostOrTorn) {
  for (int lines : {1, 20, 57}) {
    Reset();
    handle_.reset();  // no connection is carried over the fork
    std::vector<std::string> said = RunAndKill(lines, [this](const std::function<void(const std::string&)>& say) {
      std::unique_ptr<StoreHandle> handle = harness_->Open(clock_, quotas_);
      for (int i = 0;; ++i) {
        std::string id = absl::StrCat("o", i);
        if (!handle->jobs().Create(NewJob(id), id).ok()) {
          return;
        }
        say("created " + id);
        if (!handle->jobs().Claim({"worker"}).ok()) {
          return;
        }
        say("claimed " + id);
        if (!handle->jobs().Finish(id, 1, Success({Output(id + "/a"), Output(id + "/b")})).ok()) {
          return;
        }
        say("finished " + id);
      }
    });
    Reopen();
    ASSERT_GE(said.size(), lines);
    std::map<std::string, Metadata::State> least = {};
    for (const std::string& line : said) {
      const std::string id = line.substr(line.find(' ') + 1);
      least[id] = line[0] == 'f' ? Metadata::SUCCEEDED : line[1] == 'l' ? Metadata::RUNNING : Metadata::PENDING;
    }
    for (const auto& [id, state] : least) {
      SCOPED_TRACE(id);
      EXPECT_GE(StateOf(id), state);
      absl::StatusOr<Job> replayed = jobs().Create(NewJob(id), id);
      EXPECT_OK(replayed);
    }
    ASSERT_OK_AND_ASSIGN(JobPage page, jobs().List(kProject, {}, 1000, ""));
    EXPECT_LE(page.jobs.size(), least.size() + 1);
    for (const Job& job : page.jobs) {
      SCOPED_TRACE(job.id);
      bool linked = job.metadata.state() == Metadata::SUCCEEDED;
      EXPECT_EQ(job.metadata.outputs_size(), linked ? 2 : 0);
      EXPECT_EQ(workspaces().GetFile({kProject, "w"}, job.id + "/a").ok(), linked);
      EXPECT_EQ(workspaces().GetFile({kProject, "w"}, job.id + "/b").ok(), linked);
    }
    // The store works as before.
    ASSERT_OK(jobs().Create(NewJob("onext"), ""));
  }
}

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_JOBS_JOB_STORE_CONFORMANCE_H_
