// What all functions that start from a float model share: the model with its layers found, and small files.
#ifndef MODELPRESS_ENGINE_FUNCTIONS_NAMED_MODEL_H_
#define MODELPRESS_ENGINE_FUNCTIONS_NAMED_MODEL_H_

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/formats/record.h"
#include "engine/functions/functions.h"
#include "engine/graph/graph.h"
#include "engine/quantize/layers.h"
#include "modelpress/v1/module_manifest.pb.h"

namespace modelpress::engine {

// A model whose layers' nodes carry the layers' names.
struct NamedModel {
  Graph graph;
  Layers layers;
  std::set<std::string> files_read;
  std::map<ItemId, std::string> mark_tensors;  // as StripMarks returns them
  std::optional<v1::ModuleManifest> manifest;  // where the call has one
};

// New names and free dimensions for the interface of a model (documented parameters of several functions).
struct InterfaceNames {
  std::vector<std::string> inputs;                                 // in order; empty: as they are
  std::vector<std::string> outputs;                                // the same
  std::map<std::string, std::map<int, std::string>> dynamic_axes;  // input or output -> axis -> label ("": a made-up one)
};

// Reads `model` (request field `field`) and finds its layers. MODEL_MARKED where it is quantized already. Marks, of
// quantize_model and of a training client's export, are taken off.
absl::StatusOr<NamedModel> ReadNamedModel(const CallContext& context, const std::string& model, const std::string& field,
                                          const std::string& module_manifest, const InterfaceNames& names = {});

// The whole content of a small text file. FILE_NOT_FOUND with `field`.
absl::StatusOr<std::string> ReadText(const CallContext& context, const std::string& file, const std::string& field);

// Parses a record file (request field record_file).
absl::StatusOr<ParsedRecord> ReadRecordFile(const CallContext& context, const std::string& record_file);

// The status of making a configuration with its place filled in: what no file or argument is to blame for lies with the model.
absl::Status AtConfigSource(const absl::Status& status, const std::string& model, const std::string& config_definition);

// Writes one small file of a call's results; does nothing with validate_only.
absl::StatusOr<WrittenFile> WriteText(const CallContext& context, const OutputFile& file, absl::string_view text);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_NAMED_MODEL_H_
