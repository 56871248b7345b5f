#include "client/cpp/cli.h"

#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/any.pb.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/client/cpp/test_server.h"
#include "tests/client/cpp/test_util.h"

namespace modelpress::client {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class CliTest : public testing::Test {
 protected:
  int Run(std::vector<std::string> arguments) {
    out_.str("");
    err_.str("");
    arguments.push_back("--target=" + server_.target());
    return RunCli(arguments, {.out = out_, .err = err_}, stop_.get_token());
  }
  json Json() const { return json::parse(out_.str(), nullptr, false); }
  std::vector<std::string> SaveModel(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {"save_model", "--modfied_onnx_file=" + model_, "--record_file=" + record_,
                                          "--save_path=" + (folder_ / "out/x")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }

  TestServer server_;
  TempFolder folder_;
  std::string model_ = WriteFile(folder_ / "m.onnx", "");
  std::string record_ = WriteFile(folder_ / "r.txt", "record {}");
  std::stop_source stop_;
  std::ostringstream out_;
  std::ostringstream err_;
};

TEST_F(CliTest, PrintsThePathsOfTheWrittenFilesAndNothingElse) {
  ASSERT_EQ(Run(SaveModel()), 0) << err_.str();
  std::string prefix = folder_ / "out/x";
  EXPECT_EQ(out_.str(), prefix + "_deploy_model.onnx\n" + prefix + "_fake_quant_model.onnx\n" + prefix + "_report.json\n");
  EXPECT_THAT(err_.str(), HasSubstr("upload m.onnx (0 B)\n"));
  EXPECT_THAT(err_.str(), HasSubstr("modelpress: warning: layer 'fc' stays float\n"));
  ASSERT_EQ(Run(SaveModel({"--quiet"})), 0);
  EXPECT_EQ(err_.str(), "");
  EXPECT_EQ(Run({"save_model", "--modified_onnx_file", model_, "--record_file", record_, "--save_path", folder_ / "y", "-q"}), 0);
  EXPECT_EQ(Run({"save_prune_retrain_model", "--model", model_, "--save_path", folder_ / "z", "-q"}), 0);
}

TEST_F(CliTest, PassesTheFlagsOn) {
  ASSERT_EQ(Run(SaveModel({"--workspace=kept", "--request_id=8a6e0804-2bd0-4672-b79d-d97027f9071a", "--reference_defects",
                           "--execution_timeout=1.5m"})),
            0);
  const v1::CallOptions& options = server_.state().save_requests.at(0).options();
  EXPECT_EQ(options.request_id(), "8a6e0804-2bd0-4672-b79d-d97027f9071a");
  EXPECT_TRUE(options.reference_defects());
  EXPECT_FALSE(options.validate_only());
  EXPECT_EQ(options.execution_timeout().seconds(), 90);
  ASSERT_EQ(Run(SaveModel({"--validate_only"})), 0);
  EXPECT_TRUE(server_.state().save_requests.at(1).options().validate_only());
  EXPECT_EQ(out_.str(), "{\"validate_only\": true}\n");
  out_.str("");
  ASSERT_EQ(Run(SaveModel({"--validate_only", "--output=json"})), 0);
  EXPECT_EQ(Json()["report"]["validate_only"], true);
}

TEST_F(CliTest, TakesVariablesOfTheEnvironment) {
  for (const auto& [value, expected] : std::map<std::string, bool>{{"1", true}, {"0", false}, {"", false}}) {
    setenv("MODELPRESS_REFERENCE_DEFECTS", value.c_str(), 1);
    ASSERT_EQ(Run(SaveModel()), 0) << value << err_.str();
    EXPECT_EQ(server_.state().save_requests.back().options().reference_defects(), expected) << value;
  }
  unsetenv("MODELPRESS_REFERENCE_DEFECTS");
  setenv("MODELPRESS_TARGET", server_.target().c_str(), 1);
  EXPECT_EQ(RunCli({"workspace", "list"}, {.out = out_, .err = err_}, {}), 0);
  unsetenv("MODELPRESS_TARGET");
}

TEST_F(CliTest, JsonIsOneObject) {
  ASSERT_EQ(Run(SaveModel({"--output=json", "--workspace=kept"})), 0);
  json result = Json();
  EXPECT_EQ(result["files"].size(), 3);
  EXPECT_EQ(result["workspace"], "workspaces/kept");
  EXPECT_EQ(result["operation"]["metadata"]["state"], "SUCCEEDED");
  EXPECT_EQ(result["warnings"][0], "layer 'fc' stays float");
}

TEST_F(CliTest, ErrorsNameWhatAndWhere) {
  server_.state().operation_error =
      TestServer::Error(v1::RECORD_VALUE, 3, "record/r.txt:3:5: layer 'fc': scale_d must be positive",
                        {{"file", "record/r.txt"}, {"line", "3"}, {"column", "5"}, {"layer", "fc"}});
  EXPECT_EQ(Run(SaveModel({"-q"})), 65);
  EXPECT_EQ(out_.str(), "");
  EXPECT_EQ(err_.str(), "modelpress: " + record_ + ":3:5: layer 'fc': scale_d must be positive [RECORD_VALUE]\n");
  EXPECT_EQ(Run(SaveModel({"-q", "--output", "json"})), 65);
  json error = Json()["error"];
  EXPECT_EQ(error["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(error["reason"], "RECORD_VALUE");
  EXPECT_EQ(error["file"], record_);
  EXPECT_EQ(error["line"], 3);
  EXPECT_EQ(error["column"], 5);
  EXPECT_EQ(error["layer"], "fc");
}

TEST_F(CliTest, WrongCommandLinesAreUsageErrors) {
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{{},
                                                                                         {"nonsense"},
                                                                                         {"save_model"},
                                                                                         {"workspace"},
                                                                                         {"workspace", "get"},
                                                                                         SaveModel({"--no-wait"}),
                                                                                         SaveModel({"--request_id=x"}),
                                                                                         SaveModel({"--execution_timeout=soon"}),
                                                                                         SaveModel({"--execution_timeout=-1s"}),
                                                                                         SaveModel({"--output=xml"})}) {
    EXPECT_EQ(Run(arguments), 64) << testing::PrintToString(arguments);
    EXPECT_THAT(err_.str(), HasSubstr("[USAGE]"));
    EXPECT_EQ(out_.str(), "");
  }
  EXPECT_EQ(Run({"nonsense", "--output=json"}), 64);
  EXPECT_EQ(Json()["error"]["reason"], "USAGE");
  EXPECT_EQ(Run({"--help"}), 0);
  EXPECT_THAT(out_.str(), HasSubstr("Exit codes: 0 ok; 64"));
}

TEST_F(CliTest, NoServerIs69AndMissingFilesAre66) {
  EXPECT_EQ(Run({"file", "get", "workspaces/w/files/missing"}), 66);
  EXPECT_EQ(Run({"file", "upload", folder_ / "missing", "workspaces/w/files/f"}), 66);
  EXPECT_EQ(RunCli({"workspace", "list", "--target=unix:" + (folder_ / "none")}, {.out = out_, .err = err_}, {}), 69);
}

TEST_F(CliTest, ManagesWorkspacesAndFiles) {
  EXPECT_EQ(Run({"workspace", "create", "mine"}), 0);
  EXPECT_EQ(out_.str(), "workspaces/mine\n");
  EXPECT_EQ(Run({"workspace", "create", "mine"}), 73);
  EXPECT_EQ(Run({"workspace", "get", "mine", "--output=json"}), 0);
  EXPECT_EQ(Json()["name"], "workspaces/mine");
  EXPECT_EQ(Run({"file", "upload", record_, "workspaces/mine/files/r", "-q"}), 0);
  EXPECT_EQ(Run({"file", "list", "mine"}), 0);
  EXPECT_THAT(out_.str(), HasSubstr("workspaces/mine/files/r\t9\t"));
  EXPECT_EQ(Run({"file", "download", "workspaces/mine/files/r", folder_ / "copy", "-q"}), 0);
  EXPECT_EQ(out_.str(), (folder_ / "copy") + "\n");
  EXPECT_EQ(ReadFile(folder_ / "copy"), "record {}");
  EXPECT_EQ(Run({"file", "download", "workspaces/mine/files/r", folder_.path(), "-q"}), 0);
  EXPECT_EQ(ReadFile(folder_ / "r"), "record {}");
  EXPECT_EQ(Run({"file", "download", "workspaces/mine/files/r", folder_ / "no/folder", "-q"}), 66);
  EXPECT_EQ(Run({"file", "delete", "workspaces/mine/files/r"}), 0);
  EXPECT_EQ(Run({"workspace", "list", "--output=json"}), 0);
  EXPECT_EQ(Json()["workspaces"].size(), 1);
  EXPECT_EQ(Run({"workspace", "delete", "workspaces/mine"}), 0);
  EXPECT_EQ(Run({"workspace", "get", "mine"}), 66);
}

TEST_F(CliTest, ManagesOperations) {
  server_.state().operation_hangs = true;
  ASSERT_EQ(Run(SaveModel({"--workspace=kept", "--no-wait", "-q"})), 0) << err_.str();
  std::string name = out_.str().substr(0, out_.str().find('\n'));
  EXPECT_TRUE(name.starts_with("operations/"));
  EXPECT_EQ(Run({"operation", "get", name}), 0);
  EXPECT_EQ(out_.str(), name + "\tPENDING\tSaveModel\tworkspaces/kept\n");
  EXPECT_EQ(Run({"operation", "wait", name, "--timeout=0.01", "-q"}), 75);
  EXPECT_EQ(Run({"operation", "list"}), 0);
  EXPECT_THAT(out_.str(), HasSubstr("RUNNING"));
  EXPECT_EQ(Run({"operation", "cancel", name.substr(11)}), 0);
  EXPECT_EQ(Run({"operation", "wait", name, "-q"}), 130);
  EXPECT_EQ(Run({"operation", "delete", name}), 0);
  EXPECT_EQ(Run({"operation", "get", name}), 66);
}

TEST_F(CliTest, InterruptedIs130) {
  stop_.request_stop();
  EXPECT_EQ(Run(SaveModel({"-q"})), 130);
  EXPECT_THAT(server_.state().workspaces, testing::IsEmpty());
}

TEST_F(CliTest, PostTrainingCommandsPassTheirParametersOn) {
  const std::string cfg = WriteFile(folder_ / "s.cfg", "batch_num: 1");
  const std::string manifest = WriteFile(folder_ / "modules.json", "{}");
  const std::string data = WriteFile(folder_ / "x.npz", "x");
  const std::string config = folder_ / "c.json";
  TestServer::State& state = server_.state();
  ASSERT_EQ(Run({"create_quant_config", "--config_file=" + config, "--model", model_, "--skip_layers=conv1,fc", "--skip-layers",
                 "conv2", "--batch_num=4", "--no-activation_offset", "--module-manifest", manifest, "--kv_cache",
                 "--kv_cache_layers=k,v", "-q"}),
            0)
      << err_.str();
  EXPECT_EQ(out_.str(), config + "\n");
  EXPECT_THAT(state.config_request.skip_layers(), testing::ElementsAre("conv1", "fc", "conv2"));
  EXPECT_EQ(state.config_request.batch_num(), 4);
  EXPECT_TRUE(state.config_request.has_activation_offset());
  EXPECT_FALSE(state.config_request.activation_offset());
  EXPECT_TRUE(state.config_request.kv_cache());
  EXPECT_THAT(state.config_request.kv_cache_layers(), testing::ElementsAre("k", "v"));
  for (const char* name : {"--config_defination=", "--config_definition=", "--config-definition="}) {
    ASSERT_EQ(Run({"create_quant_config", "--config-file=" + config, "--model", model_, name + cfg, "-q"}), 0) << err_.str();
    EXPECT_EQ(state.config_request.config_definition(), "config_definition/s.cfg");
    EXPECT_FALSE(state.config_request.has_activation_offset());
  }

  ASSERT_EQ(Run({"quantize_preprocess", "--config_file", config, "--record_file", record_, "--model", model_,
                 "--calibration-data", data, "--batch_size=2", "-q"}),
            0)
      << err_.str();
  EXPECT_EQ(state.preprocess_request.calibration_data().batch_size(), 2);

  ASSERT_EQ(Run({"quantize_model", "--config_file", config, "--modfied_onnx_file", folder_ / "mod.onnx", "--record_file", record_,
                 "--model", model_, "--input_names=a,b", "--output_names", "y", "--dynamic_axes=a:0=batch,2",
                 "--dynamic_axes=x:0:1=w", "--input_data", data, "--reference_defects", "-q"}),
            0)
      << err_.str();
  const v1::QuantizeModelRequest& quantize = state.quantize_request;
  EXPECT_THAT(quantize.input_names(), testing::ElementsAre("a", "b"));
  EXPECT_EQ(quantize.dynamic_axes().at("a").labels().at(0), "batch");
  EXPECT_EQ(quantize.dynamic_axes().at("a").labels().at(2), "");
  EXPECT_EQ(quantize.dynamic_axes().at("x:0").labels().at(1), "w");
  EXPECT_TRUE(quantize.has_sample_data());
  EXPECT_FALSE(quantize.has_calibration_data());
  EXPECT_FALSE(quantize.has_activation_offset());
  EXPECT_TRUE(quantize.options().reference_defects());

  ASSERT_EQ(Run({"calibrate", "--config_file", config, "--modfied_onnx_file", model_, "--record_file", record_, "--model", model_,
                 "--calibration_data", data, "-q"}),
            0)
      << err_.str();
  EXPECT_EQ(state.calibrate_request.model(), "model/m.onnx");

  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {"create_quant_config", "--model", model_},
           {"create_quant_config", "--config_file", config, "--model", model_, "--batch_num=-1"},
           {"quantize_preprocess", "--config_file", config, "--record_file", record_, "--model", model_},
           {"quantize_model", "--model", model_, "--dynamic_axes=a"},
           {"quantize_model", "--model", model_, "--dynamic_axes=a:x"},
           {"quantize_model", "--model", model_, "--dynamic_axes=a:-1"},
           {"quantize_model", "--model", model_, "--batch_size=2"},
           {"quantize", model_}}) {
    EXPECT_EQ(Run(wrong), 64) << testing::PrintToString(wrong);
  }
}

TEST_F(CliTest, QuantizeDoesAllInOne) {
  const std::string data = WriteFile(folder_ / "x.npz", "x");
  server_.state().report = R"({"sizes": {"model_bytes": 4000000, "deploy_bytes": 1000000}, "worst_first": ["fc", "conv1"],
      "layers": [{"name": "fc", "error": {"sqnr_db": 20.25}}, {"name": "conv1"}], "outputs_error": [{"name": "y", "sqnr_db": 30}]})";
  ASSERT_EQ(Run({"quantize", model_, "--calibration-data=" + data, "-o", folder_ / "out/"}), 0) << err_.str();
  const std::string prefix = folder_ / "out/m";
  EXPECT_THAT(out_.str(), HasSubstr(prefix + "_deploy_model.onnx\n"));
  EXPECT_THAT(err_.str(), HasSubstr("size: 4.0 MB -> 1.0 MB (25 %)\n"));
  EXPECT_THAT(err_.str(), HasSubstr("output y: SQNR 30.0 dB\n"));
  EXPECT_THAT(err_.str(), HasSubstr("largest errors: fc SQNR 20.2 dB, conv1\n"));
  EXPECT_FALSE(server_.state().quantize_request.has_activation_offset());
  // Any report will do, and none is told where only results are wanted.
  for (const char* report : {"", "[]", R"({"sizes": 1, "worst_first": {}, "layers": [1], "outputs_error": "x"})"}) {
    server_.state().report = report;
    EXPECT_EQ(Run({"quantize", model_, "--calibration-data=" + data, "-o", folder_ / "out"}), 0);
    EXPECT_THAT(out_.str(), HasSubstr(prefix + "_report.json\n"));
  }
  ASSERT_EQ(Run({"quantize", model_, "--calibration-data=" + data, "-o", folder_ / "out/name", "--no-activation-offset", "-q"}),
            0);
  EXPECT_THAT(out_.str(), HasSubstr(folder_ / "out/name_deploy_model.onnx\n"));
  EXPECT_FALSE(server_.state().quantize_request.activation_offset());
  EXPECT_EQ(err_.str(), "");
}

TEST_F(CliTest, RetrainingCommandsPassTheirParametersOn) {
  const std::string cfg = WriteFile(folder_ / "s.cfg", "batch_num: 1");
  const std::string config = WriteFile(folder_ / "c.json", "{}");
  const std::string weights = WriteFile(folder_ / "w.safetensors", "w");
  const std::string manifest = WriteFile(folder_ / "modules.json", "{}");
  const std::string out = folder_ / "out/m";
  google::protobuf::Any& seen = server_.state().retrain_request;
  for (const char* compressed : {"prune", "compressed"}) {
    const std::string name = absl::StrCat(compressed, "_retrain_model");
    ASSERT_EQ(Run({"create_" + name, "--model", model_, "--config_defination=" + cfg, "--record_file", folder_ / "r.txt",
                   "--save_path", out, "--extended", "--rank-by-all-producers", "--module_manifest", manifest, "-q"}),
              0)
        << err_.str();
    EXPECT_EQ(out_.str(), absl::StrCat(folder_ / "r.txt", "\n", out, "_rewrite_plan.json\n", out, "_pruned_model.onnx\n", out,
                                       "_report.json\n"));
    ASSERT_EQ(Run({"restore_" + name, "--model", model_, "--config-definition=" + cfg, "--record-file", record_, "--save-path",
                   out, "--weights", weights, "--state_dict_name=net", "--plan_only", "-q"}),
              0)
        << err_.str();
    EXPECT_EQ(out_.str(), absl::StrCat(out, "_rewrite_plan.json\n", out, "_report.json\n"));
  }
  v1::RestoreCompressedRetrainModelRequest restore;
  ASSERT_TRUE(seen.UnpackTo(&restore));
  EXPECT_EQ(restore.weights(), "weights/w.safetensors");
  EXPECT_EQ(restore.state_dict_name(), "net");
  ASSERT_EQ(Run({"create_prune_retrain_model", "--model", model_, "--config_definition", cfg, "--record_file", folder_ / "r.txt",
                 "--save_path", out, "--rank_by_all_producers", "-q"}),
            0);
  v1::CreatePruneRetrainModelRequest create;
  ASSERT_TRUE(seen.UnpackTo(&create));
  EXPECT_TRUE(create.prune_options().rank_by_all_producers());
  EXPECT_FALSE(create.prune_options().extended());
  EXPECT_FALSE(create.plan_only());

  ASSERT_EQ(Run({"auto_channel_prune_search", "--model", model_, "--config", cfg, "--sensitivities", weights, "--output_cfg",
                 folder_ / "found.cfg", "-q"}),
            0)
      << err_.str();
  EXPECT_EQ(out_.str(), (folder_ / "found.cfg") + "\n");
  ASSERT_EQ(Run({"create_quant_retrain_config", "--config_file", folder_ / "q.json", "--model", model_, "-q"}), 0) << err_.str();
  ASSERT_EQ(Run({"create_quant_retrain_model", "--config_file", config, "--model", model_, "--record_file", folder_ / "q.txt",
                 "--save_path", out, "-q"}),
            0)
      << err_.str();
  ASSERT_EQ(Run({"restore_quant_retrain_model", "--config_file", config, "--model", model_, "--record_file", folder_ / "q.txt",
                 "--save_path", out, "--weights", weights, "-q"}),
            0)
      << err_.str();
  ASSERT_EQ(Run({"save_compressed_retrain_model", "--model", model_, "--record_file", record_, "--save_path", out, "-q"}), 0)
      << err_.str();
  ASSERT_EQ(Run({"save_quant_retrain_model", "--config_file", config, "--model", model_, "--record_file", record_, "--save_path",
                 out, "--input_names=a,b", "--dynamic_axes=a:0=n", "--rewrite_plan", manifest, "-q"}),
            0)
      << err_.str();
  v1::SaveQuantRetrainModelRequest save;
  ASSERT_TRUE(seen.UnpackTo(&save));
  EXPECT_THAT(save.input_names(), testing::ElementsAre("a", "b"));
  EXPECT_EQ(save.dynamic_axes().at("a").labels().at(0), "n");
  EXPECT_EQ(save.rewrite_plan(), "rewrite_plan/modules.json");

  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {"create_prune_retrain_model", "--model", model_, "--record_file", record_, "--save_path", out},
           {"restore_prune_retrain_model", "--model", model_, "--config_defination", cfg, "--save_path", out},
           {"auto_channel_prune_search", "--model", model_, "--config", cfg, "--output_cfg", out},
           {"create_quant_retrain_config", "--model", model_},
           {"save_quant_retrain_model", "--model", model_, "--record_file", record_, "--save_path", out}}) {
    EXPECT_EQ(Run(wrong), 64) << testing::PrintToString(wrong);
  }
}

}  // namespace
}  // namespace modelpress::client
