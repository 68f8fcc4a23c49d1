#pragma once
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Multiplies the learning rate by `factor` when a number has not become better for more than `patience` epochs.
/// It goes with any schedule: learning_rate_schedule sets the rate at TrainStepStart, and after it this one multiplies
/// what it finds, for the length of the step; between two steps the optimizer holds the rate as the schedule has set it.
/// Listens: RunConfigured, TrainStepStart (interceptors), TrainStepEnd, TrainingRunEpochEnd, RunFailed, RunClosed.
/// Reads: the monitored number, once an epoch; an epoch without it does not count. Writes: learning_rate, after learning_rate_schedule.
/// Publishes: learning_rate_factor, with the name of the update behind it where there is one; learning_rate stays what
/// the schedule has published, before the factor.
/// It goes by epochs: a skipped update changes nothing. State: factor, best value and counters.
/// Source: torch.optim.lr_scheduler.ReduceLROnPlateau.
struct ReduceOnPlateauOptions {
    enum class Mode { Min, Max };
    enum class Threshold { Relative, Absolute };
    std::string monitor = "eval.loss";
    Mode mode = Mode::Min;
    double factor = 0.1;        ///< in (0, 1)
    std::int64_t patience = 10; ///< epochs without a better value that are let pass; ≥ 0
    double threshold = 1e-4;    ///< only a change above it is better; ≥ 0
    Threshold threshold_mode = Threshold::Relative;  ///< share of the best value, or in its unit
    std::int64_t cooldown = 0;  ///< epochs after a drop in which none counts as bad; ≥ 0
    double minimum = 0;         ///< learning rate that no drop goes below; ≥ 0
    std::string update = "";    ///< name of the update; empty: all of them
};
std::unique_ptr<Callback> make_reduce_on_plateau(ReduceOnPlateauOptions options = {});

}  // namespace torchbus
