#include "engine/model/payload.h"

#include <algorithm>

namespace modelpress::engine {

absl::Status MemoryPayload::Read(uint64_t offset, absl::Span<uint8_t> out) const {
  std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
  return absl::OkStatus();
}

absl::Status FilePayload::Read(uint64_t offset, absl::Span<uint8_t> out) const {
  return range_.file->ReadAt(range_.offset + offset, out);
}

}  // namespace modelpress::engine
