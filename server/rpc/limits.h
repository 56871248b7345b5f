// How much of the server callers may take. What is in files is limited by the engine (engine/base/limits.h), names in names.h.
#ifndef MODELPRESS_SERVER_RPC_LIMITS_H_
#define MODELPRESS_SERVER_RPC_LIMITS_H_

#include <cstddef>

namespace modelpress::server {

inline constexpr int kMaxMessageBytes = 4 << 20;        // of one message, in either direction; gRPC: RESOURCE_EXHAUSTED
inline constexpr int kMaxMetadataBytes = 16 << 10;      // of a call's headers; gRPC: RESOURCE_EXHAUSTED
inline constexpr size_t kMaxOperationBytes = 2 << 20;   // of an operation's description, which every answer about it has to hold:
                                                        // mostly the names of its input files. REQUEST_INVALID
inline constexpr int kMaxStreamsPerConnection = 1'000;  // calls at a time; more wait in the client
inline constexpr size_t kMaxRpcMemoryBytes = 1 << 30;   // of gRPC's buffers, all connections together
inline constexpr int kMaxOpenUploads = 256;    // UploadBytes streams at a time, each with a message in memory. A project has at
                                               // most as many as are free (StreamPlaces): UPLOAD_BUSY
inline constexpr int kMaxOpenDownloads = 256;  // DownloadFile streams likewise: DOWNLOAD_BUSY
inline constexpr int kConnectionIdleMs = 30 * 60'000;  // a connection without calls is closed after it
inline constexpr int kKeepaliveMs = 60'000;            // a silent connection is asked whether it still lives,
inline constexpr int kKeepaliveTimeoutMs = 20'000;     // and closed where no answer comes

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_LIMITS_H_
