#include <torchbus/metrics/curves.hpp>

#include <cmath>
#include <limits>

#include <torch/types.h>

namespace torchbus {

ScoreCurve exact_curve(const at::Tensor& scores, const at::Tensor& is_positive) {
    const auto [sorted, order] = scores.to(at::kCPU, at::kDouble).sort(0, /*descending=*/true);
    const at::Tensor flags = is_positive.to(at::kCPU, at::kDouble).index_select(0, order);
    const auto score = sorted.accessor<double, 1>();
    const auto flag = flags.accessor<double, 1>();
    ScoreCurve curve;
    double positives = 0, negatives = 0;
    for (std::int64_t i = 0; i < sorted.size(0); ++i) {
        positives += flag[i];
        negatives += 1 - flag[i];
        const bool is_tied = i + 1 < sorted.size(0) && score[i + 1] == score[i];
        if (is_tied) continue;
        curve.true_positives.push_back(positives);
        curve.false_positives.push_back(negatives);
    }
    return curve;
}

ScoreCurve binned_curve(std::span<const double> positive, std::span<const double> negative) {
    ScoreCurve curve;
    double positives = 0, negatives = 0;
    for (std::size_t bucket = positive.size(); bucket-- > 0;) {
        curve.true_positives.push_back(positives += positive[bucket]);
        curve.false_positives.push_back(negatives += negative[bucket]);
    }
    return curve;
}

double area_under_roc(const ScoreCurve& curve) {
    const double positives = curve.positives(), negatives = curve.false_positives.empty() ? 0 : curve.false_positives.back();
    if (positives == 0 || negatives == 0) return 0;
    double area = 0, left = 0, height = 0;
    for (std::size_t k = 0; k < curve.true_positives.size(); ++k) {
        area += (curve.false_positives[k] - left) * (curve.true_positives[k] + height) / 2;
        left = curve.false_positives[k];
        height = curve.true_positives[k];
    }
    return area / (positives * negatives);
}

double average_precision(const ScoreCurve& curve) {
    const double positives = curve.positives();
    if (positives == 0) return std::numeric_limits<double>::quiet_NaN();
    double total = 0, before = 0;
    for (std::size_t k = 0; k < curve.true_positives.size(); ++k) {
        const double found = curve.true_positives[k], called = found + curve.false_positives[k];
        if (called > 0) total += (found - before) * found / called;
        before = found;
    }
    return total / positives;
}

double average_over(const std::vector<ScoreCurve>& curves, double (*area)(const ScoreCurve&), Average average) {
    double total = 0, weights = 0;
    for (const ScoreCurve& curve : curves) {
        const double value = area(curve);
        if (std::isnan(value)) continue;
        const double weight = average == Average::Weighted ? curve.positives() : 1.0;
        total += weight * value;
        weights += weight;
    }
    return weights > 0 ? total / weights : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace torchbus
