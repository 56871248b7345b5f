// Paths of this machine are bytes; texts of the protocol are UTF-8.
#ifndef MODELPRESS_CLIENT_CPP_UTF8_H_
#define MODELPRESS_CLIENT_CPP_UTF8_H_

#include <string>

#include "absl/strings/string_view.h"

namespace modelpress::client {

// `text` with every byte that is not part of well-formed UTF-8 as "?"; the same text if it is well-formed (Unicode
// table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF).
std::string ValidUtf8(absl::string_view text);

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_UTF8_H_
