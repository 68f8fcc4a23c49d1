#pragma once
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/metrics/class_counts.hpp>
#include <torchbus/metrics/measure_callback.hpp>

namespace torchbus {

/// Emitted at the end of a pass by classification_metrics with `confusion_matrix` among its metrics, on all ranks.
struct ConfusionMatrix {
    Position position;
    std::string name;   ///< of the pass: train, eval, eval.noisy, …
    at::Tensor counts;  ///< samples by target (row) and prediction (column), over all ranks. Shapes: [C, C], double
};
void to_json(nlohmann::json& out, const ConfusionMatrix& event);

/// Multiclass metrics over an epoch, for training and every evaluation split and weights view.
/// Shapes: output [N, C] or [N, C, …], targets of integers [N] or [N, …]; the largest output is the prediction.
/// Publishes and listens as make_measure_callback says: train.<metric>, eval.<metric>, train.running.<metric>. Publishes
/// no number for confusion_matrix, but emits ConfusionMatrix. Reads: batch, output. Writes: nothing.
/// Ignored targets do not count; other targets outside of the C classes are an error (on a device at the end of the pass).
/// `auroc` and `average_precision` are one class against the rest, then averaged (Micro: all pairs of sample and class
/// in one curve). Without `thresholds` they are exact and keep all scores of a pass: in one process only, and published at
/// its end alone. A class without samples counts as AUROC 0, and is left out of average precision.
/// Source: the definitions are those of torchmetrics 1.9's multiclass metrics, which differ in three corners. With all
/// targets in class 0 they count the average precision of the other classes as 0; so do the binned ones for any class
/// without samples; and the binned AUROC leaves out what lies left of the point of scores that are exactly 1.
struct ClassificationMetricsOptions {
    /// accuracy, top_k_accuracy, precision, recall, f_beta, confusion_matrix, auroc, average_precision
    std::vector<std::string> metrics = {"precision", "recall", "f_beta"};
    std::int64_t classes = 0;            ///< C; 0: read from the output
    Average average = Average::Macro;    ///< of all metrics; accuracy is the share of samples called right with Micro
    std::int64_t top_k = 5;              ///< >= 1, at most C; of top_k_accuracy
    double beta = 1.0;                   ///< > 0; of f_beta: recall counts beta times as much as precision
    std::int64_t thresholds = 0;         ///< 0: exact; >= 2: auroc and average_precision at so many from 0 to 1
    bool probabilities = false;          ///< the output holds probabilities; otherwise scores that softmax makes some of
    std::int64_t ignore_index = -100;    ///< targets of this value do not count
    MeasureSchedule schedule = {};
};
std::unique_ptr<Callback> make_classification_metrics(ClassificationMetricsOptions options = {});

}  // namespace torchbus
