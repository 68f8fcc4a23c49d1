#pragma once
/// Areas under the curves of one class against the rest.

#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include <torchbus/metrics/class_counts.hpp>

namespace torchbus {

/// How many samples have at least a score, for falling scores.
struct ScoreCurve {
    std::vector<double> true_positives = {}, false_positives = {};
    double positives() const { return true_positives.empty() ? 0 : true_positives.back(); }
};

/// Exact, equal scores being one point. Shapes: scores and is_positive [M].
ScoreCurve exact_curve(const at::Tensor& scores, const at::Tensor& is_positive);
/// From samples per bucket: bucket i holds scores that reach i thresholds and no more. The first one reaches none.
ScoreCurve binned_curve(std::span<const double> positive, std::span<const double> negative);

/// Area under the receiver operating characteristic, by trapezoids; 0 where there are no positives or no negatives.
double area_under_roc(const ScoreCurve& curve);
/// Σ (R_k − R_{k−1}) P_k over falling scores; NaN where there are no positives.
double average_precision(const ScoreCurve& curve);

/// Mean over the classes whose number is not NaN, weighed by their positives with Weighted. Requires: not Micro.
double average_over(const std::vector<ScoreCurve>& curves, double (*area)(const ScoreCurve&), Average average);

}  // namespace torchbus
