#include <torchbus/callbacks/classification_metrics.hpp>

#include <algorithm>
#include <functional>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/error.hpp>
#include <torchbus/events_json.hpp>
#include <torchbus/metrics/curves.hpp>
#include <torchbus/metrics/labels.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

using Options = ClassificationMetricsOptions;

const std::vector<std::string> kMetrics = {"accuracy", "top_k_accuracy",   "precision", "recall",
                                           "f_beta",   "confusion_matrix", "auroc",     "average_precision"};

bool is_curve(std::string_view metric) { return metric == "auroc" || metric == "average_precision"; }

/// 1 where the target is among the k largest: a larger score counts, an equal one if it stands earlier, as with argmax.
at::Tensor in_top_k(const at::Tensor& rows, const at::Tensor& targets, std::int64_t k) {
    const at::Tensor column = targets.unsqueeze(1), own = rows.gather(1, column);
    const at::Tensor stands_earlier = at::arange(rows.size(1), targets.options()).unsqueeze(0).lt(column);
    const at::Tensor is_ahead = rows.gt(own).logical_or_(rows.isnan()).logical_or_(rows.eq(own).logical_and_(stands_earlier));
    return is_ahead.sum(1).lt(k).logical_and_(own.squeeze(1).isnan().logical_not_());
}

class ClassificationMeasure final : public Measure {
public:
    explicit ClassificationMeasure(Options options)
        : options_(std::move(options)), rules_{"classification_metrics", options_.classes, options_.ignore_index} {
        for (const std::string& metric : options_.metrics)
            if (metric != "confusion_matrix") names_.push_back(metric);
        const bool has_curves = std::ranges::any_of(options_.metrics, is_curve);
        is_exact_ = has_curves && options_.thresholds == 0;
        is_binned_ = has_curves && options_.thresholds > 0;
    }
    std::vector<std::string> names() const override { return names_; }
    std::int64_t size(std::int64_t classes) const override { return layout(classes).size; }
    bool is_cheap(std::size_t index) const override { return !is_curve(names_[index]); }
    std::string against_ranks() const override {
        return is_exact_ ? "auroc and average_precision need all scores in one place where they are exact; give thresholds, e.g. 200" : "";
    }

    void gather(const Batch& batch, const at::Tensor& output, Statistics& into) const override {
        const Labels labels = labels_of(batch, output, rules_);
        const std::int64_t classes = labels.classes();
        if (measures("top_k_accuracy") && options_.top_k > classes)
            throw ConfigError(fmt::format("classification_metrics: top_k is {}, and the output has {} classes; give at most {}", options_.top_k, classes, classes));
        const Layout place = layout(classes);
        prepare_totals(labels, place.size, rules_, into);
        const at::Tensor predicted = labels.predicted(), counted = labels.counted;
        into.totals.narrow(0, place.correct, classes).index_add_(0, labels.targets, counted * predicted.eq(labels.targets));
        into.totals.narrow(0, place.predicted, classes).index_add_(0, predicted, counted);
        into.totals.narrow(0, place.support, classes).index_add_(0, labels.targets, counted);
        if (place.confusion) into.totals.narrow(0, place.confusion, classes * classes).index_add_(0, labels.targets * classes + predicted, counted);
        if (place.hits) {
            const at::Tensor is_hit = in_top_k(labels.rows(), labels.targets, options_.top_k);
            into.totals.narrow(0, place.hits, classes).index_add_(0, labels.targets, counted * is_hit);
        }
        if (!is_exact_ && !is_binned_) return;
        const at::Tensor rows = labels.rows().to(labels.output.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
        const at::Tensor scores = options_.probabilities ? rows : rows.softmax(1);
        if (is_binned_) return add_to_bins(scores, labels, into.totals.narrow(0, place.bins, 2 * classes * buckets()));
        into.scores.push_back(scores);
        into.targets.push_back(at::where(counted.gt(0), labels.targets, -1));
    }

    double value(std::size_t index, const Statistics& statistics) const override {
        const std::string& metric = names_[index];
        if (is_curve(metric)) return area(statistics, metric == "auroc" ? area_under_roc : average_precision);
        const Layout place = layout(statistics.width);
        const auto part = [&](std::int64_t from) { return sums_of(statistics.totals, from, statistics.width); };
        const auto support = part(place.support);
        if (metric == "top_k_accuracy") return top_k_accuracy(part(place.hits), support, options_.average);
        const auto correct = part(place.correct), predicted = part(place.predicted);
        const ClassCounts counts{correct, predicted, support};
        if (metric == "accuracy") return accuracy(counts, options_.average);
        if (metric == "precision") return precision(counts, options_.average);
        if (metric == "recall") return recall(counts, options_.average);
        return f_beta(counts, options_.beta, options_.average);
    }

    void announce(Subscriber& bus, const MeasuredPass& pass, const Statistics& statistics) const override {
        refuse_outside(statistics, rules_.who);
        const Layout place = layout(statistics.width);
        if (!place.confusion) return;
        const at::Tensor counts = statistics.totals.narrow(0, place.confusion, statistics.width * statistics.width);
        bus.emit(ConfusionMatrix{pass.position, pass.name, counts.to(at::kCPU).view({statistics.width, statistics.width}).clone()});
    }

private:
    /// Where each kind of sum begins; 0 where it is not gathered.
    struct Layout {
        std::int64_t correct, predicted, support, hits = 0, confusion = 0, bins = 0, size;
    };
    Layout layout(std::int64_t classes) const {
        Layout place{.correct = 1, .predicted = 1 + classes, .support = 1 + 2 * classes, .size = 1 + 3 * classes};
        const auto reserve = [&place](bool is_gathered, std::int64_t count) { return is_gathered ? std::exchange(place.size, place.size + count) : 0; };
        place.hits = reserve(measures("top_k_accuracy"), classes);
        place.confusion = reserve(measures("confusion_matrix"), classes * classes);
        place.bins = reserve(is_binned_, 2 * classes * buckets());
        return place;
    }
    bool measures(std::string_view metric) const { return std::ranges::find(options_.metrics, metric) != options_.metrics.end(); }
    std::int64_t buckets() const { return options_.thresholds + 1; }

    /// Bins by class, then negative and positive, then how many thresholds the score reaches.
    void add_to_bins(const at::Tensor& scores, const Labels& labels, at::Tensor bins) const {
        const at::Tensor thresholds = at::linspace(0, 1, options_.thresholds, scores.options().dtype(at::kFloat));
        const at::Tensor bucket = at::bucketize(scores.to(at::kFloat), thresholds, /*out_int32=*/false, /*right=*/true);
        const at::Tensor of_class = at::arange(scores.size(1), labels.targets.options()).unsqueeze(0);
        const at::Tensor is_positive = of_class.eq(labels.targets.unsqueeze(1)).to(at::kLong);
        const at::Tensor place = (of_class * 2 + is_positive) * buckets() + bucket;
        bins.index_add_(0, place.flatten(), labels.counted.unsqueeze(1).expand_as(place).flatten());
    }

    double area(const Statistics& statistics, double (*of)(const ScoreCurve&)) const {
        if (options_.average != Average::Micro) return average_over(curves(statistics), of, options_.average);
        return of(is_binned_ ? micro_binned(statistics) : micro_exact(statistics));
    }
    struct Gathered { at::Tensor scores, targets; };
    static Gathered together(const Statistics& statistics) {
        const at::Tensor targets = at::cat(statistics.targets).to(at::kCPU);
        const at::Tensor counts = targets.ge(0).nonzero().squeeze(1);
        return {at::cat(statistics.scores).to(at::kCPU).index_select(0, counts), targets.index_select(0, counts)};
    }
    ScoreCurve micro_exact(const Statistics& statistics) const {
        const auto [scores, targets] = together(statistics);
        return exact_curve(scores.flatten(), at::one_hot(targets, statistics.width).flatten());
    }
    std::vector<double> bins_of(const Statistics& statistics, std::int64_t c, bool positive) const {
        return sums_of(statistics.totals, layout(statistics.width).bins + (2 * c + (positive ? 1 : 0)) * buckets(), buckets());
    }
    ScoreCurve micro_binned(const Statistics& statistics) const {
        std::vector<double> sums[2] = {std::vector<double>(buckets()), std::vector<double>(buckets())};
        for (std::int64_t c = 0; c < statistics.width; ++c)
            for (const bool positive : {false, true})
                std::ranges::transform(sums[positive], bins_of(statistics, c, positive), sums[positive].begin(), std::plus<>());
        return binned_curve(sums[1], sums[0]);
    }
    std::vector<ScoreCurve> curves(const Statistics& statistics) const {
        std::vector<ScoreCurve> result;
        const Gathered all = is_exact_ ? together(statistics) : Gathered{};
        for (std::int64_t c = 0; c < statistics.width; ++c)
            result.push_back(is_exact_ ? exact_curve(all.scores.select(1, c), all.targets.eq(c))
                                       : binned_curve(bins_of(statistics, c, true), bins_of(statistics, c, false)));
        return result;
    }

    Options options_;
    LabelRules rules_;
    std::vector<std::string> names_;
    bool is_exact_ = false, is_binned_ = false;
};

void check(const Options& options) {
    const auto refuse = [](const std::string& text) { throw ConfigError("classification_metrics: " + text); };
    if (options.metrics.empty()) refuse(fmt::format("metrics: nothing is measured; name some of {}", fmt::join(kMetrics, ", ")));
    for (const std::string& metric : options.metrics) {
        if (std::ranges::find(kMetrics, metric) == kMetrics.end())
            refuse(fmt::format("metrics: '{}' is not known{} (expected some of {})", metric, did_you_mean(metric, kMetrics), fmt::join(kMetrics, ", ")));
        if (std::ranges::count(options.metrics, metric) > 1) refuse(fmt::format("metrics: '{}' is named twice; name it once", metric));
    }
    if (options.classes < 0 || options.classes == 1)
        refuse(fmt::format("classes: {} is out of range; give at least 2, or 0 to read it from the output", options.classes));
    if (options.top_k < 1) refuse(fmt::format("top_k: {} is not positive; give how many of the largest outputs count, e.g. 5", options.top_k));
    if (!(options.beta > 0)) refuse(fmt::format("beta: {} is not positive; give the weight of recall, e.g. 1.0", options.beta));
    if (options.thresholds < 0 || options.thresholds == 1)
        refuse(fmt::format("thresholds: {} is out of range; give at least 2, e.g. 200, or 0 for exact areas", options.thresholds));
}

}  // namespace

void to_json(nlohmann::json& out, const ConfusionMatrix& event) {
    out = {{"position", event.position}, {"name", event.name}, {"counts", nlohmann::json::array()}};
    for (std::int64_t row = 0; row < event.counts.size(0); ++row) {
        const auto counts = sums_of(event.counts[row], 0, event.counts.size(1));
        out["counts"].push_back(std::vector<std::int64_t>(counts.begin(), counts.end()));
    }
}

std::unique_ptr<Callback> make_classification_metrics(ClassificationMetricsOptions options) {
    check(options);
    MeasureSchedule schedule = options.schedule;
    return make_measure_callback("classification_metrics", std::make_shared<ClassificationMeasure>(std::move(options)), std::move(schedule));
}

std::unique_ptr<Callback> classification_metrics_from_json(OptionReader& reader) {
    Options options;
    std::string average = "macro";
    reader.texts("metrics", options.metrics, fmt::format("what is measured: some of {}", fmt::join(kMetrics, ", ")))
        .integer("classes", options.classes, "number of classes; 0: read from the output", Range::at_least(0))
        .choice("average", average, {"macro", "micro", "weighted"}, "how the numbers of the classes become one")
        .integer("top_k", options.top_k, "how many of the largest outputs count, for top_k_accuracy; >= 1", Range::at_least(1))
        .number("beta", options.beta, "weight of recall against precision, for f_beta; > 0", Range::positive())
        .integer("thresholds", options.thresholds, "at how many scores auroc and average_precision are taken; 0: exact, in one process only",
                 Range::at_least(0))
        .boolean("probabilities", options.probabilities, "the output holds probabilities, so auroc and average_precision take no softmax")
        .integer("ignore_index", options.ignore_index, "targets of this value do not count");
    options.average = average_from(average, reader.path_of("average"));
    read_schedule(reader, options.schedule);
    return make_classification_metrics(std::move(options));
}

}  // namespace torchbus
