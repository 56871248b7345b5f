// The filter of ListOperations.
#include <string>

#include "server/rpc/operations_filter.h"
#include "tests/fuzz/fuzzing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::RequireClear(modelpress::server::ParseFilter(std::string(modelpress::AsText(data, size))).status());
  return 0;
}
