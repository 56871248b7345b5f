// A daemon in this process, on a free port, with a data folder of its own, spoken to over a real socket.
#ifndef MODELPRESS_TESTS_SERVER_TESTING_DAEMON_FIXTURE_H_
#define MODELPRESS_TESTS_SERVER_TESTING_DAEMON_FIXTURE_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "google/longrunning/operations.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/channel.h"
#include "modelpress/v1/compression.grpc.pb.h"
#include "modelpress/v1/workspaces.grpc.pb.h"
#include "server/base/sha256.h"
#include "server/daemon/daemon.h"

namespace modelpress::server {

class DaemonFixture : public ::testing::Test {
 protected:
  DaemonFixture();
  ~DaemonFixture() override;

  // Options with the temporary folder, port 0, no metrics, no workers, the built modelpressd as child.
  DaemonOptions Options() const;
  void Start(const DaemonOptions& options);
  void Stop();

  // The channel, once it stands: calls fail if the first connection does, which on one machine happens now and then ("Invalid
  // argument", one in some hundred thousand).
  static std::shared_ptr<grpc::Channel> Connected(std::shared_ptr<grpc::Channel> channel);

  // Every failure is a test failure.
  void MakeWorkspace(const std::string& id);
  v1::Upload StartUpload(const std::string& file, const std::string& content);
  // Sends content[upload.committed_size, end) in pieces; returns what the stream ended with.
  grpc::Status SendBytes(const v1::Upload& upload, const std::string& content, size_t end, v1::Upload* answer);
  void PutFile(const std::string& file, const std::string& content);
  grpc::Status Download(const v1::DownloadFileRequest& request, std::string* content, v1::File* file = nullptr);
  google::longrunning::Operation Wait(const std::string& operation, int seconds);

  const std::string folder_;
  std::unique_ptr<Daemon> daemon_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Workspaces::Stub> workspaces_;
  std::unique_ptr<v1::Compression::Stub> compression_;
  std::unique_ptr<google::longrunning::Operations::Stub> operations_;
};

// What an error says about itself; empty parts where it lacks them.
google::rpc::Status DetailsOf(const grpc::Status& status);
std::string ReasonOf(const google::rpc::Status& status);
inline std::string ReasonOf(const grpc::Status& status) { return ReasonOf(DetailsOf(status)); }
std::string MetadataOf(const grpc::Status& status, const std::string& key);

v1::OperationMetadata MetadataOf(const google::longrunning::Operation& operation);

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_TESTING_DAEMON_FIXTURE_H_
