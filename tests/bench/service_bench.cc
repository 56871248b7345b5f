// Measures a running modelpressd and, where there is something to compare with, bare_stream_server in the same way. Prints JSON.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "client/cpp/client.h"
#include "client/cpp/sha256.h"
#include "grpcpp/channel.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/byte_buffer.h"
#include "modelpress/v1/workspaces.grpc.pb.h"
#include "nlohmann/json.hpp"

namespace modelpress::client {
namespace {

using nlohmann::ordered_json;

constexpr uint64_t kMessageBytes = 1 << 20;

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

[[noreturn]] void Die(const std::string& what) {
  std::cerr << "service_bench: " << what << "\n";
  std::exit(1);  // NOLINT(concurrency-mt-unsafe): nothing runs that could call it too
}

template <typename Value>
Value Check(absl::StatusOr<Value> value) {
  if (!value.ok()) {
    Die(value.status().ToString());
  }
  return *std::move(value);
}

void Check(const absl::Status& status) {
  if (!status.ok()) {
    Die(status.ToString());
  }
}

void Check(const grpc::Status& status) {
  if (!status.ok()) {
    Die(status.error_message());
  }
}

double Seconds(const std::function<void()>& body) {
  const double start = Now();
  body();
  return Now() - start;
}

std::unique_ptr<Client> Connect(const std::string& target) {
  Client::Options options;
  options.target = target;
  return Check(Client::Connect(std::move(options)));
}

// ---- transfer ---------------------------------------------------------------------------------------------------------------

// A file of `size` bytes that no server has seen: the salt differs in every call.
void WriteFile(const std::string& path, uint64_t size) {
  const std::string salt = NewUuid();
  std::string block(kMessageBytes, '\0');
  uint64_t state = std::hash<std::string>()(salt);
  for (char& byte : block) {
    state = state * 6364136223846793005 + 1442695040888963407;
    byte = static_cast<char>(state >> 56);
  }
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  for (uint64_t left = size; left > 0;) {
    const ssize_t count = write(fd, block.data(), std::min<uint64_t>(block.size(), left));
    if (count <= 0) {
      Die("cannot write " + path);
    }
    left -= count;
  }
  fsync(fd);  // its writing back is not to be measured
  close(fd);
}

std::string Sha256Of(const std::string& path) {
  const InputFile file = Check(InputFile::Open(path));
  Sha256 hash;
  std::string bytes;
  for (uint64_t offset = 0; offset < file.size(); offset += bytes.size()) {
    Check(file.ReadAt(offset, std::min(kMessageBytes, file.size() - offset), bytes));
    hash.Update(bytes);
  }
  return hash.Finish();
}

// Sends a local file as the client library does: read, write, one message at a time.
void StreamUp(v1::Workspaces::StubInterface& stub, const std::string& upload, const std::string& path) {
  const InputFile file = Check(InputFile::Open(path));
  grpc::ClientContext context;
  v1::Upload answer;
  auto writer = stub.UploadBytes(&context, &answer);
  v1::UploadBytesRequest request;
  request.set_upload(upload);
  for (uint64_t offset = 0; offset < file.size(); offset += request.data().size()) {
    request.set_offset(offset);
    Check(file.ReadAt(offset, std::min(kMessageBytes, file.size() - offset), *request.mutable_data()));
    if (!writer->Write(request)) {
      break;  // Finish says why
    }
    request.clear_upload();
  }
  writer->WritesDone();
  Check(writer->Finish());
  if (!answer.complete()) {
    Die("the upload is not complete");
  }
}

// Receives `size` bytes and discards them.
void StreamDown(v1::Workspaces::StubInterface& stub, const std::string& name, uint64_t size) {
  grpc::ClientContext context;
  v1::DownloadFileRequest request;
  request.set_name(name);
  request.set_length(size);
  auto reader = stub.DownloadFile(&context, request);
  uint64_t received = 0;
  for (v1::DownloadFileResponse response; reader->Read(&response);) {
    received += response.data().size();
  }
  Check(reader->Finish());
  if (received != size) {
    Die("the download is not complete");
  }
}

// What the disk alone takes for the same bytes: written from memory and synced.
void WriteAndSync(const std::string& path, uint64_t size) {
  const std::string block(kMessageBytes, 'x');
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  for (uint64_t left = size; left > 0;) {
    const ssize_t count = write(fd, block.data(), std::min<uint64_t>(block.size(), left));
    if (count <= 0) {
      Die("cannot write " + path);
    }
    left -= count;
  }
  if (fsync(fd) != 0) {
    Die("cannot sync " + path);
  }
  close(fd);
}

struct Settings {
  std::string target;
  std::string bare_target;
  std::string work_folder;
  std::string model;
  std::string record;
  uint64_t megabytes = 512;
  int repeats = 3;
  int jobs = 100;
  double seconds = 3;
  int pollers = 200;
  int uploads = 8;
  int samples = 400;
  std::string token;
  std::string other_token;
};

// Seconds of each repeat: gRPC alone, the server's streams with the same client code, and whole calls of the client library
// (which hashes before it sends, and hashes, writes and syncs what it receives).
ordered_json Transfer(const Settings& settings) {
  const uint64_t size = settings.megabytes * 1'000'000;
  const std::string path = settings.work_folder + "/transfer";
  const auto bare = v1::Workspaces::NewStub(grpc::CreateChannel(settings.bare_target, grpc::InsecureChannelCredentials()));
  const auto stub = v1::Workspaces::NewStub(grpc::CreateChannel(settings.target, grpc::InsecureChannelCredentials()));
  const std::unique_ptr<Client> client = Connect(settings.target);
  const std::string workspace = Check(client->CreateWorkspace("")).name();
  const std::string name = workspace + "/files/transfer";
  StreamDown(*bare, "", kMessageBytes);  // connects

  ordered_json result = {{"bytes", size}};
  auto add = [&](const char* what, const std::function<void()>& body) { result["seconds"][what].push_back(Seconds(body)); };
  for (int i = 0; i < settings.repeats; ++i) {
    WriteFile(path, size);
    add("upload_bare", [&] { StreamUp(*bare, "", path); });
    std::string digest;
    add("sha256", [&] { digest = Sha256Of(path); });
    grpc::ClientContext context;
    v1::StartUploadRequest start;
    start.set_file(name);
    start.set_size_bytes(size);
    start.set_sha256(digest);
    v1::Upload upload;
    Check(stub->StartUpload(&context, start, &upload));
    if (upload.complete()) {
      Die("the server has these bytes already");
    }
    add("upload_stream", [&] { StreamUp(*stub, upload.name(), path); });
    WriteFile(path, size);
    add("upload_client", [&] { Check(client->Upload(path, name, {})); });
    add("download_bare", [&] { StreamDown(*bare, "", size); });
    add("download_stream", [&] { StreamDown(*stub, name, size); });
    add("download_client", [&] {
      StagedFile file = Check(StagedFile::Create(path + ".copy"));
      Check(client->Download(name, "", file, {}));
      Check(file.Commit());
    });
    add("disk", [&] { WriteAndSync(path, size); });
    std::filesystem::remove(path);
    std::filesystem::remove(path + ".copy");
  }
  Check(client->DeleteWorkspace(workspace));
  return result;
}

// ---- operations -------------------------------------------------------------------------------------------------------------

v1::SaveModelRequest Prepare(Client& client, const Settings& settings) {
  v1::SaveModelRequest request;
  request.set_workspace(Check(client.CreateWorkspace("")).name());
  request.set_modified_onnx_file("model/model.onnx");
  request.set_record_file("record/record.txt");
  request.set_save_path("results/model");
  request.mutable_options()->set_no_cache(true);  // every job is to run
  Check(client.Upload(settings.model, request.workspace() + "/files/" + request.modified_onnx_file(), {}));
  Check(client.Upload(settings.record, request.workspace() + "/files/" + request.record_file(), {}));
  return request;
}

google::longrunning::Operation RunJob(Client& client, const v1::SaveModelRequest& request) {
  const google::longrunning::Operation started = Check(client.SaveModel(request));
  google::longrunning::Operation done = Check(client.WaitOperation(started.name(), {}));
  Check(ResponseOf<v1::SaveModelResponse>(done).status());
  return done;
}

// Seconds from the call of SaveModel to the finished operation, of every job.
ordered_json Tiny(const Settings& settings) {
  const std::unique_ptr<Client> client = Connect(settings.target);
  const v1::SaveModelRequest request = Prepare(*client, settings);
  RunJob(*client, request);  // the first one finds cold caches
  ordered_json seconds = ordered_json::array();
  for (int i = 0; i < settings.jobs; ++i) {
    seconds.push_back(Seconds([&] { RunJob(*client, request); }));
  }
  Check(client->DeleteWorkspace(request.workspace()));
  return {{"seconds", seconds}};
}

// Calls per second of GetOperation, from `concurrency` threads with a connection each.
double CallsPerSecond(const std::string& target, const std::string& operation, int concurrency, double seconds) {
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < concurrency; ++i) {
    clients.push_back(Connect(target));
    Check(clients.back()->GetOperation(operation));
  }
  std::atomic<uint64_t> calls = 0;
  const double start = Now();
  std::vector<std::thread> threads;
  threads.reserve(concurrency);
  for (const auto& client : clients) {
    threads.emplace_back([&, poller = client.get()] {
      while (Now() - start < seconds) {
        Check(poller->GetOperation(operation));
        ++calls;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return static_cast<double>(calls) / (Now() - start);
}

ordered_json Polls(const Settings& settings) {
  const std::unique_ptr<Client> client = Connect(settings.target);
  const v1::SaveModelRequest request = Prepare(*client, settings);
  const google::longrunning::Operation done = RunJob(*client, request);
  ordered_json result = {{"operation_bytes", done.ByteSizeLong()}, {"concurrency", ordered_json::array()}};
  for (const int concurrency : {1, 8}) {
    ordered_json rates = {{"clients", concurrency}};
    for (int i = 0; i < settings.repeats; ++i) {
      rates["calls_per_second_bare"].push_back(CallsPerSecond(settings.bare_target, done.name(), concurrency, settings.seconds));
      rates["calls_per_second"].push_back(CallsPerSecond(settings.target, done.name(), concurrency, settings.seconds));
    }
    result["concurrency"].push_back(rates);
  }
  Check(client->DeleteWorkspace(request.workspace()));
  return result;
}

// ---- load -------------------------------------------------------------------------------------------------------------------

// Seconds and failures of calls, by method. Thread-safe.
class CallLog {
 public:
  void Add(const std::string& method, double seconds, const grpc::Status& status) {
    const std::lock_guard lock(mutex_);
    Calls& calls = calls_[method];
    calls.seconds.push_back(seconds);
    if (!status.ok()) {
      ++calls.failures[status.error_message()];
    }
  }
  ordered_json AsJson() const {
    ordered_json json = ordered_json::object();
    for (const auto& [method, calls] : calls_) {
      json[method] = {{"seconds", calls.seconds}, {"failures", calls.failures}};
    }
    return json;
  }

 private:
  struct Calls {
    std::vector<double> seconds;
    std::map<std::string, int> failures;
  };

  std::mutex mutex_;
  std::map<std::string, Calls> calls_;
};

// One caller with a connection of its own, whose calls are not retried: a refusal shows.
class Caller {
 public:
  Caller(const std::string& target, CallLog& log) : log_(log) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    const auto channel = grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
    const double start = Now();
    const bool connected = channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(60));
    log_.Add("(connecting)", Now() - start,
             connected ? grpc::Status::OK : grpc::Status(grpc::StatusCode::UNAVAILABLE, "timeout"));
    any_ = std::make_unique<grpc::GenericStub>(channel);
    compression_ = v1::Compression::NewStub(channel);
    workspaces_ = v1::Workspaces::NewStub(channel);
    operations_ = google::longrunning::Operations::NewStub(channel);
  }

  google::longrunning::Operation Submit(const v1::SaveModelRequest& request) {
    return Call<google::longrunning::Operation>(
        "SaveModel", [&](auto* context, auto* answer) { return compression_->SaveModel(context, request, answer); });
  }
  google::longrunning::Operation Get(const std::string& name) {
    google::longrunning::GetOperationRequest request;
    request.set_name(name);
    return Call<google::longrunning::Operation>(
        "GetOperation", [&](auto* context, auto* answer) { return operations_->GetOperation(context, request, answer); });
  }
  // A long poll of up to a second; what it takes is the operation's time, so that only failures tell something.
  google::longrunning::Operation Wait(const std::string& name) {
    google::longrunning::WaitOperationRequest request;
    request.set_name(name);
    request.mutable_timeout()->set_seconds(1);
    return Call<google::longrunning::Operation>("WaitOperation (long poll of 1 s)", [&](auto* context, auto* answer) {
      return operations_->WaitOperation(context, request, answer);
    });
  }
  void List() {
    google::longrunning::ListOperationsRequest request;
    request.set_name("operations");
    Call<google::longrunning::ListOperationsResponse>("ListOperations (page of 50)", [&](auto* context, auto* answer) {
      return operations_->ListOperations(context, request, answer);
    });
  }
  // The least that this server answers: no look at who calls, nothing read, an answer of two bytes.
  void CheckHealth() {
    const grpc::Slice empty;
    const grpc::ByteBuffer request(&empty, 1);
    Call<grpc::ByteBuffer>("Health.Check (does nothing)", [&](auto* context, auto* answer) {
      std::promise<grpc::Status> done;
      any_->UnaryCall(context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, answer,
                      [&done](grpc::Status status) { done.set_value(std::move(status)); });
      return done.get_future().get();
    });
  }
  void Upload(const std::string& path, const std::string& name) {
    v1::StartUploadRequest request;
    request.set_file(name);
    request.set_size_bytes(std::filesystem::file_size(path));
    request.set_sha256(Sha256Of(path));
    const auto upload = Call<v1::Upload>(
        "StartUpload", [&](auto* context, auto* answer) { return workspaces_->StartUpload(context, request, answer); });
    const double start = Now();
    StreamUp(*workspaces_, upload.name(), path);
    log_.Add("UploadBytes (whole file)", Now() - start, grpc::Status::OK);
  }

 private:
  template <typename Answer, typename Body>
  Answer Call(const std::string& method, Body body) {
    grpc::ClientContext context;
    Answer answer;
    const double start = Now();
    const grpc::Status status = body(&context, &answer);
    log_.Add(method, Now() - start, status);
    return answer;
  }

  CallLog& log_;
  std::unique_ptr<grpc::GenericStub> any_;
  std::unique_ptr<v1::Compression::Stub> compression_;
  std::unique_ptr<v1::Workspaces::Stub> workspaces_;
  std::unique_ptr<google::longrunning::Operations::Stub> operations_;
};

// `jobs` operations queued at once, `pollers` callers that ask for them (every second one by long polls) until all are done, and
// `uploads` files that come in meanwhile.
ordered_json Load(const Settings& settings) {
  const std::unique_ptr<Client> client = Connect(settings.target);
  v1::SaveModelRequest request = Prepare(*client, settings);
  CallLog log;
  std::vector<std::string> names;
  Caller submitter(settings.target, log);
  const double start = Now();
  for (int i = 0; i < settings.jobs; ++i) {
    request.set_save_path("results/" + std::to_string(i) + "/model");
    names.push_back(submitter.Submit(request).name());
  }
  const double submitted = Now() - start;

  std::atomic<int> unfinished = settings.pollers;
  std::atomic<int> failed = 0;
  std::vector<std::thread> threads;
  threads.reserve(settings.pollers + settings.uploads + 2);
  for (int i = 0; i < settings.pollers; ++i) {
    threads.emplace_back([&, i] {
      Caller caller(settings.target, log);
      for (size_t job = i; job < names.size(); job += settings.pollers) {
        google::longrunning::Operation operation;
        while (!operation.done()) {
          if (i % 2 == 0) {
            operation = caller.Wait(names[job]);
          } else {
            operation = caller.Get(names[job]);
            std::this_thread::sleep_for(std::chrono::milliseconds(operation.done() ? 0 : 250));
          }
        }
        failed += operation.has_error() ? 1 : 0;
      }
      --unfinished;
    });
  }
  for (int i = 0; i < settings.uploads; ++i) {
    threads.emplace_back([&, i] {
      Caller caller(settings.target, log);
      const std::string path = settings.work_folder + "/load" + std::to_string(i);
      WriteFile(path, settings.megabytes * 1'000'000);
      caller.Upload(path, request.workspace() + "/files/uploads/" + std::to_string(i));
      std::filesystem::remove(path);
    });
  }
  for (void (Caller::*call)() : {&Caller::List, &Caller::CheckHealth}) {
    threads.emplace_back([&, call] {
      Caller caller(settings.target, log);
      while (unfinished > 0) {
        (caller.*call)();
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return {{"operations", names.size()},
          {"failed", failed.load()},
          {"submit_seconds", submitted},
          {"seconds", Now() - start},
          {"calls", log.AsJson()}};
}

// ---- tenancy ----------------------------------------------------------------------------------------------------------------

// Somebody of a project, by their token. Every call has to end as expected, else the wrong thing would be measured.
class Member {
 public:
  Member(const std::string& target, std::string token) : token_(std::move(token)) {
    const auto channel = grpc::CreateChannel(target, grpc::InsecureChannelCredentials());
    compression_ = v1::Compression::NewStub(channel);
    workspaces_ = v1::Workspaces::NewStub(channel);
    operations_ = google::longrunning::Operations::NewStub(channel);
  }

  template <typename Answer, typename Stub, typename Request>
  Answer Call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Answer*), const Request& request,
              grpc::StatusCode expected = grpc::StatusCode::OK) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token_);
    Answer answer;
    Expect(expected, (stub.*method)(&context, request, &answer));
    return answer;
  }

  v1::Workspace CreateWorkspace(const std::string& id) {
    v1::CreateWorkspaceRequest request;
    request.set_workspace_id(id);
    return Call(*workspaces_, &Workspaces::CreateWorkspace, request);
  }
  void GetWorkspace(const std::string& id, grpc::StatusCode expected) {
    v1::GetWorkspaceRequest request;
    request.set_name("workspaces/" + id);
    Call(*workspaces_, &Workspaces::GetWorkspace, request, expected);
  }
  void GetFile(const std::string& name, grpc::StatusCode expected) {
    v1::GetFileRequest request;
    request.set_name(name);
    Call(*workspaces_, &Workspaces::GetFile, request, expected);
  }
  v1::Upload StartUpload(const std::string& name, const std::string& content) {
    v1::StartUploadRequest request;
    request.set_file(name);
    request.set_size_bytes(content.size());
    Sha256 hash;
    hash.Update(content);
    request.set_sha256(hash.Finish());
    return Call(*workspaces_, &Workspaces::StartUpload, request);
  }
  void UploadBytes(const std::string& upload, const std::string& content) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token_);
    v1::Upload answer;
    auto writer = workspaces_->UploadBytes(&context, &answer);
    v1::UploadBytesRequest request;
    request.set_upload(upload);
    request.set_data(content);
    writer->Write(request);
    writer->WritesDone();
    Expect(grpc::StatusCode::OK, writer->Finish());
  }
  void Upload(const std::string& name, const std::string& content) { UploadBytes(StartUpload(name, content).name(), content); }
  google::longrunning::Operation CreateQuantConfig(const std::string& workspace, const std::string& config_file) {
    v1::CreateQuantConfigRequest request;
    request.set_workspace("workspaces/" + workspace);
    request.set_model("model");
    request.set_config_file(config_file);
    return Call(*compression_, &Compression::CreateQuantConfig, request);
  }
  void GetOperation(const std::string& name, grpc::StatusCode expected) {
    google::longrunning::GetOperationRequest request;
    request.set_name(name);
    Call(*operations_, &Operations::GetOperation, request, expected);
  }
  void CancelOperation(const std::string& name, grpc::StatusCode expected) {
    google::longrunning::CancelOperationRequest request;
    request.set_name(name);
    Call(*operations_, &Operations::CancelOperation, request, expected);
  }
  // The token of the next page.
  std::string ListOperations(const std::string& filter, const std::string& page_token, grpc::StatusCode expected) {
    google::longrunning::ListOperationsRequest request;
    request.set_name("operations");
    request.set_filter(filter);
    request.set_page_token(page_token);
    request.set_page_size(1);
    return Call(*operations_, &Operations::ListOperations, request, expected).next_page_token();
  }
  // Whether an operation is not done.
  bool Busy() {
    google::longrunning::ListOperationsRequest request;
    request.set_name("operations");
    request.set_filter("done = false");
    request.set_page_size(1);
    return Call(*operations_, &Operations::ListOperations, request).operations_size() > 0;
  }

 private:
  using Compression = v1::Compression::Stub;
  using Workspaces = v1::Workspaces::Stub;
  using Operations = google::longrunning::Operations::Stub;

  static void Expect(grpc::StatusCode expected, const grpc::Status& status) {
    if (status.error_code() != expected) {
      Die("a call ended with code " + std::to_string(status.error_code()) + ": " + status.error_message());
    }
  }

  const std::string token_;
  std::unique_ptr<Compression> compression_;
  std::unique_ptr<Workspaces> workspaces_;
  std::unique_ptr<Operations> operations_;
};

// Seconds of calls on what another project has and on what nobody has, by turns in random order. The first is a control: what
// one has oneself, which differs.
ordered_json Tenancy(const Settings& settings) {
  constexpr size_t kContentBytes = 64 << 10;
  Member alpha(settings.target, settings.token);
  Member beta(settings.target, settings.other_token);
  std::mt19937_64 random(std::random_device{}());
  auto new_id = [&](const char* prefix) {
    return prefix + std::to_string(1'000'000'000'000'000'000 + random() % 1'000'000'000'000'000'000);
  };
  auto new_content = [&] {
    std::string content(kContentBytes, '\0');
    for (char& byte : content) {
      byte = static_cast<char>(random());
    }
    return content;
  };

  // What alpha has, and beta's own workspace of the same name as one of alpha's.
  const std::string shared = new_id("w");
  const std::string own = new_content();
  std::vector<std::string> workspaces;
  std::vector<std::string> files;
  std::vector<std::string> contents;
  std::vector<std::string> operations;
  for (Member* member : {&alpha, &beta}) {
    member->CreateWorkspace(shared);
    member->Upload("workspaces/" + shared + "/files/model", own);
  }
  for (int i = 0; i < settings.samples; ++i) {
    workspaces.push_back(new_id("w"));
    alpha.CreateWorkspace(workspaces.back());
    files.push_back("workspaces/" + shared + "/files/" + new_id("f"));
    contents.push_back(new_content());
    alpha.Upload(files.back(), contents.back());
    operations.push_back(alpha.CreateQuantConfig(shared, "c" + std::to_string(i)).name());
  }
  const std::string token = alpha.ListOperations("", "", grpc::StatusCode::OK);
  beta.CreateQuantConfig(shared, "c");
  while (alpha.Busy() || beta.Busy()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  // A token that is right but for its last character, and one that is not like any.
  std::string nearly = settings.token;
  nearly.back() = nearly.back() == 'A' ? 'B' : 'A';
  std::string far(nearly.size(), 'x');
  Member almost(settings.target, nearly);
  Member nobody(settings.target, far);

  constexpr auto kMissing = grpc::StatusCode::NOT_FOUND;
  constexpr auto kRefused = grpc::StatusCode::UNAUTHENTICATED;
  using Body = std::function<void()>;
  struct Question {
    std::string name;
    Body there;
    Body nothing;
  };
  ordered_json result = ordered_json::object();
  for (int i = 0; i < settings.samples; ++i) {
    const std::string id = new_id("w");
    const std::string others[] = {new_content(), new_content()};
    const std::string path = "workspaces/" + shared + "/files/up/" + std::to_string(i);
    const std::string& operation = operations[i];
    std::string no_operation = operation;
    std::shuffle(no_operation.end() - 16, no_operation.end(), random);  // of the same time
    v1::Upload uploads[2];
    const std::vector<Question> questions = {
        {"StartUpload (control: a digest that one has)", [&] { beta.StartUpload(path + "c", own); },
         [&] { beta.StartUpload(path + "d", others[1]); }},
        {"GetWorkspace", [&] { beta.GetWorkspace(workspaces[i], kMissing); }, [&] { beta.GetWorkspace(id, kMissing); }},
        {"GetFile in a workspace of one's own", [&] { beta.GetFile(files[i], kMissing); },
         [&] { beta.GetFile("workspaces/" + shared + "/files/" + id, kMissing); }},
        {"GetOperation", [&] { beta.GetOperation(operation, kMissing); }, [&] { beta.GetOperation(no_operation, kMissing); }},
        {"CancelOperation", [&] { beta.CancelOperation(operation, kMissing); },
         [&] { beta.CancelOperation(no_operation, kMissing); }},
        {"ListOperations of a workspace",
         [&] { beta.ListOperations("workspace = \"workspaces/" + workspaces[i] + "\"", "", grpc::StatusCode::OK); },
         [&] { beta.ListOperations("workspace = \"workspaces/" + id + "\"", "", grpc::StatusCode::OK); }},
        {"ListOperations with a page token", [&] { beta.ListOperations("", token, grpc::StatusCode::INVALID_ARGUMENT); },
         [&] { beta.ListOperations("", std::string(token.size(), 'A'), grpc::StatusCode::INVALID_ARGUMENT); }},
        {"CreateWorkspace", [&] { beta.CreateWorkspace(workspaces[i]); }, [&] { beta.CreateWorkspace(id); }},
        {"StartUpload of a digest", [&] { uploads[0] = beta.StartUpload(path + "a", contents[i]); },
         [&] { uploads[1] = beta.StartUpload(path + "b", others[0]); }},
        {"UploadBytes of a content", [&] { beta.UploadBytes(uploads[0].name(), contents[i]); },
         [&] { beta.UploadBytes(uploads[1].name(), others[0]); }},
        {"credentials, right but for a letter", [&] { almost.GetWorkspace(shared, kRefused); },
         [&] { nobody.GetWorkspace(shared, kRefused); }},
    };
    for (const Question& question : questions) {
      const bool there_first = (random() & 1) != 0;
      for (const bool there : {there_first, !there_first}) {
        result[question.name][there ? "there" : "nothing"].push_back(Seconds(there ? question.there : question.nothing));
      }
    }
  }
  return result;
}

int Main(int argc, char** argv) {
  Settings settings;
  ordered_json result;
  CLI::App app("Measures a running modelpressd");
  app.require_subcommand(1);
  app.add_option("--target", settings.target, "modelpressd")->required();
  app.add_option("--bare_target", settings.bare_target, "bare_stream_server");
  app.add_option("--work_folder", settings.work_folder, "For temporary files")->check(CLI::ExistingDirectory);
  app.add_option("--model", settings.model)->check(CLI::ExistingFile);
  app.add_option("--record", settings.record)->check(CLI::ExistingFile);
  app.add_option("--megabytes", settings.megabytes, "Size of a transfer")->check(CLI::PositiveNumber);
  app.add_option("--repeats", settings.repeats)->check(CLI::PositiveNumber);
  app.add_option("--jobs", settings.jobs)->check(CLI::PositiveNumber);
  app.add_option("--seconds", settings.seconds, "Of polling, each time")->check(CLI::PositiveNumber);
  app.add_subcommand("transfer")->fallthrough()->callback([&] { result = Transfer(settings); });
  app.add_subcommand("tiny")->fallthrough()->callback([&] { result = Tiny(settings); });
  app.add_option("--pollers", settings.pollers)->check(CLI::PositiveNumber);
  app.add_option("--uploads", settings.uploads)->check(CLI::NonNegativeNumber);
  app.add_subcommand("load")->fallthrough()->callback([&] { result = Load(settings); });
  app.add_option("--samples", settings.samples)->check(CLI::PositiveNumber);
  app.add_option("--token", settings.token, "Of a writer");
  app.add_option("--other_token", settings.other_token, "Of a writer in another project");
  app.add_subcommand("tenancy")->fallthrough()->callback([&] { result = Tenancy(settings); });
  app.add_subcommand("polls")->fallthrough()->callback([&] { result = Polls(settings); });
  CLI11_PARSE(app, argc, argv);
  std::cout << result.dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace modelpress::client

int main(int argc, char** argv) { return modelpress::client::Main(argc, argv); }
