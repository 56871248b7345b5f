#ifndef MODELPRESS_SERVER_BASE_SANITIZERS_H_
#define MODELPRESS_SERVER_BASE_SANITIZERS_H_

namespace modelpress::server {

// True in a build with AddressSanitizer or ThreadSanitizer, which is one for tests. They reserve terabytes of address space, have
// threads of their own, read /proc and make calls that no engine makes: limits and isolation that this would break are left out.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kUnderSanitizer = true;
#else
inline constexpr bool kUnderSanitizer = false;
#endif

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_SANITIZERS_H_
