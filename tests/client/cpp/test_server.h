// A server in this process, behind a real socket, that keeps the protocol of api/ and breaks it where a test says so:
// faults that the real server shows only by accident. Its "compression" copies the model; what models become is not the
// client's matter.
#ifndef MODELPRESS_TESTS_CLIENT_CPP_TEST_SERVER_H_
#define MODELPRESS_TESTS_CLIENT_CPP_TEST_SERVER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "google/longrunning/operations.grpc.pb.h"
#include "google/protobuf/any.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "modelpress/v1/compression.grpc.pb.h"
#include "modelpress/v1/errors.pb.h"
#include "modelpress/v1/operations.pb.h"
#include "modelpress/v1/workspaces.grpc.pb.h"

namespace modelpress::client {

class TestServer {
 public:
  // What goes wrong, and the state that tests look at. Locked by `mutex` while calls run.
  struct State {
    std::mutex mutex;
    // Faults.
    std::map<std::string, int> unavailable;   // method -> how many calls fail before one is served
    std::deque<uint64_t> break_upload_after;  // each stream ends with UNAVAILABLE after so many bytes
    std::deque<uint64_t> break_download_after;
    bool stall_download = false;          // the next download sends nothing until it is cancelled
    bool corrupt_download = false;        // one bit of each downloaded file is wrong
    bool replace_on_break = false;        // a broken download's file changes before it goes on
    google::rpc::Status operation_error;  // what operations end with, if not OK
    bool operation_hangs = false;         // operations run until they are cancelled
    std::string extra_output;             // name of one more output, as a wrong server might send
    std::string report = "{}";            // content of the report
    // Content.
    std::map<std::string, std::string> files;  // full name -> bytes
    std::map<std::string, v1::Upload> uploads;
    std::map<std::string, std::string> partial;  // upload -> bytes held
    std::map<std::string, bool> workspaces;
    std::map<std::string, google::longrunning::Operation> operations;
    // What was seen.
    std::map<std::string, int> calls;                                                       // method -> number
    std::vector<std::pair<std::string, std::multimap<std::string, std::string>>> metadata;  // of every call: method, what came
    uint64_t bytes_received = 0;
    std::vector<v1::SaveModelRequest> save_requests;
    // The last of each.
    v1::CreateQuantConfigRequest config_request;
    v1::QuantizePreprocessRequest preprocess_request;
    v1::QuantizeModelRequest quantize_request;
    v1::CalibrateRequest calibrate_request;
    google::protobuf::Any retrain_request;  // of any call of retraining
  };

  explicit TestServer(std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials());
  ~TestServer();

  const std::string& target() const { return target_; }  // 127.0.0.1:port()
  int port() const { return port_; }
  State& state() { return state_; }
  void AddFile(const std::string& name, const std::string& bytes);
  // An error as the real server makes them.
  static google::rpc::Status Error(v1::Reason reason, int code, const std::string& message,
                                   const std::map<std::string, std::string>& metadata = {});

 private:
  State state_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
  std::string target_;
  int port_ = 0;
};

}  // namespace modelpress::client

#endif  // MODELPRESS_TESTS_CLIENT_CPP_TEST_SERVER_H_
