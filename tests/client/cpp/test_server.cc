#include "tests/client/cpp/test_server.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/cpp/sha256.h"
#include "google/rpc/error_details.pb.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_interceptor.h"

namespace modelpress::client {
namespace {

using google::longrunning::Operation;
using google::protobuf::Empty;
using State = TestServer::State;

std::string DigestOf(const std::string& bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return hash.Finish();
}

v1::File FileOf(const std::string& name, const std::string& bytes) {
  v1::File file;
  file.set_name(name);
  file.set_size_bytes(bytes.size());
  file.set_sha256(DigestOf(bytes));
  return file;
}

grpc::Status ToGrpc(const google::rpc::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), status.message(), status.SerializeAsString()};
}

grpc::Status Unavailable() { return {grpc::StatusCode::UNAVAILABLE, "broken for the test"}; }

grpc::Status NotFound(v1::Reason reason, const std::string& name) {
  return ToGrpc(
      TestServer::Error(reason, grpc::StatusCode::NOT_FOUND, absl::StrCat(name, ": there is no such thing"), {{"file", name}}));
}

// Counts the call; false if it is to fail. The caller holds the lock.
bool Serve(State& state, const std::string& method) {
  ++state.calls[method];
  return state.unavailable[method]-- <= 0;
}

// Keeps the metadata of every call.
class MetadataLog : public grpc::experimental::Interceptor {
 public:
  MetadataLog(State& state, grpc::experimental::ServerRpcInfo* info) : state_(state), info_(info) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(grpc::experimental::InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
      std::multimap<std::string, std::string> metadata;
      for (const auto& [key, value] : *methods->GetRecvInitialMetadata()) {
        metadata.emplace(std::string(key.data(), key.size()), std::string(value.data(), value.size()));
      }
      const std::string method = info_->method();
      std::lock_guard lock(state_.mutex);
      state_.metadata.emplace_back(method.substr(method.rfind('/') + 1), std::move(metadata));
    }
    methods->Proceed();
  }

 private:
  State& state_;
  grpc::experimental::ServerRpcInfo* info_;
};

class MetadataLogFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit MetadataLogFactory(State& state) : state_(state) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* info) override {
    return new MetadataLog(state_, info);
  }

 private:
  State& state_;
};

class WorkspacesService : public v1::Workspaces::Service {
 public:
  explicit WorkspacesService(State& state) : state_(state) {}

  grpc::Status CreateWorkspace(grpc::ServerContext*, const v1::CreateWorkspaceRequest* request,
                               v1::Workspace* response) override {
    std::lock_guard lock(state_.mutex);
    if (!Serve(state_, "CreateWorkspace")) {
      return Unavailable();
    }
    std::string id = request->workspace_id().empty() ? absl::StrCat("w", ++next_) : request->workspace_id();
    response->set_name(absl::StrCat("workspaces/", id));
    if (!state_.workspaces.emplace(response->name(), true).second) {
      return ToGrpc(TestServer::Error(v1::WORKSPACE_EXISTS, grpc::StatusCode::ALREADY_EXISTS, "taken"));
    }
    return grpc::Status::OK;
  }

  grpc::Status GetWorkspace(grpc::ServerContext*, const v1::GetWorkspaceRequest* request, v1::Workspace* response) override {
    std::lock_guard lock(state_.mutex);
    if (!Serve(state_, "GetWorkspace")) {
      return Unavailable();
    }
    response->set_name(request->name());
    return state_.workspaces.contains(request->name()) ? grpc::Status::OK : NotFound(v1::WORKSPACE_NOT_FOUND, request->name());
  }

  // Two to a page, so that the client has to turn pages.
  grpc::Status ListWorkspaces(grpc::ServerContext*, const v1::ListWorkspacesRequest* request,
                              v1::ListWorkspacesResponse* response) override {
    std::lock_guard lock(state_.mutex);
    for (auto it = state_.workspaces.upper_bound(request->page_token()); it != state_.workspaces.end(); ++it) {
      if (response->workspaces_size() == 2) {
        response->set_next_page_token(response->workspaces(1).name());
        break;
      }
      response->add_workspaces()->set_name(it->first);
    }
    return grpc::Status::OK;
  }

  grpc::Status DeleteWorkspace(grpc::ServerContext*, const v1::DeleteWorkspaceRequest* request, Empty*) override {
    std::lock_guard lock(state_.mutex);
    if (!Serve(state_, "DeleteWorkspace")) {
      return Unavailable();
    }
    for (const auto& [name, operation] : state_.operations) {
      if (!operation.done()) {
        return ToGrpc(
            TestServer::Error(v1::WORKSPACE_BUSY, grpc::StatusCode::FAILED_PRECONDITION, absl::StrCat(name, " uses it")));
      }
    }
    std::erase_if(state_.files, [&](const auto& file) { return file.first.starts_with(request->name() + "/"); });
    return state_.workspaces.erase(request->name()) == 1 ? grpc::Status::OK : NotFound(v1::WORKSPACE_NOT_FOUND, request->name());
  }

  grpc::Status GetFile(grpc::ServerContext*, const v1::GetFileRequest* request, v1::File* response) override {
    std::lock_guard lock(state_.mutex);
    auto file = state_.files.find(request->name());
    if (file == state_.files.end()) {
      return NotFound(v1::FILE_NOT_FOUND, request->name());
    }
    *response = FileOf(file->first, file->second);
    return grpc::Status::OK;
  }

  grpc::Status ListFiles(grpc::ServerContext*, const v1::ListFilesRequest* request, v1::ListFilesResponse* response) override {
    std::lock_guard lock(state_.mutex);
    for (const auto& [name, bytes] : state_.files) {
      if (name.starts_with(request->parent() + "/")) {
        *response->add_files() = FileOf(name, bytes);
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status DeleteFile(grpc::ServerContext*, const v1::DeleteFileRequest* request, Empty*) override {
    std::lock_guard lock(state_.mutex);
    return state_.files.erase(request->name()) == 1 ? grpc::Status::OK : NotFound(v1::FILE_NOT_FOUND, request->name());
  }

  grpc::Status StartUpload(grpc::ServerContext*, const v1::StartUploadRequest* request, v1::Upload* response) override {
    std::lock_guard lock(state_.mutex);
    if (!Serve(state_, "StartUpload")) {
      return Unavailable();
    }
    response->set_file(request->file());
    response->set_size_bytes(request->size_bytes());
    response->set_sha256(request->sha256());
    for (const auto& [name, bytes] : state_.files) {
      if (DigestOf(bytes) == request->sha256()) {
        state_.files[request->file()] = std::string(bytes);
        response->set_committed_size(request->size_bytes());
        response->set_complete(true);
        return grpc::Status::OK;
      }
    }
    for (const auto& [name, upload] : state_.uploads) {
      if (upload.file() == request->file() && upload.sha256() == request->sha256()) {
        *response = upload;
        return grpc::Status::OK;
      }
    }
    response->set_name(absl::StrCat("workspaces/w/uploads/", ++next_));
    state_.uploads[response->name()] = *response;
    return grpc::Status::OK;
  }

  grpc::Status GetUpload(grpc::ServerContext*, const v1::GetUploadRequest* request, v1::Upload* response) override {
    std::lock_guard lock(state_.mutex);
    if (!Serve(state_, "GetUpload")) {
      return Unavailable();
    }
    auto upload = state_.uploads.find(request->name());
    if (upload == state_.uploads.end()) {
      return NotFound(v1::UPLOAD_NOT_FOUND, request->name());
    }
    *response = upload->second;
    return grpc::Status::OK;
  }

  grpc::Status UploadBytes(grpc::ServerContext*, grpc::ServerReader<v1::UploadBytesRequest>* reader,
                           v1::Upload* response) override {
    std::unique_lock lock(state_.mutex);
    if (!Serve(state_, "UploadBytes")) {
      return Unavailable();
    }
    uint64_t left = UINT64_MAX;
    if (!state_.break_upload_after.empty()) {
      left = state_.break_upload_after.front();
      state_.break_upload_after.pop_front();
    }
    std::string name;
    v1::UploadBytesRequest request;
    for (;;) {
      lock.unlock();
      bool more = reader->Read(&request);
      lock.lock();
      if (!more) {
        break;
      }
      if (name.empty()) {
        name = request.upload();
      }
      auto upload = state_.uploads.find(name);
      if (upload == state_.uploads.end()) {
        return NotFound(v1::UPLOAD_NOT_FOUND, name);
      }
      std::string& held = state_.partial[name];
      if (request.offset() != held.size()) {
        return ToGrpc(TestServer::Error(v1::UPLOAD_OFFSET_MISMATCH, grpc::StatusCode::OUT_OF_RANGE, "another offset",
                                        {{"committed_size", absl::StrCat(held.size())}}));
      }
      uint64_t take = std::min<uint64_t>(left, request.data().size());
      held.append(request.data(), 0, take);
      state_.bytes_received += take;
      left -= take;
      upload->second.set_committed_size(held.size());
      if (left == 0) {
        return Unavailable();
      }
    }
    v1::Upload& upload = state_.uploads[name];
    if (upload.committed_size() == upload.size_bytes()) {
      std::string bytes = std::move(state_.partial[name]);
      state_.partial.erase(name);
      v1::Upload finished = upload;
      state_.uploads.erase(name);
      if (DigestOf(bytes) != finished.sha256()) {
        return ToGrpc(TestServer::Error(v1::DIGEST_MISMATCH, grpc::StatusCode::INVALID_ARGUMENT, "the bytes sent are others"));
      }
      state_.files[finished.file()] = std::move(bytes);
      finished.set_complete(true);
      *response = finished;
    } else {
      *response = upload;
    }
    return grpc::Status::OK;
  }

  grpc::Status DownloadFile(grpc::ServerContext* context, const v1::DownloadFileRequest* request,
                            grpc::ServerWriter<v1::DownloadFileResponse>* writer) override {
    std::unique_lock lock(state_.mutex);
    if (!Serve(state_, "DownloadFile")) {
      return Unavailable();
    }
    if (std::exchange(state_.stall_download, false)) {
      lock.unlock();
      while (!context->IsCancelled()) {
        absl::SleepFor(absl::Milliseconds(1));
      }
      return grpc::Status::CANCELLED;
    }
    auto file = state_.files.find(request->name());
    if (file == state_.files.end()) {
      return NotFound(v1::FILE_NOT_FOUND, request->name());
    }
    if (!request->sha256().empty() && request->sha256() != DigestOf(file->second)) {
      return ToGrpc(TestServer::Error(v1::FILE_CHANGED, grpc::StatusCode::FAILED_PRECONDITION, "the content is another one now"));
    }
    uint64_t left = UINT64_MAX;
    if (!state_.break_download_after.empty()) {
      left = state_.break_download_after.front();
      state_.break_download_after.pop_front();
    }
    v1::DownloadFileResponse response;
    *response.mutable_file() = FileOf(file->first, file->second);
    std::string bytes = file->second;
    if (state_.corrupt_download) {
      bytes.back() = static_cast<char>(bytes.back() ^ 1);
    }
    for (uint64_t offset = request->offset(); offset < bytes.size() && left > 0; offset += response.data().size()) {
      response.set_data(bytes.substr(offset, std::min<uint64_t>(left, 1000)));
      left -= response.data().size();
      writer->Write(response);
      response.clear_file();
    }
    if (bytes.empty()) {
      writer->Write(response);
    }
    if (left == 0) {
      if (state_.replace_on_break) {
        file->second = "something else";
      }
      return Unavailable();
    }
    return grpc::Status::OK;
  }

 private:
  State& state_;
  int next_ = 0;  // guarded by state_.mutex
};

class CompressionService : public v1::Compression::Service {
 public:
  explicit CompressionService(State& state) : state_(state) {}

  grpc::Status CreateQuantConfig(grpc::ServerContext*, const v1::CreateQuantConfigRequest* request,
                                 Operation* operation) override {
    std::lock_guard lock(state_.mutex);
    state_.config_request = *request;
    return Start<v1::CreateQuantConfigResponse>(
        "CreateQuantConfig", *request, request->model(), operation, [&](auto& response, const std::string& model) {
          *response.mutable_config_file() = Put(*request, request->config_file(), "config of " + model);
        });
  }

  grpc::Status QuantizePreprocess(grpc::ServerContext*, const v1::QuantizePreprocessRequest* request,
                                  Operation* operation) override {
    std::lock_guard lock(state_.mutex);
    state_.preprocess_request = *request;
    return Start<v1::QuantizePreprocessResponse>(
        "QuantizePreprocess", *request, request->model(), operation, [&](auto& response, const std::string& model) {
          *response.mutable_record_file() = Put(*request, request->record_file(), "balance of " + model);
        });
  }

  grpc::Status QuantizeModel(grpc::ServerContext*, const v1::QuantizeModelRequest* request, Operation* operation) override {
    std::lock_guard lock(state_.mutex);
    state_.quantize_request = *request;
    return Start<v1::QuantizeModelResponse>(
        "QuantizeModel", *request, request->model(), operation, [&](auto& response, const std::string& model) {
          auto name = [&](const std::string& given, const std::string& base) {
            return given.empty() ? request->save_path() + "_" + base : given;
          };
          const std::string modified = name(request->modified_onnx_file(), "modified_model.onnx");
          const std::string record = name(request->record_file(), "record.txt");
          *response.mutable_modified_onnx_file() = Put(*request, modified, "modified " + model);
          *response.add_external_data() = Put(*request, modified.substr(0, modified.rfind('/')) + "/w.external", "weights");
          *response.mutable_record_file() = Put(*request, record, "weights + " + ContentOf(*request, record));
          if (!request->save_path().empty()) {
            if (request->config_file().empty()) {
              *response.mutable_config_file() = Put(*request, request->save_path() + "_config.json", "{}");
            }
            PutSaved(*request, model, response);
            *response.mutable_report_html() = Put(*request, request->save_path() + "_report.html", "<html>");
          }
        });
  }

  grpc::Status Calibrate(grpc::ServerContext*, const v1::CalibrateRequest* request, Operation* operation) override {
    std::lock_guard lock(state_.mutex);
    state_.calibrate_request = *request;
    const std::string& model = request->modified_onnx_file().empty() ? request->model() : request->modified_onnx_file();
    return Start<v1::CalibrateResponse>("Calibrate", *request, model, operation, [&](auto& response, const std::string&) {
      *response.mutable_record_file() =
          Put(*request, request->record_file(), "activations + " + ContentOf(*request, request->record_file()));
    });
  }

  grpc::Status SaveModel(grpc::ServerContext*, const v1::SaveModelRequest* request, Operation* operation) override {
    std::lock_guard lock(state_.mutex);
    state_.save_requests.push_back(*request);
    return Start<v1::SaveModelResponse>("SaveModel", *request, request->modified_onnx_file(), operation,
                                        [&](auto& response, const std::string& model) { PutSaved(*request, model, response); });
  }

  grpc::Status CreatePruneRetrainModel(grpc::ServerContext*, const v1::CreatePruneRetrainModelRequest* request,
                                       Operation* operation) override {
    return Retrain("CreatePruneRetrainModel", *request, /*writes_record=*/true, operation);
  }

  grpc::Status RestorePruneRetrainModel(grpc::ServerContext*, const v1::RestorePruneRetrainModelRequest* request,
                                        Operation* operation) override {
    return Retrain("RestorePruneRetrainModel", *request, /*writes_record=*/false, operation);
  }

  grpc::Status CreateQuantRetrainModel(grpc::ServerContext*, const v1::CreateQuantRetrainModelRequest* request,
                                       Operation* operation) override {
    return Retrain("CreateQuantRetrainModel", *request, /*writes_record=*/true, operation);
  }

  grpc::Status RestoreQuantRetrainModel(grpc::ServerContext*, const v1::RestoreQuantRetrainModelRequest* request,
                                        Operation* operation) override {
    return Retrain("RestoreQuantRetrainModel", *request, /*writes_record=*/true, operation);
  }

  grpc::Status CreateCompressedRetrainModel(grpc::ServerContext*, const v1::CreateCompressedRetrainModelRequest* request,
                                            Operation* operation) override {
    return Retrain("CreateCompressedRetrainModel", *request, /*writes_record=*/true, operation);
  }

  grpc::Status RestoreCompressedRetrainModel(grpc::ServerContext*, const v1::RestoreCompressedRetrainModelRequest* request,
                                             Operation* operation) override {
    return Retrain("RestoreCompressedRetrainModel", *request, /*writes_record=*/false, operation);
  }

  grpc::Status SaveQuantRetrainModel(grpc::ServerContext*, const v1::SaveQuantRetrainModelRequest* request,
                                     Operation* operation) override {
    return SaveRetrain<v1::SaveModelResponse>("SaveQuantRetrainModel", *request, operation);
  }

  grpc::Status SaveCompressedRetrainModel(grpc::ServerContext*, const v1::SaveCompressedRetrainModelRequest* request,
                                          Operation* operation) override {
    return SaveRetrain<v1::SaveModelResponse>("SaveCompressedRetrainModel", *request, operation);
  }

  grpc::Status CreateQuantRetrainConfig(grpc::ServerContext*, const v1::CreateQuantRetrainConfigRequest* request,
                                        Operation* operation) override {
    std::lock_guard lock(state_.mutex);
    state_.retrain_request.PackFrom(*request);
    return Start<v1::CreateQuantConfigResponse>(
        "CreateQuantRetrainConfig", *request, request->model(), operation, [&](auto& response, const std::string& model) {
          *response.mutable_config_file() = Put(*request, request->config_file(), "config of " + model);
        });
  }

  grpc::Status AutoChannelPruneSearch(grpc::ServerContext*, const v1::AutoChannelPruneSearchRequest* request,
                                      Operation* operation) override {
    std::lock_guard lock(state_.mutex);
    state_.retrain_request.PackFrom(*request);
    return Start<v1::AutoChannelPruneSearchResponse>(
        "AutoChannelPruneSearch", *request, request->model(), operation, [&](auto& response, const std::string& model) {
          *response.mutable_output_cfg() = Put(*request, request->output_cfg(), "ratios of " + model);
        });
  }

  grpc::Status SavePruneRetrainModel(grpc::ServerContext*, const v1::SavePruneRetrainModelRequest* request,
                                     Operation* operation) override {
    return SaveRetrain<v1::SavePruneRetrainModelResponse>("SavePruneRetrainModel", *request, operation);
  }

 private:
  template <typename Request>
  grpc::Status Retrain(const std::string& method, const Request& request, bool writes_record, Operation* operation) {
    std::lock_guard lock(state_.mutex);
    state_.retrain_request.PackFrom(request);
    return Start<v1::RetrainModelResponse>(
        method, request, request.model(), operation, [&](auto& response, const std::string& model) {
          const std::string prefix = request.save_path() + (request.save_path().ends_with('/') ? "" : "_");
          if (writes_record) {
            *response.mutable_record_file() = Put(request, request.record_file(), "record of " + model);
          }
          *response.mutable_rewrite_plan() = Put(request, prefix + "rewrite_plan.json", "plan of " + model);
          if constexpr (requires { request.plan_only(); }) {
            if (!request.plan_only()) {
              *response.mutable_pruned_model() = Put(request, prefix + "pruned_model.onnx", "pruned " + model);
            }
          }
          *response.mutable_report() = Put(request, prefix + "report.json", state_.report);
        });
  }

  template <typename Response, typename Request>
  grpc::Status SaveRetrain(const std::string& method, const Request& request, Operation* operation) {
    std::lock_guard lock(state_.mutex);
    state_.retrain_request.PackFrom(request);
    return Start<Response>(method, request, request.model(), operation,
                           [&](auto& response, const std::string& model) { PutSaved(request, model, response); });
  }

  template <typename Request>
  v1::File Put(const Request& request, const std::string& path, const std::string& bytes) {
    const std::string name = request.workspace() + "/files/" + path;
    state_.files[name] = bytes;
    return FileOf(name, bytes);
  }

  template <typename Request>
  std::string ContentOf(const Request& request, const std::string& path) const {
    auto file = state_.files.find(request.workspace() + "/files/" + path);
    return file == state_.files.end() ? "nothing" : file->second;
  }

  template <typename Request, typename Response>
  void PutSaved(const Request& request, const std::string& model, Response& response) {
    const std::string prefix = request.save_path() + (request.save_path().ends_with('/') ? "" : "_");
    *response.mutable_deploy_model() = Put(request, prefix + "deploy_model.onnx", "deploy " + model);
    *response.mutable_fake_quant_model() = Put(request, prefix + "fake_quant_model.onnx", "fake_quant " + model);
    *response.mutable_report() = Put(request, prefix + "report.json", state_.report);
    if (!state_.extra_output.empty()) {
      *response.add_external_data() = FileOf(state_.extra_output, "");
    }
  }

  // `fill` gets the response and the bytes of the model, and makes the outputs.
  template <typename Response, typename Request, typename Fill>
  grpc::Status Start(const std::string& method, const Request& request, const std::string& model, Operation* operation,
                     const Fill& fill) {
    if (!Serve(state_, method)) {
      return Unavailable();
    }
    operation->set_name(absl::StrCat("operations/", request.options().request_id()));
    if (auto known = state_.operations.find(operation->name()); known != state_.operations.end()) {
      *operation = known->second;
      return grpc::Status::OK;
    }
    auto input = state_.files.find(request.workspace() + "/files/" + model);
    if (input == state_.files.end()) {
      return NotFound(v1::FILE_NOT_FOUND, model);
    }
    Response response;
    if (!request.options().validate_only()) {
      const std::string bytes = input->second;
      fill(response, bytes);
    }
    v1::OperationMetadata metadata;
    metadata.set_method(method);
    metadata.set_workspace(request.workspace());
    metadata.set_state(v1::OperationMetadata::PENDING);
    if (request.options().validate_only()) {
      metadata.set_report("{\"validate_only\": true}\n");
    }
    operation->mutable_metadata()->PackFrom(metadata);
    // Kept as the operation's response until it is done.
    Operation stored = *operation;
    stored.mutable_response()->PackFrom(response);
    state_.operations[operation->name()] = stored;
    return grpc::Status::OK;
  }

  State& state_;
};

class OperationsService : public google::longrunning::Operations::Service {
 public:
  explicit OperationsService(State& state) : state_(state) {}

  grpc::Status GetOperation(grpc::ServerContext*, const google::longrunning::GetOperationRequest* request,
                            Operation* response) override {
    std::lock_guard lock(state_.mutex);
    return Find(request->name(), response);
  }

  grpc::Status ListOperations(grpc::ServerContext*, const google::longrunning::ListOperationsRequest*,
                              google::longrunning::ListOperationsResponse* response) override {
    std::lock_guard lock(state_.mutex);
    for (const auto& [name, operation] : state_.operations) {
      Find(name, response->add_operations());
    }
    return grpc::Status::OK;
  }

  grpc::Status CancelOperation(grpc::ServerContext*, const google::longrunning::CancelOperationRequest* request,
                               Empty*) override {
    std::lock_guard lock(state_.mutex);
    ++state_.calls["CancelOperation"];
    End(state_.operations[request->name()], TestServer::Error(v1::OPERATION_CANCELLED, grpc::StatusCode::CANCELLED, "cancelled"));
    return grpc::Status::OK;
  }

  grpc::Status DeleteOperation(grpc::ServerContext*, const google::longrunning::DeleteOperationRequest* request,
                               Empty*) override {
    std::lock_guard lock(state_.mutex);
    return state_.operations.erase(request->name()) == 1 ? grpc::Status::OK : NotFound(v1::OPERATION_NOT_FOUND, request->name());
  }

  // Each poll finds the operation one step further: queued, running, done.
  grpc::Status WaitOperation(grpc::ServerContext*, const google::longrunning::WaitOperationRequest* request,
                             Operation* response) override {
    std::lock_guard lock(state_.mutex);
    if (!Serve(state_, "WaitOperation")) {
      return Unavailable();
    }
    auto found = state_.operations.find(request->name());
    if (found != state_.operations.end() && !found->second.done()) {
      Advance(found->second);
    }
    return Find(request->name(), response);
  }

 private:
  grpc::Status Find(const std::string& name, Operation* response) {
    auto found = state_.operations.find(name);
    if (found == state_.operations.end()) {
      return NotFound(v1::OPERATION_NOT_FOUND, name);
    }
    *response = found->second;
    if (!response->done()) {
      response->clear_response();
    }
    return grpc::Status::OK;
  }

  void Advance(Operation& operation) {
    v1::OperationMetadata metadata;
    operation.metadata().UnpackTo(&metadata);
    if (metadata.state() == v1::OperationMetadata::PENDING) {
      metadata.set_state(v1::OperationMetadata::RUNNING);
      metadata.mutable_progress()->set_stage("quantize");
      metadata.mutable_progress()->set_done(1);
      metadata.mutable_progress()->set_total(2);
    } else if (state_.operation_error.code() != 0) {
      End(operation, state_.operation_error);
      return;
    } else if (!state_.operation_hangs) {
      metadata.set_state(v1::OperationMetadata::SUCCEEDED);
      metadata.add_warnings("layer 'fc' stays float");
      operation.set_done(true);
    }
    operation.mutable_metadata()->PackFrom(metadata);
  }

  static void End(Operation& operation, const google::rpc::Status& error) {
    operation.set_done(true);
    *operation.mutable_error() = error;  // takes the response's place
  }

  State& state_;
};

}  // namespace

TestServer::TestServer(std::shared_ptr<grpc::ServerCredentials> credentials) {
  services_.push_back(std::make_unique<WorkspacesService>(state_));
  services_.push_back(std::make_unique<CompressionService>(state_));
  services_.push_back(std::make_unique<OperationsService>(state_));
  grpc::ServerBuilder builder;
  builder.AddListeningPort("0.0.0.0:0", std::move(credentials), &port_);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<MetadataLogFactory>(state_));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  for (const auto& service : services_) {
    builder.RegisterService(service.get());
  }
  server_ = builder.BuildAndStart();
  target_ = absl::StrCat("127.0.0.1:", port_);
}

TestServer::~TestServer() { server_->Shutdown(absl::ToChronoTime(absl::Now())); }

void TestServer::AddFile(const std::string& name, const std::string& bytes) {
  std::lock_guard lock(state_.mutex);
  state_.files[name] = bytes;
}

google::rpc::Status TestServer::Error(v1::Reason reason, int code, const std::string& message,
                                      const std::map<std::string, std::string>& metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(v1::Reason_Name(reason));
  info.set_domain("modelpress");
  info.mutable_metadata()->insert(metadata.begin(), metadata.end());
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(message);
  status.add_details()->PackFrom(info);
  return status;
}

}  // namespace modelpress::client
