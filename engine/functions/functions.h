// What the documented functions share: where input comes from, where output goes, what is told on the way.
#ifndef MODELPRESS_ENGINE_FUNCTIONS_FUNCTIONS_H_
#define MODELPRESS_ENGINE_FUNCTIONS_FUNCTIONS_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/checkpoints.h"
#include "engine/base/reference_defects.h"
#include "engine/model/file_set.h"
#include "engine/model/writer.h"

namespace modelpress::engine {

// save_path as the documented functions read it (save.md section 1.1).
struct SavePath {
  std::string folder;  // in the workspace; "" is its root
  std::string prefix;  // "" or the text in front of "_deploy_model.onnx"

  // "results/model" -> {"results", "model"}; "" or "results/" -> empty prefix. NAME_INVALID for absolute paths, "..", prefixes
  // over 233 bytes.
  static absl::StatusOr<SavePath> Parse(const std::string& save_path);
  // The name of an output file in its folder: prefix "x", "deploy_model.onnx" -> "x_deploy_model.onnx".
  std::string FileName(const std::string& base) const;
  // The same with the folder in front: its name in the workspace.
  std::string WorkspaceName(const std::string& file_name) const;
};

// The name of one file to write, as the documented functions take it: config_file, record_file, modfied_onnx_file.
struct OutputFile {
  std::string folder;  // in the workspace; "" is its root
  std::string name;    // in the folder, 1 to 254 bytes (formats.md, file-name rule)

  // NAME_INVALID, with `field` as the request field that `path` came in by.
  static absl::StatusOr<OutputFile> Parse(const std::string& field, const std::string& path);
  std::string WorkspaceName() const;
};

// A pinned input, for the report.
struct InputDigest {
  std::string name;
  std::string sha256;
  uint64_t size = 0;
};

struct CallContext {
  const FileSet* files = nullptr;    // what the call may read
  std::vector<InputDigest> digests;  // of the same files, where the caller knows them
  std::string output_root;           // folder that stands for the workspace's root when files are written
  bool validate_only = false;        // do every check, write nothing
  ReferenceDefects defects;          // what to do as the reference does although it is wrong
  int threads = 1;
  Checkpoints* checkpoints = nullptr;  // of this call, kept over attempts; nullptr: none are kept
  // One line for the operator's log.
  std::function<void(const std::string& line)> log = [](const std::string&) {};
  // Stage ("read", "calibrate", "quantize", "write", "check", "compare"), done and total. Called from one thread at a time.
  std::function<void(const std::string& stage, uint64_t done, uint64_t total)> progress = [](const std::string&, uint64_t,
                                                                                             uint64_t) {};
};

// The place of a stage of the call in its checkpoints.
StageCheckpoint CheckpointOf(const CallContext& context, const std::string& stage);

// The output files of a call in `folder` of the workspace.
absl::StatusOr<std::unique_ptr<OutputFolder>> CreateOutputFolder(const CallContext& context, const std::string& folder);

// What a call that writes models has made. Names are names in the workspace.
struct SavedModels {
  WrittenFile deploy_model;
  WrittenFile fake_quant_model;
  std::vector<WrittenFile> external_data;
  WrittenFile report;
  WrittenFile report_html;  // where it was asked for
  std::string report_json;  // the content of `report`, also when validate_only wrote no file
  std::vector<std::string> warnings;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_FUNCTIONS_H_
