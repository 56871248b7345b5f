// What the tests of engine/model share: temporary folders, files, and models built in code.
#ifndef MODELPRESS_TESTS_ENGINE_MODEL_MODEL_TESTING_H_
#define MODELPRESS_TESTS_ENGINE_MODEL_MODEL_TESTING_H_

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/file_set.h"
#include "gtest/gtest.h"
#include "onnx/onnx_pb.h"

namespace modelpress::engine {

// A folder that goes with the test.
class TestFolder {
 public:
  TestFolder() {
    std::string path = (std::filesystem::temp_directory_path() / "model_test_XXXXXX").string();
    path_ = mkdtemp(path.data());
  }
  ~TestFolder() { std::filesystem::remove_all(path_); }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  std::string Path(const std::string& name) const { return (path_ / name).string(); }
  const std::string& string() const { return path_.native(); }
  std::string Write(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return Path(name);
  }
  std::string Read(const std::string& name) const {
    std::ifstream file(path_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Names in the folder, sorted.
  std::vector<std::string> List() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  // All files below the folder, by their relative paths.
  FileSet Files() const {
    std::map<std::string, std::string> paths;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path_)) {
      if (!entry.is_directory()) {
        paths[std::filesystem::relative(entry.path(), path_).string()] = entry.path().string();
      }
    }
    return FileSet(paths);
  }

 private:
  std::filesystem::path path_;
};

// Bytes that differ from place to place.
inline std::string Pattern(size_t size, unsigned seed = 1) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) {
    seed = seed * 1664525U + 1013904223U;
    bytes[i] = static_cast<char>(seed >> 24);
  }
  return bytes;
}

inline onnx::TensorProto MakeTensor(const std::string& name, int data_type, const std::vector<int64_t>& dims) {
  onnx::TensorProto tensor;
  tensor.set_name(name);
  tensor.set_data_type(data_type);
  for (int64_t dim : dims) {
    tensor.add_dims(dim);
  }
  return tensor;
}

inline onnx::TensorProto MakeRawTensor(const std::string& name, size_t floats, unsigned seed = 1) {
  onnx::TensorProto tensor = MakeTensor(name, onnx::TensorProto::FLOAT, {static_cast<int64_t>(floats)});
  tensor.set_raw_data(Pattern(4 * floats, seed));
  return tensor;
}

inline void MakeExternal(onnx::TensorProto& tensor, const std::vector<std::pair<std::string, std::string>>& entries) {
  tensor.clear_raw_data();
  tensor.set_data_location(onnx::TensorProto::EXTERNAL);
  for (const auto& [key, value] : entries) {
    onnx::StringStringEntryProto& entry = *tensor.add_external_data();
    entry.set_key(key);
    entry.set_value(value);
  }
}

// A graph in an attribute of a node in a graph ..., `levels` graphs below `graph`.
inline onnx::GraphProto& AddNested(onnx::GraphProto& graph, int levels) {
  onnx::GraphProto* inner = &graph;
  for (int i = 0; i < levels; ++i) {
    onnx::AttributeProto& attribute = *inner->add_node()->add_attribute();
    attribute.set_name("body");
    attribute.set_type(onnx::AttributeProto::GRAPH);
    inner = attribute.mutable_g();
  }
  return *inner;
}

// A model that has a bit of everything; its large tensors have `elements` elements.
inline onnx::ModelProto MakeModel(int elements) {
  onnx::ModelProto model;
  model.set_ir_version(8);
  model.set_producer_name("test");
  model.set_producer_version("1");
  model.set_domain("d");
  model.set_model_version(-3);
  model.set_doc_string("a model");
  for (const char* domain : {"", "custom"}) {
    onnx::OperatorSetIdProto& opset = *model.add_opset_import();
    opset.set_domain(domain);
    opset.set_version(17);
  }
  onnx::StringStringEntryProto& property = *model.add_metadata_props();
  property.set_key("k");
  property.set_value("v");
  *model.add_training_info()->mutable_algorithm()->add_initializer() = MakeRawTensor("train", 5);
  onnx::FunctionProto& function = *model.add_functions();
  function.set_name("f");
  function.add_node()->set_op_type("Relu");
  *function.add_attribute_proto()->mutable_t() = MakeRawTensor("default", 3);

  onnx::GraphProto& graph = *model.mutable_graph();
  graph.set_name("g");
  graph.set_doc_string("a graph");
  for (auto* info : {graph.add_input(), graph.add_output(), graph.add_value_info()}) {
    info->set_name("x");
    info->mutable_type()->mutable_tensor_type()->set_elem_type(1);
    info->mutable_type()->mutable_tensor_type()->mutable_shape()->add_dim()->set_dim_param("n");
  }
  graph.add_quantization_annotation()->set_tensor_name("x");
  *graph.add_metadata_props() = property;

  onnx::NodeProto& conv = *graph.add_node();
  conv.set_name("conv");
  conv.set_op_type("Conv");
  conv.add_input("x");
  conv.add_input("");
  conv.add_output("y");
  conv.set_doc_string("a node");
  conv.set_domain("ai.onnx");
  onnx::AttributeProto& ints = *conv.add_attribute();
  ints.set_name("pads");
  ints.set_type(onnx::AttributeProto::INTS);
  ints.add_ints(1);
  ints.add_ints(-1);
  onnx::NodeProto& constant = *graph.add_node();
  constant.set_name("constant");
  constant.set_op_type("Constant");
  constant.add_output("c");
  for (int size : {2, elements, 0}) {
    onnx::AttributeProto& value = *constant.add_attribute();
    value.set_name("value" + std::to_string(size));
    value.set_doc_string("comes after t");
    value.set_ref_attr_name("so does this");
    value.set_type(onnx::AttributeProto::TENSOR);
    value.set_f(1.5F);
    *value.mutable_t() = MakeRawTensor("", size, 7);
  }
  *AddNested(graph, 3).add_initializer() = MakeRawTensor("inner", elements);

  for (int i = 0; i < 3; ++i) {
    onnx::TensorProto& raw = *graph.add_initializer() = MakeRawTensor("raw" + std::to_string(i), elements + i, i);
    raw.set_doc_string("after raw_data");
  }
  onnx::TensorProto& floats = *graph.add_initializer() = MakeTensor("floats", onnx::TensorProto::FLOAT, {elements});
  onnx::TensorProto& halves = *graph.add_initializer() = MakeTensor("halves", onnx::TensorProto::FLOAT16, {elements});
  onnx::TensorProto& int32s = *graph.add_initializer() = MakeTensor("int32s", onnx::TensorProto::INT32, {elements});
  onnx::TensorProto& int64s = *graph.add_initializer() = MakeTensor("int64s", onnx::TensorProto::INT64, {elements});
  onnx::TensorProto& doubles = *graph.add_initializer() = MakeTensor("doubles", onnx::TensorProto::DOUBLE, {elements});
  onnx::TensorProto& uint64s = *graph.add_initializer() = MakeTensor("uint64s", onnx::TensorProto::UINT64, {elements});
  onnx::TensorProto& complexes = *graph.add_initializer() = MakeTensor("complexes", onnx::TensorProto::COMPLEX64, {elements});
  onnx::TensorProto& int4s = *graph.add_initializer() = MakeTensor("int4s", onnx::TensorProto::INT4, {2 * elements - 1});
  onnx::TensorProto& strings = *graph.add_initializer() = MakeTensor("strings", onnx::TensorProto::STRING, {2});
  strings.add_string_data("a");
  strings.add_string_data("b");
  *graph.add_initializer() = MakeTensor("scalar", onnx::TensorProto::FLOAT, {});
  graph.mutable_initializer(graph.initializer_size() - 1)->add_float_data(3);
  *graph.add_initializer() = MakeTensor("empty", onnx::TensorProto::FLOAT, {0, 3});
  *graph.add_initializer() = MakeRawTensor("empty_raw", 0);
  for (int i = 0; i < elements; ++i) {
    floats.add_float_data(0.5F * i);
    halves.add_int32_data(i & 0xffff);
    int32s.add_int32_data(i % 2 == 0 ? i : -i);
    int64s.add_int64_data(i - 1000000000000);
    doubles.add_double_data(-0.25 * i);
    uint64s.add_uint64_data(static_cast<uint64_t>(i) << 40);
    complexes.add_float_data(i);
    complexes.add_float_data(-i);
    int4s.add_int32_data(i & 0xff);
  }
  onnx::SparseTensorProto& sparse = *graph.add_sparse_initializer();
  *sparse.mutable_values() = MakeRawTensor("sparse", 1);
  *sparse.mutable_indices() = MakeTensor("", onnx::TensorProto::INT64, {1});
  sparse.mutable_indices()->add_int64_data(4);
  sparse.add_dims(9);
  return model;
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_ENGINE_MODEL_MODEL_TESTING_H_
