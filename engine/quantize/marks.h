// QuantIdentity marks: operators that a training client's export has in front of each module, with the module's name and class
// (docs/spec/qat.md section 17.1, save.md section 14.1).
#ifndef MODELPRESS_ENGINE_QUANTIZE_MARKS_H_
#define MODELPRESS_ENGINE_QUANTIZE_MARKS_H_

#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/graph/graph.h"
#include "engine/model/model.h"

namespace modelpress::engine {

// What a mark says.
struct Mark {
  std::string module;  // full name
  std::string type;    // class name; empty: not told
};
std::optional<Mark> MarkOf(const Item& item);

// Gives every node that a mark stands for the module's name, further uses of a module the names "<module>1", "<module>2" and so
// on, and takes the marks off. To be called after FindLayers, which reads them. Returns the names of the tensors that the marks
// of a node wrote: value_info goes on describing them, as the reference's files do. GRAPH_INVALID for a mark without an input.
absl::StatusOr<std::map<ItemId, std::string>> StripMarks(Graph& graph);

// MODEL_MARKED if the model has a mark.
absl::Status CheckUnmarked(const Model& model);

// Domain of the operator; a marked model imports it.
inline constexpr char kMarkDomain[] = "custom_op_domain";
// Takes the import of that domain off, unless it is the only one.
void DropMarkOpset(onnx::ModelProto& shell);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_QUANTIZE_MARKS_H_
