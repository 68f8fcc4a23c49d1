#include <torchbus/metrics/labels.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/types.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

std::string words_for(const at::Tensor& targets) {
    if (!targets.defined()) return "no targets";
    return fmt::format("targets [{}] of {}", fmt::join(targets.sizes(), ", "), at::toString(targets.scalar_type()));
}

void check_shapes(const Batch& batch, const at::Tensor& output, const LabelRules& rules) {
    const char* expected = rules.classes_last ? "[N, …, C]" : "[N, C, …]";
    if (!output.defined())
        throw ConfigError(fmt::format("{}: needs an output of shape {}, and the step function returned none; let it return the output beside the loss",
                                      rules.who, expected));
    const at::Tensor& targets = batch.targets;
    bool fits = targets.defined() && output.dim() >= 2 && targets.dim() + 1 == output.dim() && at::isIntegralType(targets.scalar_type(), false);
    if (fits) {
        auto sizes = output.sizes().vec();
        sizes.erase(rules.classes_last ? sizes.end() - 1 : sizes.begin() + 1);
        fits = targets.sizes() == at::IntArrayRef(sizes);
    }
    if (!fits)
        throw ConfigError(fmt::format("{}: needs an output of shape {} and targets of integers of shape [N, …]; got output [{}] and {}", rules.who,
                                      expected, fmt::join(output.sizes(), ", "), words_for(targets)));
    const std::int64_t classes = output.size(rules.classes_last ? -1 : 1);
    if (classes < 2)
        throw ConfigError(fmt::format("{}: the output [{}] has one class; give it one column for each class", rules.who, fmt::join(output.sizes(), ", ")));
    if (rules.classes != 0 && classes != rules.classes)
        throw ConfigError(fmt::format("{}: classes is {}, and the output [{}] has {}; give {}, or 0 to read it from the output", rules.who, rules.classes,
                                      fmt::join(output.sizes(), ", "), classes, classes));
}

}  // namespace

Labels labels_of(const Batch& batch, const at::Tensor& output, const LabelRules& rules) {
    check_shapes(batch, output, rules);
    const std::int64_t class_dim = rules.classes_last ? output.dim() - 1 : 1;
    Labels labels{output.detach().narrow(0, 0, batch.valid), class_dim, {}, {}, {}};
    const at::Tensor targets = batch.targets.narrow(0, 0, batch.valid).flatten().to(at::kLong);
    const at::Tensor is_kept = targets.ne(rules.ignore_index);
    const at::Tensor is_class = targets.ge(0).logical_and_(targets.lt(labels.classes()));
    labels.outside = is_kept.logical_and(is_class.logical_not()).sum().to(at::kDouble);
    const at::Tensor counts = is_kept.logical_and(is_class);
    labels.counted = counts.to(at::kDouble);
    labels.targets = targets.mul(counts);
    return labels;
}

void prepare_totals(const Labels& labels, std::int64_t size, const LabelRules& rules, Statistics& into) {
    if (!into.empty() && into.width != labels.classes())
        throw ConfigError(fmt::format("{}: the output has {} classes, and had {} until now; a metric needs one number of classes", rules.who,
                                      labels.classes(), into.width));
    into.width = labels.classes();
    if (!into.totals.defined()) into.totals = at::zeros({size}, labels.output.options().dtype(at::kDouble));
    into.totals[0].add_(labels.outside);
    // On the CPU it is at hand; a device is not waited for, and the end of the pass tells.
    if (into.totals.is_cpu()) refuse_outside(into, rules.who);
}

void refuse_outside(const Statistics& statistics, std::string_view who) {
    const double outside = sums_of(statistics.totals, 0, 1)[0];
    if (outside > 0)
        throw DataError(fmt::format("{}: {} targets lie outside of the output's {} classes (0 to {}); look at the data, or name the one to leave "
                                    "out with ignore_index", who, outside, statistics.width, statistics.width - 1));
}

}  // namespace torchbus
