#pragma once
/// Outputs beside the classes they should have named: the common ground of all measures of classes.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/metrics/measure.hpp>

namespace torchbus {

/// The valid part of a batch. What is ignored or out of range has the target 0 and counts 0.
/// Shapes: M is samples times positions.
struct Labels {
    at::Tensor output;       ///< Shapes: [N, C, …] or [N, …, C]
    std::int64_t class_dim;  ///< which dimension C is
    at::Tensor targets;      ///< within 0 … C − 1. Shapes: [M]
    at::Tensor counted;      ///< 1 or 0, in double. Shapes: [M]
    at::Tensor outside;      ///< how many targets are no class, in double. Shapes: []

    std::int64_t classes() const { return output.size(class_dim); }
    at::Tensor predicted() const { return output.argmax(class_dim).flatten(); }                      ///< Shapes: [M]
    at::Tensor rows() const { return output.movedim(class_dim, -1).reshape({-1, classes()}); }       ///< Shapes: [M, C]
};

/// What the messages call it, and which options gave it.
struct LabelRules {
    std::string who;
    std::int64_t classes = 0;          ///< expected; 0: whatever the output has
    std::int64_t ignore_index = -100;  ///< this target does not count
    bool classes_last = false;         ///< [N, …, C] in place of [N, C, …]
};

/// Shapes: output [N, C, …], targets [N, …] of integers. Throws: ConfigError where that is not so.
Labels labels_of(const Batch& batch, const at::Tensor& output, const LabelRules& rules);

/// Makes room for `size` sums in `into`, the first of which counts targets out of range.
/// Throws: ConfigError where the number of classes has changed.
void prepare_totals(const Labels& labels, std::int64_t size, const LabelRules& rules, Statistics& into);

/// Throws: DataError where targets out of range were gathered. Syncs: reads one number.
void refuse_outside(const Statistics& statistics, std::string_view who);

}  // namespace torchbus
