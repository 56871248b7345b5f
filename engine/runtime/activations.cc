#include "engine/runtime/activations.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/checkpoint.pb.h"
#include "engine/base/disk_space.h"
#include "engine/base/status.h"
#include "engine/runtime/floats.h"
#include "engine/runtime/spill.h"

namespace modelpress::engine {
namespace {

// Consumers with more state than this are not saved: it is held in memory up to three times for a moment.
constexpr uint64_t kMaxStateBytes = 256 << 20;
// Saving takes at most this share of the time.
constexpr double kSavingShare = 0.02;

// A batch and what the model made of it.
struct Shown {
  Batch batch;
  absl::StatusOr<RunResult> result = absl::UnknownError("not run");
  double seconds = 0;
};

// Runs the batches in order, several at a time.
class Running {
 public:
  Running(const ModelRunner& runner, CalibrationData& data, const CollectOptions& options)
      : runner_(runner), data_(data), options_(options) {}

  absl::Status Rewind() {
    ready_.clear();
    unread_ = data_.batch_count();
    return data_.Rewind();
  }

  // Passes over batches that need not be run.
  absl::Status Skip(int64_t batches) {
    for (int64_t i = 0; i < batches; ++i, --unread_) {
      MP_RETURN_IF_ERROR(data_.Next().status());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Shown>> Next() {
    if (ready_.empty()) {
      MP_RETURN_IF_ERROR(RunMore());
    }
    std::unique_ptr<Shown> shown = std::move(ready_.front());
    ready_.pop_front();
    MP_RETURN_IF_ERROR(shown->result.status());
    if (!bytes_.has_value()) {
      bytes_ = 0;
      for (const TensorView& tensor : shown->result->tensors) {
        *bytes_ += tensor.bytes.size();
      }
    }
    return shown;
  }

  double seconds() const { return seconds_; }
  // How many batches are run at the same time.
  int64_t width() const {
    if (!bytes_.has_value()) {
      return 1;  // how much a batch takes is not known yet
    }
    const uint64_t fitting = options_.max_bytes_in_flight / std::max<uint64_t>(*bytes_, 1);
    return static_cast<int64_t>(std::clamp<uint64_t>(fitting, 1, static_cast<uint64_t>(std::max(options_.threads, 1))));
  }

 private:
  absl::Status RunMore() {
    const int64_t count = std::min(width(), unread_);
    for (int64_t i = 0; i < count; ++i) {
      auto shown = std::make_unique<Shown>();
      MP_ASSIGN_OR_RETURN(shown->batch, data_.Next());
      ready_.push_back(std::move(shown));
      --unread_;
    }
    auto run = [this](Shown& shown) {
      const double start = options_.clock();
      shown.result = runner_.Run(shown.batch);
      shown.seconds = options_.clock() - start;
    };
    {
      std::vector<std::jthread> threads;
      threads.reserve(count - 1);
      for (int64_t i = 1; i < count; ++i) {
        threads.emplace_back(run, std::ref(*ready_[i]));
      }
      run(*ready_[0]);
    }
    for (const std::unique_ptr<Shown>& shown : ready_) {
      seconds_ += shown->seconds;
    }
    return absl::OkStatus();
  }

  const ModelRunner& runner_;
  CalibrationData& data_;
  const CollectOptions& options_;
  std::deque<std::unique_ptr<Shown>> ready_;
  int64_t unread_ = 0;
  std::optional<uint64_t> bytes_;  // that the first batch's tensors take
  double seconds_ = 0;
};

class Collector {
 public:
  Collector(const ModelRunner& runner, CalibrationData& data, absl::Span<const Tap> taps,
            absl::Span<ActivationConsumer* const> consumers, const CollectOptions& options)
      : data_(data), taps_(taps), consumers_(consumers), options_(options), running_(runner, data, options) {}

  absl::StatusOr<CollectSummary> Collect() {
    next_save_ = options_.checkpoint.is_kept() ? options_.clock() + options_.seconds_between_checkpoints : 0;
    int64_t batch = Resume();
    while (FindActive()) {
      MP_RETURN_IF_ERROR(Pass(batch));
      ++summary_.passes;
      batch = 0;
      Save(0);
    }
    summary_.inference_seconds = running_.seconds();
    return std::move(summary_);
  }

 private:
  // Elements of a tensor of the present batch as float32.
  struct Values {
    absl::Span<const float> all;
    int64_t steps = 0;           // of axis 0
    std::vector<float> widened;  // where the tensor is float16
    std::vector<uint8_t> read;   // where it comes from the spill
  };

  bool FindActive() {
    active_.clear();
    for (size_t i = 0; i < consumers_.size(); ++i) {
      if (consumers_[i]->wants_pass()) {
        active_.push_back(i);
      }
    }
    return !active_.empty();
  }

  // From batch `first` on.
  absl::Status Pass(int64_t first) {
    const int64_t batches = data_.batch_count();
    const bool is_first = summary_.passes == 0 && first == 0;
    const bool from_spill = spill_ != nullptr;
    summary_.spilled = summary_.spilled || from_spill;
    if (is_first) {
      StartSpill();
    }
    if (!from_spill && kept_ == nullptr) {
      MP_RETURN_IF_ERROR(running_.Rewind());
      MP_RETURN_IF_ERROR(running_.Skip(first));
    }
    for (int64_t b = first; b < batches; ++b) {
      if (from_spill) {
        MP_RETURN_IF_ERROR(
            Show([&](size_t position, Values& values) { return spill_->Read(static_cast<size_t>(b), position, values.read); }));
      } else {
        std::unique_ptr<Shown> shown = std::move(kept_);
        if (shown == nullptr) {
          MP_ASSIGN_OR_RETURN(shown, running_.Next());
        }
        MP_RETURN_IF_ERROR(FindTensors(shown->result->tensors.size()));
        if (is_first) {
          Spill(*shown, b + 1);
        }
        MP_RETURN_IF_ERROR(Show(
            [&](size_t position, Values&) -> absl::StatusOr<TensorView> { return shown->result->tensors[tensors_[position]]; }));
        if (batches == 1) {
          kept_ = std::move(shown);
        }
      }
      Report(b + 1);
      if (b + 1 < batches && options_.checkpoint.is_kept() && options_.clock() >= next_save_) {
        Save(b + 1);
      }
    }
    for (const size_t i : active_) {
      MP_RETURN_IF_ERROR(AtPlace(consumers_[i]->EndPass(), {.layer = taps_[i].layer}));
    }
    return absl::OkStatus();
  }

  // `batches`: shown of the present pass.
  void Report(int64_t batches) {
    if (options_.progress) {
      options_.progress(static_cast<uint64_t>(summary_.passes * data_.batch_count() + batches),
                        static_cast<uint64_t>((summary_.passes + 1) * data_.batch_count()));
    }
  }

  // ---- Checkpoints.

  void Save(int64_t batches) {
    if (!options_.checkpoint.is_kept()) {
      return;
    }
    const double start = options_.clock();
    state::Collection state;
    state.set_passes(summary_.passes);
    state.set_batches(batches);
    uint64_t bytes = 0;
    for (const ActivationConsumer* consumer : consumers_) {
      bytes += state.add_consumers()->assign(consumer->Save()).size();
      if (bytes > kMaxStateBytes) {
        break;
      }
    }
    if (bytes <= kMaxStateBytes) {
      options_.checkpoint.Save(state);
    } else if (!is_told_) {
      is_told_ = true;
      options_.checkpoint.log(absl::StrCat("checkpoint ", options_.checkpoint.key, " is not saved: it takes more than ",
                                           kMaxStateBytes >> 20, " MiB"));
    }
    const double end = options_.clock();
    next_save_ = end + std::max(options_.seconds_between_checkpoints, (end - start) / kSavingShare);
  }

  // Returns the batch to begin with.
  int64_t Resume() {
    const auto state = options_.checkpoint.Load<state::Collection>();
    if (!state.has_value()) {
      return 0;
    }
    if (state->passes() < 0 || state->batches() < 0 || state->batches() >= data_.batch_count() ||
        (state->passes() == 0 && state->batches() == 0) || !LoadConsumers(*state)) {
      options_.checkpoint.Ignore();
      return 0;
    }
    summary_.passes = state->passes();
    summary_.choice = "the model runs again in every pass: the activations of an earlier attempt are gone";
    options_.checkpoint.log(FindActive() ? absl::StrCat("resumed ", options_.checkpoint.key, " at batch ", state->batches() + 1,
                                                        " of ", data_.batch_count(), " of pass ", state->passes() + 1,
                                                        " from an earlier attempt's checkpoint")
                                         : absl::StrCat("resumed ", options_.checkpoint.key, " after its last pass, pass ",
                                                        state->passes(), ", from an earlier attempt's checkpoint"));
    Report(state->batches());
    return state->batches();
  }

  bool LoadConsumers(const state::Collection& state) {
    if (state.consumers_size() != static_cast<int>(consumers_.size())) {
      return false;
    }
    std::vector<std::string> before;
    before.reserve(consumers_.size());
    for (size_t i = 0; i < consumers_.size(); ++i) {
      before.push_back(consumers_[i]->Save());
      if (!consumers_[i]->Load(state.consumers(static_cast<int>(i)))) {
        for (size_t loaded = 0; loaded < i; ++loaded) {
          consumers_[loaded]->Load(before[loaded]);
        }
        return false;
      }
    }
    return true;
  }

  // The tensors that taps refer to, each once.
  absl::Status FindTensors(size_t count) {
    if (!tensors_.empty()) {
      return absl::OkStatus();
    }
    for (const Tap& tap : taps_) {
      for (const Tap::Part& part : tap.parts) {
        if (part.tensor < 0 || static_cast<size_t>(part.tensor) >= count) {
          return MakeError(v1::INTERNAL_ERROR, "a tap refers to a tensor that is not shown", {.layer = tap.layer});
        }
        positions_.emplace(part.tensor, 0);
      }
    }
    for (auto& [tensor, position] : positions_) {
      position = tensors_.size();
      tensors_.push_back(static_cast<size_t>(tensor));
    }
    return absl::OkStatus();
  }

  // Gives the active consumers their values. `get` returns the view of a tensor by its position in tensors_.
  template <typename Get>
  absl::Status Show(Get get) {
    std::map<size_t, Values> present;
    for (const size_t i : active_) {
      const Tap& tap = taps_[i];
      std::vector<absl::Span<const float>> parts;
      parts.reserve(tap.parts.size());
      for (const Tap::Part& part : tap.parts) {
        const size_t position = positions_.at(part.tensor);
        const auto [found, is_new] = present.try_emplace(position);
        Values& values = found->second;
        if (is_new) {
          MP_ASSIGN_OR_RETURN(const TensorView view, get(position, values));
          const absl::StatusOr<absl::Span<const float>> floats = AsFloats(view, values.widened);
          MP_RETURN_IF_ERROR(AtPlace(floats.status(), {.layer = tap.layer}));
          values.all = *floats;
          values.steps = view.dims.empty() ? 0 : view.dims[0];
        }
        const size_t dropped = part.drops_last_step && values.steps > 0 ? values.all.size() / values.steps : 0;
        parts.push_back(values.all.first(values.all.size() - dropped));
      }
      MP_RETURN_IF_ERROR(AtPlace(consumers_[i]->Add(parts), {.layer = tap.layer}));
    }
    return absl::OkStatus();
  }

  // ---- The spill: written in the first pass, as long as it pays.

  void StartSpill() {
    if (data_.batch_count() == 1) {
      summary_.choice = "the activations of the only batch stay in memory";
      return;
    }
    measure_.all_batches = data_.batch_count();
    measure_.allowed_bytes = std::min(options_.max_spill_bytes, SpareSpace(options_.scratch_folder));
    absl::StatusOr<std::unique_ptr<SpillFile>> file = SpillFile::Create(options_.scratch_folder);
    if (file.ok()) {
      spill_ = *std::move(file);
    } else {
      summary_.choice = absl::StrCat("the model runs again in every pass: ", file.status().message());
    }
  }

  // Adds the tensors of the batch, number `batches` from 1, to the spill, or gives the spill up.
  void Spill(const Shown& shown, int64_t batches) {
    if (spill_ == nullptr) {
      return;
    }
    std::vector<TensorView> tensors;
    tensors.reserve(tensors_.size());
    uint64_t bytes = 0;
    for (const size_t tensor : tensors_) {
      tensors.push_back(shown.result->tensors[tensor]);
      bytes += tensors.back().bytes.size();
    }
    measure_.batches = batches;
    measure_.bytes += bytes;
    measure_.run_seconds += shown.seconds / static_cast<double>(std::min(running_.width(), measure_.all_batches));
    SpillChoice choice = ChooseSpill(measure_);  // before anything is written: whether there is space
    if (choice.pays) {
      choice = Write(tensors);
    }
    summary_.choice = std::move(choice.words);
    if (!choice.pays) {
      spill_ = nullptr;
    }
    summary_.spilled_bytes = spill_ == nullptr ? 0 : spill_->size();
  }

  SpillChoice Write(absl::Span<const TensorView> tensors) {
    const double start = options_.clock();
    const absl::Status written = spill_->Append(tensors);
    measure_.write_seconds += options_.clock() - start;
    if (!written.ok()) {
      return {false, absl::StrCat("the model runs again in every pass: ", written.message())};
    }
    if (measure_.batches == 1) {
      const double read_start = options_.clock();
      std::vector<uint8_t> memory;
      for (size_t i = 0; i < tensors.size(); ++i) {
        if (const auto view = spill_->Read(0, i, memory); !view.ok()) {
          return {false, absl::StrCat("the model runs again in every pass: ", view.status().message())};
        }
      }
      measure_.read_seconds = options_.clock() - read_start;
      measure_.read_bytes = spill_->size();
    }
    return ChooseSpill(measure_);
  }

  CalibrationData& data_;
  const absl::Span<const Tap> taps_;
  const absl::Span<ActivationConsumer* const> consumers_;
  const CollectOptions& options_;
  Running running_;
  CollectSummary summary_;
  std::vector<size_t> active_;        // consumers that want the present pass
  std::vector<size_t> tensors_;       // that taps refer to, of the runner's
  std::map<int, size_t> positions_;   // the runner's index -> index into tensors_
  std::unique_ptr<SpillFile> spill_;  // null: given up, or not wanted
  SpillMeasure measure_;
  std::unique_ptr<Shown> kept_;  // the only batch
  double next_save_ = 0;         // when the next checkpoint within a pass is due
  bool is_told_ = false;         // that checkpoints are too large
};

}  // namespace

double SteadySeconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

absl::StatusOr<CollectSummary> CollectActivations(const ModelRunner& runner, CalibrationData& data, absl::Span<const Tap> taps,
                                                  absl::Span<ActivationConsumer* const> consumers,
                                                  const CollectOptions& options) {
  if (taps.size() != consumers.size()) {
    return MakeError(v1::INTERNAL_ERROR, "there are not as many taps as consumers of activations");
  }
  return Collector(runner, data, taps, consumers, options).Collect();
}

}  // namespace modelpress::engine
