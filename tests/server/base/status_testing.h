// Assertions about statuses.
#ifndef MODELPRESS_TESTS_SERVER_BASE_STATUS_TESTING_H_
#define MODELPRESS_TESTS_SERVER_BASE_STATUS_TESTING_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace modelpress::server {

inline absl::Status StatusOf(const absl::Status& status) { return status; }
template <typename T>
absl::Status StatusOf(const absl::StatusOr<T>& value) {
  return value.status();
}

inline testing::AssertionResult IsOk(const absl::Status& status) {
  return status.ok() ? testing::AssertionSuccess() : testing::AssertionFailure() << status.ToString();
}

inline testing::AssertionResult HasReason(const absl::Status& status, v1::Reason reason) {
  return ReasonOf(status) == reason && !status.ok()
             ? testing::AssertionSuccess()
             : testing::AssertionFailure() << status.ToString() << " is not " << v1::Reason_Name(reason);
}

// The answer to an attempt that holds its job no more.
inline testing::AssertionResult IsNotHeld(const absl::Status& status) {
  return absl::IsFailedPrecondition(status) && ReasonOf(status) == v1::REASON_UNSPECIFIED
             ? testing::AssertionSuccess()
             : testing::AssertionFailure() << status.ToString() << " is not FAILED_PRECONDITION without a reason";
}

// The text and details of an error about the resource `id`, to be compared with that about another one.
template <typename T>
std::string TextOf(const T& status_or_value, const std::string& id) {
  const absl::Status status = StatusOf(status_or_value);
  std::string text = status.ToString(absl::StatusToStringMode::kWithEverything);
  for (size_t at = 0; !id.empty() && (at = text.find(id, at)) != std::string::npos; ++at) {
    text.replace(at, id.size(), "ID");
  }
  return text;
}

}  // namespace modelpress::server

#define ASSERT_OK(expression) ASSERT_TRUE(::modelpress::server::IsOk(::modelpress::server::StatusOf(expression)))
#define EXPECT_OK(expression) EXPECT_TRUE(::modelpress::server::IsOk(::modelpress::server::StatusOf(expression)))
#define EXPECT_REASON(expression, reason) \
  EXPECT_TRUE(::modelpress::server::HasReason(::modelpress::server::StatusOf(expression), ::modelpress::v1::reason))
#define EXPECT_NOT_HELD(expression) EXPECT_TRUE(::modelpress::server::IsNotHeld(::modelpress::server::StatusOf(expression)))

// ASSERT_OK_AND_ASSIGN(auto value, Function())
#define ASSERT_OK_AND_ASSIGN(lhs, expression) ASSERT_OK_AND_ASSIGN_INNER(MP_CONCAT(mp_statusor_, __LINE__), lhs, expression)
#define ASSERT_OK_AND_ASSIGN_INNER(statusor, lhs, expression) \
  auto statusor = (expression);                               \
  ASSERT_TRUE(::modelpress::server::IsOk(statusor.status())); \
  lhs = *std::move(statusor)

#endif  // MODELPRESS_TESTS_SERVER_BASE_STATUS_TESTING_H_
