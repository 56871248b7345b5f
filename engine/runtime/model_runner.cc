#include "engine/runtime/model_runner.h"

#include <exception>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "engine/base/status.h"
#include "engine/model/element_type.h"
#include "engine/model/writer.h"
#include "engine/runtime/runtime_env.h"

namespace modelpress::engine {
namespace {

constexpr char kModelFile[] = "model.onnx";
constexpr int64_t kFirstIrWithDefaults = 4;
// Weights beyond that go to files of their own, the largest first: ONNX Runtime maps those, and parses the rest.
constexpr uint64_t kExternalizeBytes = 1 << 20;

// ONNX Runtime's words in one line.
absl::Status Unrunnable(absl::string_view what, absl::string_view text) {
  return MakeError(
      v1::MODEL_UNRUNNABLE,
      absl::StrCat(what, ": ", absl::StrJoin(absl::StrSplit(text, absl::ByAnyChar("\r\n\t "), absl::SkipEmpty()), " ")));
}

// Calls f, which returns a Status or StatusOr. The path of `folder`, which is nothing to the caller, is left out of texts.
template <typename F>
auto Guarded(absl::string_view what, const std::string& folder, F f) -> decltype(f()) {
  try {
    return f();
  } catch (const std::exception& e) {
    return Unrunnable(what, folder.empty() ? std::string(e.what()) : absl::StrReplaceAll(e.what(), {{folder, ""}}));
  }
}

class OrtRunner final : public ModelRunner {
 public:
  explicit OrtRunner(const Model& model) : inputs_(InputSpecsOf(model)) {}

  absl::Status Load(const Model& model, const ModelRunnerOptions& options) {
    MP_RETURN_IF_ERROR(FindTensors(model, options.tensors));
    MP_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFolder> folder, OutputFolder::Create(options.scratch_folder));
    MP_RETURN_IF_ERROR(Write(model, options.threads, *folder));
    const std::string path = folder->StagedPath(kModelFile);
    return Guarded("ONNX Runtime cannot load the model", path.substr(0, path.rfind('/') + 1), [&] {
      Ort::SessionOptions session;
      // As the graph says: fusions and the blocked layout of convolutions change activations by more than 1e-6 of the largest one
      // (up to 1e-5 in mobilenet_v1, 1e-4 behind instance norms), for a gain that the estimators' own time dwarfs.
      session.SetGraphOptimizationLevel(ORT_DISABLE_ALL);
      session.SetExecutionMode(ORT_SEQUENTIAL);
      // One thread, since the bytes of products of matrices depend on how they are divided among threads. Parallel are whole
      // runs.
      session.SetIntraOpNumThreads(1);
      session.SetInterOpNumThreads(1);
      // Memory goes back to the system after each run: batches may differ in size, and the arena is no faster here.
      session.DisableCpuMemArena();
      session.DisableMemPattern();
      session.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
      session_ = Ort::Session(RuntimeEnv(), path.c_str(), session);
      return absl::OkStatus();
    });
  }

  const std::vector<InputSpec>& inputs() const override { return inputs_; }

  absl::StatusOr<RunResult> Run(const Batch& batch) const override {
    if (batch.size() != inputs_.size()) {
      return MakeError(v1::INTERNAL_ERROR, "the batch does not have as many tensors as the model has inputs");
    }
    return Guarded("ONNX Runtime cannot run the model", "", [&]() -> absl::StatusOr<RunResult> {
      auto outputs = std::make_shared<std::vector<Ort::Value>>();
      if (!output_names_.empty()) {
        *outputs = RunSession(batch);
      }
      RunResult result;
      result.tensors.reserve(sources_.size());
      for (const Source& source : sources_) {
        if (source.is_input) {
          const HostTensor& tensor = batch[source.index];
          result.tensors.push_back({tensor.data_type, tensor.dims, tensor.bytes});
          continue;
        }
        MP_ASSIGN_OR_RETURN(TensorView view, View((*outputs)[source.index], output_names_[source.index]));
        result.tensors.push_back(std::move(view));
      }
      result.memory = std::move(outputs);
      return result;
    });
  }

 private:
  // Where a tensor to show comes from: the batch, or the outputs asked of ONNX Runtime.
  struct Source {
    bool is_input = false;
    size_t index = 0;
  };

  absl::Status FindTensors(const Model& model, const std::vector<std::string>& names) {
    std::map<std::string, Source> sources;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      sources[inputs_[i].name] = {true, i};
    }
    std::set<std::string> computed;
    for (const Node& node : model.nodes) {
      computed.insert(node.proto.output().begin(), node.proto.output().end());
    }
    for (const std::string& name : names) {
      if (!sources.contains(name)) {
        if (name.empty() || !computed.contains(name)) {
          return MakeError(v1::INTERNAL_ERROR, "a tensor that the graph neither computes nor is given cannot be shown",
                           {.layer = name});
        }
        sources[name] = {false, output_names_.size()};
        output_names_.push_back(name);
      }
      sources_.push_back(sources[name]);
    }
    return absl::OkStatus();
  }

  // The model with the tensors to show as additional outputs. ONNX Runtime finds their types itself.
  absl::Status Write(const Model& model, int threads, OutputFolder& folder) const {
    Model shown = model;
    std::set<std::string> outputs;
    for (const onnx::ValueInfoProto& output : model.shell.graph().output()) {
      outputs.insert(output.name());
    }
    for (const std::string& name : output_names_) {
      if (outputs.insert(name).second) {
        shown.shell.mutable_graph()->add_output()->set_name(name);
      }
    }
    const ModelFile file = {.model = &shown, .file_name = kModelFile, .external_suffix = ""};
    return folder.AddModels({&file, 1}, {.threads = threads, .externalize_at = kExternalizeBytes});
  }

  std::vector<Ort::Value> RunSession(const Batch& batch) const {
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    std::vector<const char*> names;
    std::vector<Ort::Value> values;
    names.reserve(batch.size());
    values.reserve(batch.size());
    for (size_t i = 0; i < batch.size(); ++i) {
      const HostTensor& tensor = batch[i];
      if (tensor.data_type == 0) {
        continue;  // an optional one that was not given
      }
      names.push_back(inputs_[i].name.c_str());
      // Inputs are only read.
      values.push_back(Ort::Value::CreateTensor(memory, const_cast<uint8_t*>(tensor.bytes.data()), tensor.bytes.size(),
                                                tensor.dims.data(), tensor.dims.size(),
                                                static_cast<ONNXTensorElementDataType>(tensor.data_type)));
    }
    std::vector<const char*> wanted;
    wanted.reserve(output_names_.size());
    for (const std::string& name : output_names_) {
      wanted.push_back(name.c_str());
    }
    // Session::Run is thread-safe, though not const.
    return const_cast<Ort::Session&>(session_).Run(Ort::RunOptions(), names.data(), values.data(), values.size(), wanted.data(),
                                                   wanted.size());
  }

  static absl::StatusOr<TensorView> View(const Ort::Value& value, const std::string& name) {
    if (value.HasValue() && value.IsTensor()) {
      const Ort::TensorTypeAndShapeInfo info = value.GetTensorTypeAndShapeInfo();
      const int data_type = info.GetElementType();  // numbered as in onnx.proto
      const ElementType* type = FindElementType(data_type);
      if (type != nullptr && type->bits > 0) {
        return TensorView{data_type,
                          info.GetShape(),
                          {static_cast<const uint8_t*>(value.GetTensorRawData()), type->RawBytes(info.GetElementCount())}};
      }
    }
    return MakeError(v1::MODEL_UNRUNNABLE, "the tensor holds no numbers, but strings, a sequence, a map or nothing",
                     {.layer = name});
  }

  const std::vector<InputSpec> inputs_;
  std::vector<Source> sources_;            // one per tensor to show
  std::vector<std::string> output_names_;  // asked of ONNX Runtime, each once
  Ort::Session session_{nullptr};
};

}  // namespace

std::vector<InputSpec> InputSpecsOf(const Model& model) {
  std::set<std::string> initializers;
  for (const Tensor& tensor : model.initializers) {
    initializers.insert(tensor.name());
  }
  for (const onnx::SparseTensorProto& tensor : model.sparse_initializers) {
    initializers.insert(tensor.values().name());
  }
  std::vector<InputSpec> specs;
  for (const onnx::ValueInfoProto& input : model.shell.graph().input()) {
    const bool optional = initializers.contains(input.name());
    if (optional && model.shell.ir_version() < kFirstIrWithDefaults) {
      continue;
    }
    const onnx::TypeProto::Tensor& type = input.type().tensor_type();
    InputSpec& spec = specs.emplace_back();
    spec.name = input.name();
    spec.data_type = type.elem_type();
    spec.any_shape = !type.has_shape();
    spec.optional = optional;
    for (const onnx::TensorShapeProto::Dimension& dim : type.shape().dim()) {
      spec.dims.push_back(dim.has_dim_value() && dim.dim_value() >= 0 ? dim.dim_value() : -1);
    }
  }
  return specs;
}

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(const Model& model, const ModelRunnerOptions& options) {
  auto runner = std::make_unique<OrtRunner>(model);
  MP_RETURN_IF_ERROR(runner->Load(model, options));
  return runner;
}

}  // namespace modelpress::engine
