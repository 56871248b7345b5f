// Measures a running modelpressd and, where there is something to compare with, bare_stream_server in the same way. Prints JSON.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "client/cpp/client.h"
#include "client/cpp/sha256.h"
#include "grpcpp/channel.h"
#include "grpcpp/create_channel.h"
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
  threads.emplace_back([&] {
    Caller caller(settings.target, log);
    while (unfinished > 0) {
      caller.List();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  });
  for (std::thread& thread : threads) {
    thread.join();
  }
  return {{"operations", names.size()},
          {"failed", failed.load()},
          {"submit_seconds", submitted},
          {"seconds", Now() - start},
          {"calls", log.AsJson()}};
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
  app.add_subcommand("polls")->fallthrough()->callback([&] { result = Polls(settings); });
  CLI11_PARSE(app, argc, argv);
  std::cout << result.dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace modelpress::client

int main(int argc, char** argv) { return modelpress::client::Main(argc, argv); }
