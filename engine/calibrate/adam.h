// The Adam optimizer, as torch.optim.Adam with its default settings computes it.
#ifndef MODELPRESS_ENGINE_CALIBRATE_ADAM_H_
#define MODELPRESS_ENGINE_CALIBRATE_ADAM_H_

#include <cmath>
#include <cstddef>
#include <vector>

#include "absl/types/span.h"

namespace modelpress::engine {

// Kingma, Ba, "Adam: A Method for Stochastic Optimization", 2015: learning rate 1e-3, betas 0.9 and 0.999, epsilon 1e-8, no
// weight decay.
class Adam {
 public:
  explicit Adam(size_t parameters) : mean_(parameters), square_(parameters) {}

  // Call before the updates of a step.
  void BeginStep() {
    decay1_ *= kBeta1;
    decay2_ *= kBeta2;
    step_size_ = static_cast<float>(kLearningRate / (1 - decay1_));
    square_correction_ = static_cast<float>(std::sqrt(1 - decay2_));
  }

  // Moves the parameters [first, first + parameters.size()) by their gradient. Once per step for each parameter; calls for
  // different ones may run at the same time.
  void Update(size_t first, absl::Span<const float> gradient, absl::Span<float> parameters) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      float& mean = mean_[first + i];
      float& square = square_[first + i];
      mean += static_cast<float>(1 - kBeta1) * (gradient[i] - mean);
      square = square * static_cast<float>(kBeta2) + static_cast<float>(1 - kBeta2) * gradient[i] * gradient[i];
      parameters[i] -= step_size_ * (mean / (std::sqrt(square) / square_correction_ + static_cast<float>(kEpsilon)));
    }
  }

 private:
  static constexpr double kLearningRate = 1e-3;
  static constexpr double kBeta1 = 0.9;
  static constexpr double kBeta2 = 0.999;
  static constexpr double kEpsilon = 1e-8;

  std::vector<float> mean_, square_;  // running means of the gradient and of its square
  double decay1_ = 1, decay2_ = 1;    // beta to the power of the step
  float step_size_ = 0, square_correction_ = 1;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_ADAM_H_
