#include "server/auth/authenticator.h"

#include "engine/base/status.h"

namespace modelpress::server {

absl::Status NotAuthenticated(absl::string_view cause, absl::string_view message) {
  return WithMetadata(MakeError(v1::AUTHENTICATION_FAILED, message), "cause", cause);
}

}  // namespace modelpress::server
