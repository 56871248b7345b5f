// Time and memory of engine::SaveModel or engine::CreatePruneRetrainModel on one model, beside a plain copy of as many bytes.
// Every run has a process of its own, so that its peak memory is its own; the four kinds of run alternate, so that other load on
// the machine meets them alike. Prints JSON.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "engine/base/status.h"
#include "engine/functions/retrain_model.h"
#include "engine/functions/save_model.h"
#include "engine/model/file_set.h"
#include "engine/runtime/load_check.h"
#include "nlohmann/json.hpp"

namespace {

// What fsync does in this process: see __wrap_fsync.
struct Syncing {
  bool skip = false;
  double seconds = 0;
};
Syncing& TheSyncing() {
  static Syncing syncing;
  return syncing;
}

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

// The linker lets every call of fsync come here (--wrap): only so can the engine be timed without it, and its share be told.
extern "C" {
int __real_fsync(int fd);   // NOLINT(bugprone-reserved-identifier,readability-identifier-naming)
int __wrap_fsync(int fd) {  // NOLINT(bugprone-reserved-identifier,readability-identifier-naming)
  if (TheSyncing().skip) {
    return 0;
  }
  const double start = Now();
  const int result = __real_fsync(fd);
  TheSyncing().seconds += Now() - start;
  return result;
}
}

namespace modelpress::engine {
namespace {

using nlohmann::ordered_json;

struct Settings {
  std::string model;
  std::string record;      // SaveModel
  std::string definition;  // CreatePruneRetrainModel
  std::string work_folder;
  int threads = 2;
  int repeats = 5;
};

[[noreturn]] void Die(const std::string& what) {
  std::cerr << "engine_bench: " << what << "\n";
  std::exit(1);  // NOLINT(concurrency-mt-unsafe): one thread
}

// What a function has written.
struct Made {
  std::vector<uint64_t> sizes;
  int64_t layers = 0;  // quantized or pruned
};

absl::StatusOr<Made> Save(const CallContext& context) {
  MP_ASSIGN_OR_RETURN(const SavedModels saved, SaveModel(context, "model.onnx", "record.txt", "out/bench"));
  if (!saved.warnings.empty()) {
    Die("the model is not what the benchmark is about: " + saved.warnings.front());
  }
  Made made{.sizes = {saved.deploy_model.size, saved.fake_quant_model.size, saved.report.size}};
  for (const WrittenFile& file : saved.external_data) {
    made.sizes.push_back(file.size);
  }
  const auto report = ordered_json::parse(saved.report_json);
  made.layers = std::count_if(report["layers"].begin(), report["layers"].end(),
                              [](const ordered_json& layer) { return layer["quantized"].get<bool>(); });
  return made;
}

absl::StatusOr<Made> Prune(const CallContext& context) {
  MP_ASSIGN_OR_RETURN(const RetrainModel pruned, CreatePruneRetrainModel(context, {.model = "model.onnx",
                                                                                   .config_definition = "prune.cfg",
                                                                                   .record_file = "out/record.txt",
                                                                                   .save_path = "out/bench"}));
  Made made{.sizes = {pruned.pruned_model.size, pruned.record_file.size, pruned.rewrite_plan.size, pruned.report.size}};
  for (const WrittenFile& file : pruned.external_data) {
    made.sizes.push_back(file.size);
  }
  return made;
}

// The engine as the service's child process calls it. "seconds" counts from the call to its return; the phases add up to it.
ordered_json RunEngine(const Settings& settings) {
  const double begin = Now();
  InitializeRuntime();
  const double initialized = Now();

  const FileSet files({{"model.onnx", settings.model}, {"record.txt", settings.record}, {"prune.cfg", settings.definition}});
  CallContext context;
  context.files = &files;
  context.output_root = settings.work_folder;
  context.threads = settings.threads;
  std::string stage = "read";
  std::map<std::string, double> phases;
  double stage_start = Now();
  auto enter = [&](const std::string& next) {
    if (next != stage) {
      const double now = Now();
      phases[stage] += now - stage_start;
      stage = next;
      stage_start = now;
    }
  };
  context.progress = [&](const std::string& next, uint64_t, uint64_t) { enter(next); };
  TheSyncing().seconds = 0;
  const double start = Now();
  absl::StatusOr<Made> made = settings.record.empty() ? Prune(context) : Save(context);
  const double seconds = Now() - start;
  enter("end");
  phases[phases.contains("check") ? "check" : "write"] -= TheSyncing().seconds;  // all of them are in the commit at the end
  phases["fsync"] = TheSyncing().seconds;
  if (!made.ok()) {
    Die(made.status().ToString());
  }
  return {{"seconds", seconds},
          {"initialize_seconds", initialized - begin},
          {"phases", phases},
          {"layers", made->layers},
          {"output_sizes", made->sizes}};
}

// The least that any program has to do: reads the input once and writes as many bytes as the engine did, to as many files.
ordered_json RunCopy(const Settings& settings, const std::vector<uint64_t>& sizes, bool sync) {
  std::vector<char> buffer(1 << 20);
  const double start = Now();
  const int in = open(settings.model.c_str(), O_RDONLY | O_CLOEXEC);
  for (size_t i = 0; i < sizes.size(); ++i) {
    const std::string path = settings.work_folder + "/copy" + std::to_string(i);
    const int out = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    if (in < 0 || out < 0) {
      Die("cannot open " + path);
    }
    for (uint64_t left = sizes[i]; left > 0;) {
      if (read(in, buffer.data(), buffer.size()) < 0) {  // at the end of the input the last bytes are written again
        Die("cannot read " + settings.model);
      }
      const ssize_t count = write(out, buffer.data(), std::min<uint64_t>(buffer.size(), left));
      if (count < 0) {
        Die("cannot write " + path);
      }
      left -= count;
    }
    if (sync && __real_fsync(out) != 0) {
      Die("cannot sync " + path);
    }
    close(out);
  }
  close(in);
  return {{"seconds", Now() - start}};
}

// Runs `body` in a child process on an empty work folder; its answer with the child's peak memory.
template <typename Body>
ordered_json InChild(const Settings& settings, Body body) {
  std::filesystem::remove_all(settings.work_folder);
  std::filesystem::create_directories(settings.work_folder);
  const int folder = open(settings.work_folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  syncfs(folder);  // what the run before left to write is not this one's
  close(folder);
  int ends[2];
  if (pipe(ends) != 0) {
    Die("pipe failed");
  }
  const pid_t child = fork();
  if (child < 0) {
    Die("fork failed");
  }
  if (child == 0) {
    const std::string answer = body().dump();
    // Shorter than a pipe's buffer.
    _exit(write(ends[1], answer.data(), answer.size()) == static_cast<ssize_t>(answer.size()) ? 0 : 1);
  }
  close(ends[1]);
  std::string answer;
  char buffer[4096];
  for (ssize_t count; (count = read(ends[0], buffer, sizeof(buffer))) > 0;) {
    answer.append(buffer, count);
  }
  close(ends[0]);
  int status = 0;
  rusage usage{};
  if (wait4(child, &status, 0, &usage) != child || status != 0) {
    Die("a run failed");
  }
  std::filesystem::remove_all(settings.work_folder);
  ordered_json result = ordered_json::parse(answer);
  result["peak_rss_bytes"] = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
  result["cpu_seconds"] = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                          1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  return result;
}

// Reads the input through, so that it is in the page cache for all.
void Warm(const std::string& path) {
  std::vector<char> buffer(1 << 20);
  const int in = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  while (in >= 0 && read(in, buffer.data(), buffer.size()) > 0) {
  }
  close(in);
}

int Main(int argc, char** argv) {
  Settings settings;
  bool engine_only = false;
  CLI::App app("Times engine::SaveModel, or with --definition CreatePruneRetrainModel, beside a plain copy of as many bytes");
  app.add_option("--model", settings.model)->required()->check(CLI::ExistingFile);
  CLI::Option* record = app.add_option("--record", settings.record)->check(CLI::ExistingFile);
  app.add_option("--definition", settings.definition)->check(CLI::ExistingFile)->excludes(record);
  app.add_option("--work_folder", settings.work_folder, "Made, emptied and removed")->required();
  app.add_option("--threads", settings.threads)->check(CLI::PositiveNumber);
  app.add_option("--repeats", settings.repeats)->check(CLI::PositiveNumber);
  app.add_flag("--engine_only", engine_only, "Neither copies nor runs without fsync");
  CLI11_PARSE(app, argc, argv);

  Warm(settings.model);
  ordered_json runs = {{"engine", ordered_json::array()}};
  for (int i = 0; i < settings.repeats; ++i) {
    runs["engine"].push_back(InChild(settings, [&] { return RunEngine(settings); }));
    if (engine_only) {
      continue;
    }
    runs["engine_without_fsync"].push_back(InChild(settings, [&] {
      TheSyncing().skip = true;
      return RunEngine(settings);
    }));
    const auto sizes = runs["engine"].back()["output_sizes"].get<std::vector<uint64_t>>();
    runs["copy"].push_back(InChild(settings, [&] { return RunCopy(settings, sizes, /*sync=*/true); }));
    runs["copy_without_fsync"].push_back(InChild(settings, [&] { return RunCopy(settings, sizes, /*sync=*/false); }));
  }
  const ordered_json result = {
      {"input_bytes", std::filesystem::file_size(settings.model)}, {"threads", settings.threads}, {"runs", runs}};
  std::cout << result.dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace modelpress::engine

int main(int argc, char** argv) { return modelpress::engine::Main(argc, argv); }
