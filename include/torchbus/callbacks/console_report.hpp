#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Prints a report when a run has ended, however it ended: outcome and why, duration and steps, the last and the best value of
/// every metric, the decisions that were taken, and the time that each subscriber took. Lines of at most 80 columns.
/// Listens: RunConfigured, DecisionTaken, TrainingRunEpochEnd, RunClosed (observers, stage Report). Reads: the blackboard's
/// train.* and eval.*, at the end of every epoch.
/// The accounting is that of this run: calls and time on the training thread, with its share of the run's duration; what an
/// observer's own thread took stands in a column of its own where there is any. Rank: rank 0 prints, for itself.
struct ConsoleReportOptions {
    bool metrics = true;
    bool decisions = true;
    bool accounting = true;
    std::int64_t max_subscribers = 20;  ///< lines of the accounting, the others are summed up; ≥ 1
    /// Last parts of the names of metrics whose largest value is the best one; of all others it is the smallest.
    std::vector<std::string> higher_is_better = {"accuracy", "precision", "recall", "f1", "auc", "bleu", "r2", "dice", "iou"};
    std::function<void(std::string_view)> write = {};  ///< default: standard error
};
std::unique_ptr<Callback> make_console_report(ConsoleReportOptions options = {});

}  // namespace torchbus
