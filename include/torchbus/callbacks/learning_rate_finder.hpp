#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include <torchbus/callback.hpp>

namespace torchbus {

/// What a range test has found.
struct LearningRateRange {
    std::vector<double> rates;            ///< of the updates made, in order
    std::vector<double> losses;           ///< smoothed, one a rate
    std::optional<double> steepest;       ///< where the smoothed loss falls fastest over log(rate)
    std::optional<double> minimum_tenth;  ///< a tenth of the rate of the smallest smoothed loss
    bool diverged = false;
};

/// Suggests a learning rate: raises it exponentially from step to step, records the smoothed training loss, and stops when
/// the loss diverges or all steps are made. Then model, optimizers, generators and the state of every other callback are as
/// they were before, also after a failure, and the rates of the optimizers too.
/// Leave it out of the run that follows. While it works, others see weights of no use: a composition with savers is refused.
/// Parameter groups keep the ratios of their rates; the first one's is what is reported. Skipped updates are not recorded.
/// Listens: RunConfigured, TrainingRunStart and TrainStepStart (interceptors: the state is kept, the rate set), TrainStepEnd,
/// TrainingRunEnd (stage Report: the result; stage Persist: the state is put back), RunFailed and RunClosed (the same).
/// Reads: loss. Writes: learning_rate, after any learning_rate_schedule, and parameters. Asks for: StopRun.
/// Publishes: learning_rate_finder.steepest and learning_rate_finder.minimum_tenth.
/// Syncs: one read per update.
/// Source: Smith 2017, arXiv:1506.01186; smoothing and divergence as in fastai's Learner.lr_find.
struct LearningRateFinderOptions {
    double first = 1e-7;             ///< > 0
    double last = 10;                ///< > first
    std::int64_t steps = 100;        ///< updates from `first` to `last`; ≥ 2
    double smoothing = 0.98;         ///< weight of the past in the exponential average, corrected for its start; in [0, 1)
    double divergence_factor = 4;    ///< the test ends where the smoothed loss is above so many times its smallest; > 1
    std::int64_t skip_first = 10;    ///< records that no suggestion comes from, at the beginning; ≥ 0
    std::int64_t skip_last = 5;      ///< … and at the end; ≥ 0
    std::filesystem::path plot = {}; ///< an SVG file; empty: none
    std::function<void(const LearningRateRange&)> on_result = {};
    std::function<void(std::string_view)> write = {};  ///< where the result is printed; default: standard error
};
std::unique_ptr<Callback> make_learning_rate_finder(LearningRateFinderOptions options = {});

}  // namespace torchbus
