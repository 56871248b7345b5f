#ifndef MODELPRESS_SERVER_AUTH_CALLER_H_
#define MODELPRESS_SERVER_AUTH_CALLER_H_

#include <string>

namespace modelpress::server {

// What a principal may do in its project; each may all that those before it may.
enum class Role {
  kReader,  // look and download
  kWriter,  // also upload, run, cancel and delete
  kAdmin,   // also speak for any project, named in the request metadata `modelpress-project`
};

// Who makes a call. Without authentication everybody is the admin of the one project "default".
struct Caller {
  std::string principal = "anonymous";
  std::string project = "default";
  Role role = Role::kAdmin;
  std::string traceparent;  // of this call (W3C Trace Context): a span of the trace that it came with, or of a new one
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_AUTH_CALLER_H_
