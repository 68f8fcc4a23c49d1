#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include <nlohmann/json.hpp>

namespace torchbus {

/// What is usual of one number: the median of its last values, or an exponential moving average of all.
class UsualValue {
public:
    /// `window`: how many values are the last ones; the newest has the weight 2 / (window + 1) in the average.
    void add(double value, std::int64_t window) {
        const double share = 2.0 / (static_cast<double>(window) + 1.0);
        average_ = count_ == 0 ? value : average_ + share * (value - average_);
        ++count_;
        last_.push_back(value);
        if (last_.size() > static_cast<std::size_t>(window)) last_.erase(last_.begin());
    }
    std::int64_t count() const { return count_; }
    double average() const { return average_; }
    double median() const {
        if (last_.empty()) return average_;
        std::vector<double> sorted = last_;
        const std::size_t half = sorted.size() / 2;
        std::ranges::nth_element(sorted, sorted.begin() + static_cast<std::ptrdiff_t>(half));
        if (sorted.size() % 2 == 1) return sorted[half];
        return (sorted[half] + *std::max_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(half))) / 2;
    }
    nlohmann::json saved() const { return {{"count", count_}, {"average", average_}, {"last", last_}}; }
    void load(const nlohmann::json& saved) {
        count_ = saved.at("count");
        average_ = saved.at("average");
        saved.at("last").get_to(last_);
    }

private:
    std::int64_t count_ = 0;
    double average_ = 0;
    std::vector<double> last_;
};

}  // namespace torchbus
