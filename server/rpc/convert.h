// Rows of the stores as messages of the API.
#ifndef MODELPRESS_SERVER_RPC_CONVERT_H_
#define MODELPRESS_SERVER_RPC_CONVERT_H_

#include <string>

#include "absl/time/time.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/timestamp.pb.h"
#include "modelpress/v1/workspaces.pb.h"
#include "server/rpc/names.h"
#include "server/workspaces/workspace_store.h"

namespace modelpress::server {

inline google::protobuf::Timestamp ToProto(absl::Time time) {
  const int64_t nanos = absl::ToUnixNanos(time);
  google::protobuf::Timestamp proto;
  proto.set_seconds(nanos / 1'000'000'000);
  proto.set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  return proto;
}

inline absl::Time FromProto(const google::protobuf::Timestamp& proto) {
  return absl::FromUnixSeconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

inline absl::Duration FromProto(const google::protobuf::Duration& proto) {
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

inline v1::Workspace ToProto(const WorkspaceRow& row) {
  v1::Workspace workspace;
  workspace.set_name(FormatWorkspaceName(row.id));
  *workspace.mutable_create_time() = ToProto(row.create_time);
  return workspace;
}

inline v1::File ToProto(const std::string& workspace_id, const FileRow& row) {
  v1::File file;
  file.set_name(FormatFileName(workspace_id, row.path));
  file.set_size_bytes(row.size_bytes);
  file.set_sha256(row.sha256);
  *file.mutable_update_time() = ToProto(row.update_time);
  return file;
}

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_CONVERT_H_
