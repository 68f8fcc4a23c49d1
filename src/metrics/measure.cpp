#include <torchbus/metrics/measure.hpp>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/error.hpp>

namespace torchbus {

void Statistics::merge(const Statistics& other) {
    if (other.empty()) return;
    if (!empty() && width != other.width)
        throw ConfigError(fmt::format("statistics of {} classes cannot be merged with those of {}; a metric needs one number of classes", width, other.width));
    width = other.width;
    totals = totals.defined() ? totals + other.totals : other.totals.clone();
    scores.insert(scores.end(), other.scores.begin(), other.scores.end());
    targets.insert(targets.end(), other.targets.begin(), other.targets.end());
}

std::vector<double> sums_of(const at::Tensor& totals, std::int64_t from, std::int64_t count) {
    const at::Tensor part = totals.narrow(0, from, count).to(at::kCPU, at::kDouble).contiguous();
    const double* begin = part.const_data_ptr<double>();
    return {begin, begin + count};
}

}  // namespace torchbus
