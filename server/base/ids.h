#ifndef MODELPRESS_SERVER_BASE_IDS_H_
#define MODELPRESS_SERVER_BASE_IDS_H_

#include <string>

#include "server/base/clock.h"

namespace modelpress::server {

// Ids of 27 characters: the prefix, 10 digits (base 32, alphabet 0-9a-v, which sorts as its values do) of the time in
// milliseconds since 1970, 16 digits of randomness (80 bits). No state is shared, so that any number of processes may make them.
// Thread-safe.
class RandomIdGenerator final : public IdGenerator {
 public:
  // `clock` must outlive the generator. `prefix` is a lower-case letter.
  explicit RandomIdGenerator(const Clock& clock, char prefix = 'o') : clock_(clock), prefix_(prefix) {}
  std::string NewId() override;

 private:
  const Clock& clock_;
  const char prefix_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_IDS_H_
