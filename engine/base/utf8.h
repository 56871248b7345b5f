// UTF-8 (RFC 3629: no overlong forms, no surrogates), which the strings of messages must be and names in files need not be.
#ifndef MODELPRESS_ENGINE_BASE_UTF8_H_
#define MODELPRESS_ENGINE_BASE_UTF8_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace modelpress {

// Index of the first byte that is not part of valid UTF-8, or text.size().
size_t ValidUtf8Prefix(absl::string_view text);

// The text with bytes that are no UTF-8 as "\xNN"; where that is longer than `max_bytes` (at least 3), its beginning and "...".
std::string AsUtf8(absl::string_view text, size_t max_bytes);

}  // namespace modelpress

#endif  // MODELPRESS_ENGINE_BASE_UTF8_H_
