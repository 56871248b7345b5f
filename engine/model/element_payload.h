// Payloads that are computed element by element.
#ifndef MODELPRESS_ENGINE_MODEL_ELEMENT_PAYLOAD_H_
#define MODELPRESS_ENGINE_MODEL_ELEMENT_PAYLOAD_H_

#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/base/status.h"
#include "engine/model/payload.h"

namespace modelpress::engine {

// Payloads of elements of type T: takes care of ranges that cut elements and of buffers that are not aligned for T.
template <typename T>
class ElementPayload : public Payload {
 public:
  explicit ElementPayload(uint64_t element_count) : element_count_(element_count) {}
  uint64_t size() const final { return element_count_ * sizeof(T); }

  absl::Status Read(uint64_t offset, absl::Span<uint8_t> out) const final {
    if (out.empty()) {
      return absl::OkStatus();
    }
    const uint64_t first = offset / sizeof(T);
    const uint64_t last = (offset + out.size() + sizeof(T) - 1) / sizeof(T);
    const bool whole =
        offset % sizeof(T) == 0 && out.size() % sizeof(T) == 0 && reinterpret_cast<uintptr_t>(out.data()) % alignof(T) == 0;
    if (whole) {
      return ReadElements(first, absl::MakeSpan(reinterpret_cast<T*>(out.data()), last - first));
    }
    std::vector<T> elements(last - first);
    MP_RETURN_IF_ERROR(ReadElements(first, absl::MakeSpan(elements)));
    std::memcpy(out.data(), reinterpret_cast<const uint8_t*>(elements.data()) + offset % sizeof(T), out.size());
    return absl::OkStatus();
  }

 protected:
  virtual absl::Status ReadElements(uint64_t first, absl::Span<T> out) const = 0;

 private:
  uint64_t element_count_;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_MODEL_ELEMENT_PAYLOAD_H_
