#pragma once
/// The metrics of a run, kept in memory.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace torchbus {

/// The published metrics at the end of one epoch, after its evaluation.
struct EpochRecord {
    std::int64_t epoch = 0;  ///< epochs finished, 1 for the first
    std::int64_t step = 0;   ///< updates made
    std::map<std::string, double, std::less<>> metrics;
};

class RunHistory {
public:
    void add(EpochRecord record) { epochs_.push_back(std::move(record)); }
    void clear() { epochs_.clear(); }
    const std::vector<EpochRecord>& epochs() const { return epochs_; }
    /// The latest value of a metric, or nothing.
    std::optional<double> latest(std::string_view metric) const {
        for (auto record = epochs_.rbegin(); record != epochs_.rend(); ++record)
            if (const auto found = record->metrics.find(metric); found != record->metrics.end()) return found->second;
        return std::nullopt;
    }

private:
    std::vector<EpochRecord> epochs_;
};

}  // namespace torchbus
