#include <torchbus/metrics/class_counts.hpp>

#include <array>
#include <cstddef>
#include <vector>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

double share(double part, double whole) { return whole != 0 ? part / whole : 0.0; }

double sum(std::span<const double> values) {
    double total = 0;
    for (const double value : values) total += value;
    return total;
}

/// `score(correct, predicted, support)` of the classes, averaged.
template <class Score>
double averaged(const ClassCounts& counts, Average average, Score score) {
    if (average == Average::Micro) return score(sum(counts.correct), sum(counts.predicted), sum(counts.support));
    double total = 0, weights = 0;
    for (std::size_t c = 0; c < counts.support.size(); ++c) {
        const bool occurs = counts.predicted[c] + counts.support[c] > 0;
        const double weight = average == Average::Weighted ? counts.support[c] : occurs ? 1.0 : 0.0;
        total += weight * score(counts.correct[c], counts.predicted[c], counts.support[c]);
        weights += weight;
    }
    return share(total, weights);
}

}  // namespace

Average average_from(std::string_view name, std::string_view where) {
    if (name == "macro") return Average::Macro;
    if (name == "micro") return Average::Micro;
    if (name == "weighted") return Average::Weighted;
    const std::array<std::string, 3> known = {"macro", "micro", "weighted"};
    throw ConfigError(fmt::format("{}: '{}' is not known{} (expected one of macro, micro, weighted)", where, name, did_you_mean(name, known)));
}

double accuracy(const ClassCounts& counts, Average average) {
    return averaged(counts, average, [](double correct, double, double support) { return share(correct, support); });
}

double top_k_accuracy(std::span<const double> hits, std::span<const double> support, Average average) {
    return averaged({hits, support, support}, average, [](double hit, double, double of) { return share(hit, of); });
}

double precision(const ClassCounts& counts, Average average) {
    return averaged(counts, average, [](double correct, double predicted, double) { return share(correct, predicted); });
}

double recall(const ClassCounts& counts, Average average) {
    return averaged(counts, average, [](double correct, double, double support) { return share(correct, support); });
}

double f_beta(const ClassCounts& counts, double beta, Average average) {
    const double squared = beta * beta;
    // (1 + β²) c + β² (s − c) + (p − c) = β² s + p
    return averaged(counts, average, [squared](double correct, double predicted, double support) {
        return share((1 + squared) * correct, squared * support + predicted);
    });
}

double mean_iou(const ClassCounts& counts) {
    return averaged(counts, Average::Macro, [](double correct, double predicted, double support) {
        return share(correct, predicted + support - correct);
    });
}

}  // namespace torchbus
