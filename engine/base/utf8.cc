#include "engine/base/utf8.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace modelpress {

size_t ValidUtf8Prefix(absl::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    auto byte = [&](size_t k) { return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u; };
    const unsigned lead = byte(0);
    const size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if (length == 0) {
      return i;
    }
    const unsigned lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const unsigned highest = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    for (size_t k = 1; k < length; ++k) {
      if (byte(k) < (k == 1 ? lowest : 0x80) || byte(k) > (k == 1 ? highest : 0xBF)) {
        return i;
      }
    }
    i += length;
  }
  return i;
}

std::string AsUtf8(absl::string_view text, size_t max_bytes) {
  constexpr absl::string_view kCut = "...";
  std::string clean;
  clean.reserve(std::min(text.size(), max_bytes));
  while (!text.empty()) {
    const size_t valid = ValidUtf8Prefix(text.substr(0, max_bytes + 1));
    clean.append(text.data(), valid);
    text.remove_prefix(valid);
    if (clean.size() > max_bytes) {
      break;
    }
    if (!text.empty()) {
      absl::StrAppend(&clean, "\\x", absl::Hex(static_cast<unsigned char>(text[0]), absl::kZeroPad2));
      text.remove_prefix(1);
    }
  }
  if (clean.size() > max_bytes) {
    const size_t keep = max_bytes - std::min(max_bytes, kCut.size());
    clean.resize(ValidUtf8Prefix(absl::string_view(clean).substr(0, keep)));
    absl::StrAppend(&clean, kCut);
  }
  return clean;
}

}  // namespace modelpress
