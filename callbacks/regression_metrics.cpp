#include <torchbus/callbacks/regression_metrics.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/types.h>

#include <torchbus/error.hpp>
#include <torchbus/metrics/labels.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

const std::vector<std::string> kMetrics = {"mean_absolute_error", "mean_squared_error", "root_mean_squared_error", "r2"};

/// The valid part as columns, in double. Shapes: [M, D] each.
struct Columns {
    at::Tensor output, targets;
};

at::Tensor columns_of(const at::Tensor& tensor) {
    const at::Tensor wide = tensor.detach().to(at::kDouble);
    return wide.dim() < 2 ? wide.reshape({-1, 1}) : wide.movedim(1, -1).reshape({-1, wide.size(1)});
}

bool is_column_of(const at::Tensor& wide, const at::Tensor& flat) {
    return wide.dim() == 2 && wide.size(1) == 1 && flat.dim() == 1 && wide.size(0) == flat.size(0);
}

Columns columns_of(const Batch& batch, const at::Tensor& output) {
    if (!output.defined())
        throw ConfigError("regression_metrics: needs an output, and the step function returned none; let it return the output beside the loss");
    const at::Tensor& targets = batch.targets;
    const bool defined = targets.defined() && output.dim() > 0;
    const bool alike = defined && (targets.sizes() == output.sizes() || is_column_of(output, targets) || is_column_of(targets, output));
    const bool are_classes = defined && !alike && output.dim() == 2 && targets.dim() == 1 && targets.size(0) == output.size(0) &&
                             at::isIntegralType(targets.scalar_type(), false);
    if (!alike && !are_classes)
        throw ConfigError(fmt::format("regression_metrics: needs an output and targets of one shape; got output [{}] and {}; nothing is broadcast",
                                      fmt::join(output.sizes(), ", "),
                                      targets.defined() ? fmt::format("targets [{}]", fmt::join(targets.sizes(), ", ")) : "no targets"));
    const at::Tensor valid = targets.narrow(0, 0, batch.valid);
    const at::Tensor rows = are_classes ? valid.unsqueeze(1).eq(at::arange(output.size(1), valid.options())) : valid;
    return {columns_of(output.narrow(0, 0, batch.valid)), columns_of(rows)};
}

/// 1 − residual / spread. A spread below what rounding leaves of equal targets is none.
double r2_of(double count, double residual, double sum, double squares) {
    const double spread = squares - sum * sum / count;
    if (spread > 1e-14 * squares) return 1 - residual / spread;
    return residual == 0 ? 1 : std::isnan(residual) ? residual : 0;
}

/// Sums: samples, then by column |y − ŷ|, (y − ŷ)², y and y².
class RegressionMeasure final : public Measure {
public:
    explicit RegressionMeasure(std::vector<std::string> names) : names_(std::move(names)) {}
    std::vector<std::string> names() const override { return names_; }
    std::int64_t size(std::int64_t columns) const override { return 1 + 4 * columns; }

    void gather(const Batch& batch, const at::Tensor& output, Statistics& into) const override {
        const auto [predicted, targets] = columns_of(batch, output);
        const std::int64_t width = targets.size(1);
        if (!into.empty() && into.width != width)
            throw ConfigError(fmt::format("regression_metrics: the output has {} columns, and had {} until now; a metric needs one number of columns",
                                          width, into.width));
        into.width = width;
        if (!into.totals.defined()) into.totals = at::zeros({size(width)}, targets.options());
        const at::Tensor error = predicted - targets;
        into.totals[0].add_(targets.size(0));
        into.totals.narrow(0, 1, 4 * width).add_(at::cat({error.abs().sum(0), error.square().sum(0), targets.sum(0), targets.square().sum(0)}));
    }

    double value(std::size_t index, const Statistics& statistics) const override {
        const std::string& metric = names_[index];
        const double count = sums_of(statistics.totals, 0, 1)[0];
        const auto part = [&](std::int64_t which) { return sums_of(statistics.totals, 1 + which * statistics.width, statistics.width); };
        const auto mean = [&](const std::vector<double>& sums) {
            double total = 0;
            for (const double sum : sums) total += sum;
            return total / (count * static_cast<double>(sums.size()));
        };
        if (metric == "mean_absolute_error") return mean(part(0));
        if (metric == "mean_squared_error") return mean(part(1));
        if (metric == "root_mean_squared_error") return std::sqrt(mean(part(1)));
        if (count < 2) return std::numeric_limits<double>::quiet_NaN();
        const auto residual = part(1), sum = part(2), squares = part(3);
        double total = 0;
        for (std::size_t c = 0; c < sum.size(); ++c) total += r2_of(count, residual[c], sum[c], squares[c]);
        return total / static_cast<double>(sum.size());
    }

private:
    std::vector<std::string> names_;
};

}  // namespace

std::unique_ptr<Callback> make_regression_metrics(RegressionMetricsOptions options) {
    const auto refuse = [](const std::string& text) { throw ConfigError("regression_metrics: metrics: " + text); };
    if (options.metrics.empty()) refuse(fmt::format("nothing is measured; name some of {}", fmt::join(kMetrics, ", ")));
    for (const std::string& metric : options.metrics) {
        if (std::ranges::find(kMetrics, metric) == kMetrics.end())
            refuse(fmt::format("'{}' is not known{} (expected some of {})", metric, did_you_mean(metric, kMetrics), fmt::join(kMetrics, ", ")));
        if (std::ranges::count(options.metrics, metric) > 1) refuse(fmt::format("'{}' is named twice; name it once", metric));
    }
    auto measure = std::make_shared<RegressionMeasure>(std::move(options.metrics));
    return make_measure_callback("regression_metrics", std::move(measure), std::move(options.schedule));
}

std::unique_ptr<Callback> regression_metrics_from_json(OptionReader& reader) {
    RegressionMetricsOptions options;
    reader.texts("metrics", options.metrics, fmt::format("what is measured: some of {}", fmt::join(kMetrics, ", ")));
    read_schedule(reader, options.schedule);
    return make_regression_metrics(std::move(options));
}

}  // namespace torchbus
