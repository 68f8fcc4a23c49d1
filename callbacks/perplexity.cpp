#include <torchbus/callbacks/perplexity.hpp>

#include <cmath>

#include <torch/types.h>

#include <torchbus/metrics/labels.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

/// Sums: targets out of range, negative log-likelihood, tokens.
class PerplexityMeasure final : public Measure {
public:
    explicit PerplexityMeasure(const PerplexityOptions& options)
        : rules_{.who = "perplexity", .ignore_index = options.ignore_index, .classes_last = options.classes_last} {}
    std::vector<std::string> names() const override { return {"perplexity"}; }
    std::int64_t size(std::int64_t) const override { return 3; }
    void gather(const Batch& batch, const at::Tensor& output, Statistics& into) const override {
        const Labels labels = labels_of(batch, output, rules_);
        prepare_totals(labels, size(labels.classes()), rules_, into);
        const at::Tensor rows = labels.rows(), logits = rows.scalar_type() == at::kDouble ? rows : rows.to(at::kFloat);
        const at::Tensor loss = logits.logsumexp(1) - logits.gather(1, labels.targets.unsqueeze(1)).squeeze(1);
        // An ignored token may have an infinite loss: 0 × ∞ would be no number.
        into.totals[1].add_(at::where(labels.counted.gt(0), loss.to(at::kDouble), 0.0).sum());
        into.totals[2].add_(labels.counted.sum());
    }
    double value(std::size_t, const Statistics& statistics) const override {
        const auto sums = sums_of(statistics.totals, 1, 2);
        return std::exp(sums[0] / sums[1]);
    }
    void announce(Subscriber&, const MeasuredPass&, const Statistics& statistics) const override { refuse_outside(statistics, rules_.who); }

private:
    LabelRules rules_;
};

}  // namespace

std::unique_ptr<Callback> make_perplexity(PerplexityOptions options) {
    return make_measure_callback("perplexity", std::make_shared<PerplexityMeasure>(options), std::move(options.schedule));
}

std::unique_ptr<Callback> perplexity_from_json(OptionReader& reader) {
    PerplexityOptions options;
    reader.boolean("classes_last", options.classes_last, "the output is [N, T, C]; false: [N, C, T], as cross_entropy takes it")
        .integer("ignore_index", options.ignore_index, "targets of this value do not count: padding");
    read_schedule(reader, options.schedule);
    return make_perplexity(std::move(options));
}

}  // namespace torchbus
