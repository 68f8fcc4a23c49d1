#include <torchbus/callbacks/mean_iou.hpp>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/error.hpp>
#include <torchbus/metrics/class_counts.hpp>
#include <torchbus/metrics/labels.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

/// Sums: targets out of range, then by class pixels that are right, called so, and of it.
class MeanIouMeasure final : public Measure {
public:
    explicit MeanIouMeasure(const MeanIouOptions& options) : rules_{"mean_iou", options.classes, options.ignore_index} {}
    std::vector<std::string> names() const override { return {"mean_iou"}; }
    std::int64_t size(std::int64_t classes) const override { return 1 + 3 * classes; }
    void gather(const Batch& batch, const at::Tensor& output, Statistics& into) const override {
        const Labels labels = labels_of(batch, output, rules_);
        const std::int64_t classes = labels.classes();
        prepare_totals(labels, size(classes), rules_, into);
        const at::Tensor predicted = labels.predicted();
        into.totals.narrow(0, 1, classes).index_add_(0, labels.targets, labels.counted * predicted.eq(labels.targets));
        into.totals.narrow(0, 1 + classes, classes).index_add_(0, predicted, labels.counted);
        into.totals.narrow(0, 1 + 2 * classes, classes).index_add_(0, labels.targets, labels.counted);
    }
    double value(std::size_t, const Statistics& statistics) const override {
        const std::int64_t classes = statistics.width;
        const auto correct = sums_of(statistics.totals, 1, classes), predicted = sums_of(statistics.totals, 1 + classes, classes);
        return mean_iou({correct, predicted, sums_of(statistics.totals, 1 + 2 * classes, classes)});
    }
    void announce(Subscriber&, const MeasuredPass&, const Statistics& statistics) const override { refuse_outside(statistics, rules_.who); }

private:
    LabelRules rules_;
};

}  // namespace

std::unique_ptr<Callback> make_mean_iou(MeanIouOptions options) {
    if (options.classes < 0 || options.classes == 1)
        throw ConfigError(fmt::format("mean_iou: classes: {} is out of range; give at least 2, or 0 to read it from the output", options.classes));
    return make_measure_callback("mean_iou", std::make_shared<MeanIouMeasure>(options), std::move(options.schedule));
}

std::unique_ptr<Callback> mean_iou_from_json(OptionReader& reader) {
    MeanIouOptions options;
    reader.integer("classes", options.classes, "number of classes; 0: read from the output", Range::at_least(0))
        .integer("ignore_index", options.ignore_index, "targets of this value do not count: borders");
    read_schedule(reader, options.schedule);
    return make_mean_iou(std::move(options));
}

}  // namespace torchbus
