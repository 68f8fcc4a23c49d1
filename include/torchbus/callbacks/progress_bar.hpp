#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include <torchbus/callback.hpp>

namespace torchbus {

/// A bar for the epoch or evaluation under way, and a line with its metrics when it is over. Where the output is no
/// terminal, only the lines. NO_COLOR and TERM=dumb are heeded.
/// Listens: TrainingRunStart, TrainEpochStart, TrainStepEnd, RolledBack, EvalEpochStart, EvalStepEnd, TrainingRunEpochEnd,
/// EvaluationRunEnd, TrainingRunEnd, RunFailed. Reads: the blackboard's train.* and eval.*. Stage: Report.
/// Syncs: on a device, one read of each metric a redraw.
struct ProgressBarOptions {
    double redraw_seconds = 0.1;                          ///< least time between two redraws
    std::function<void(std::string_view)> write = {};     ///< default: standard error
    std::optional<bool> terminal = {};                    ///< default: whether standard error is one
    std::optional<int> columns = {};                      ///< default: the terminal's width, asked at every redraw
    std::optional<bool> color = {};                       ///< default: on a terminal, unless NO_COLOR is set
};
std::unique_ptr<Callback> make_progress_bar(ProgressBarOptions options = {});

}  // namespace torchbus
