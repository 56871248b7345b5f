// Which files an ONNX model keeps tensors in, so that they can be sent along with it.
#ifndef MODELPRESS_CLIENT_CPP_EXTERNAL_DATA_H_
#define MODELPRESS_CLIENT_CPP_EXTERNAL_DATA_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace modelpress::client {

// The locations of all tensors of `model` (the bytes of an .onnx file) with external data: initializers, sparse
// initializers, attributes, those of subgraphs, functions and training information. In the order of their first use, each
// once, without "." components. Reads only the framing of the protobuf messages: no tensor is touched or copied.
// MODEL_UNREADABLE if the bytes are no protobuf message; MODEL_LIMIT if messages are nested deeper than protobuf reads
// them; MODEL_EXTERNAL_DATA if a location is empty, absolute or has "..". `file` is named in errors.
absl::StatusOr<std::vector<std::string>> FindExternalData(absl::string_view model, const std::string& file);

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_EXTERNAL_DATA_H_
