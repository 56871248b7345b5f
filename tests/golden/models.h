// Comparison of written models with the reference's.
#ifndef MODELPRESS_TESTS_GOLDEN_MODELS_H_
#define MODELPRESS_TESTS_GOLDEN_MODELS_H_

#include <algorithm>
#include <string>

#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "onnx/onnx_pb.h"

namespace modelpress::engine {

// A model with the attributes of the device's RNN nodes in order: in the reference it is random.
struct ParsedModel {
  onnx::ModelProto model;
  bool has_device_rnn = false;
};

inline ParsedModel ParseGoldenModel(const std::string& bytes) {
  ParsedModel parsed;
  EXPECT_TRUE(parsed.model.ParseFromString(bytes));
  for (onnx::NodeProto& node : *parsed.model.mutable_graph()->mutable_node()) {
    if (node.op_type() == "BasicLSTMInplaceFillWindowCache" || node.op_type() == "BasicGRUInplaceFillWindowCache") {
      parsed.has_device_rnn = true;
      std::sort(node.mutable_attribute()->begin(), node.mutable_attribute()->end(),
                [](const auto& a, const auto& b) { return a.name() < b.name(); });
    }
  }
  return parsed;
}

inline void ExpectEqualModels(const std::string& expected_bytes, const std::string& actual_bytes) {
  ParsedModel expected = ParseGoldenModel(expected_bytes);
  ParsedModel actual = ParseGoldenModel(actual_bytes);
  std::string difference;
  google::protobuf::util::MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&difference);
  EXPECT_TRUE(differencer.Compare(expected.model, actual.model)) << difference.substr(0, 4000);
  if (!expected.has_device_rnn) {
    EXPECT_TRUE(expected_bytes == actual_bytes) << "the fields are equal, the bytes are not";
  }
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_GOLDEN_MODELS_H_
