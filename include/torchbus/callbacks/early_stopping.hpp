#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Stops a run whose metric has stopped improving. It looks once an epoch, after the evaluation; each look is a check.
/// The first finite value is the best one so far; a NaN or an infinity never improves on it.
/// Listens: TrainingRunStart, TrainingRunEpochEnd (stage Report), RunClosed; with restore_best TrainingRunEnd
/// (interceptor) and EvalEpochEnd. Reads: `monitor` on the blackboard. Writes: with restore_best the parameters and buffers, at
/// TrainingRunEnd, however the run ended but for a failure. What is kept and put back are the weights that `monitor` was
/// measured with: of eval.ema.loss those of the view `ema`. Asks for: StopRun, taken before EpochCheckpoint of that epoch.
/// Checks follow epochs, so skipped updates change nothing.
/// Source: Prechelt 1998, "Early stopping – but when?", criterion UP; the threshold is that of torch's ReduceLROnPlateau,
/// but a relative one goes by |best|, so that negative metrics improve downwards too.
struct EarlyStoppingOptions {
    enum class Mode { Min, Max };
    enum class ThresholdMode {
        Absolute,  ///< better by more than `threshold`
        Relative,  ///< better by more than `threshold` · |best|
    };
    std::string monitor = "eval.loss";
    Mode mode = Mode::Min;
    std::int64_t patience = 3;             ///< checks in a row without an improvement, after which the run stops; ≥ 1
    double threshold = 0;                  ///< ≥ 0; what is not better by more counts as no improvement
    ThresholdMode threshold_mode = ThresholdMode::Absolute;
    std::optional<double> stop_at = {};    ///< the run stops as soon as the metric is there or beyond it
    bool check_finite = true;              ///< stops at a metric that is NaN or infinite
    bool restore_best = false;             ///< keeps a copy of the best weights, and puts it back at the end
};
std::unique_ptr<Callback> make_early_stopping(EarlyStoppingOptions options = {});

}  // namespace torchbus
