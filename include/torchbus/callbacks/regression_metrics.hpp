#pragma once
#include <memory>
#include <string>
#include <vector>

#include <torchbus/metrics/measure_callback.hpp>

namespace torchbus {

/// Metrics of regression over an epoch, for training and every evaluation split and weights view.
/// Shapes: output and targets alike, [N], [N, D] or [N, D, …]; [N, 1] goes with [N]. Classes (integers [N] beside an
/// output [N, C]) are compared as one-hot rows, for models trained so. Nothing else is broadcast.
/// `r2` is 1 − Σ(y − ŷ)² / Σ(y − ȳ)² of each column, averaged over the columns: 0 for a column of equal targets, unless the
/// output equals them (1); NaN for fewer than two samples. Sums are in double, so that it holds up with large means.
/// (torchmetrics counts Σ below 1e-4 as 0 there, and refuses a lone sample.)
/// Publishes and listens as make_measure_callback says: train.<metric>, eval.<metric>, train.running.<metric>.
/// Reads: batch, output. Writes: nothing.
struct RegressionMetricsOptions {
    std::vector<std::string> metrics = {"mean_absolute_error", "mean_squared_error", "root_mean_squared_error", "r2"};
    MeasureSchedule schedule = {};
};
std::unique_ptr<Callback> make_regression_metrics(RegressionMetricsOptions options = {});

}  // namespace torchbus
