#pragma once
#include <functional>
#include <memory>
#include <string_view>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Prints a plain line at an interval, and one with all metrics after every epoch: for logs.
/// Listens: TrainStepEnd, RolledBack, TrainingRunEpochEnd, EvaluationRunEnd, TrainingRunEnd. Reads: the blackboard's train.* and
/// eval.*. Stage: Report.
struct ProgressLinesOptions {
    Interval every = {};                               ///< between lines within an epoch; 0: none
    std::function<void(std::string_view)> write = {};  ///< default: standard error, as programs print results to standard output
};
std::unique_ptr<Callback> make_progress_lines(ProgressLinesOptions options = {});

}  // namespace torchbus
