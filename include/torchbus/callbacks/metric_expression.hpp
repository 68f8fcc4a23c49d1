#pragma once
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Publishes a number that is computed from others, e.g. 2 * eval.precision * eval.recall / (eval.precision + eval.recall).
/// Listens: eval_epoch_end where it reads a number of an evaluation, train_epoch_end otherwise; in stage Report, so that
/// what is published there in stage Observe counts. Reads: blackboard. Writes: nothing. Publishes: `name`; nothing as
/// long as one of its numbers is missing, and then again each time.
/// Skipped updates change nothing. The grammar is in <torchbus/metrics/expression.hpp>.
struct MetricExpressionOptions {
    std::string name = "eval.generalization_gap";  ///< what it is called on the blackboard
    std::string expression = "eval.loss - train.loss";
};
std::unique_ptr<Callback> make_metric_expression(MetricExpressionOptions options = {});

}  // namespace torchbus
