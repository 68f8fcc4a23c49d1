#pragma once
#include <cstdint>

namespace torchbus {

/// Batches of one epoch of the training data, by their place in its order.
struct BatchRange {
    std::int64_t epoch = 0;
    std::int64_t first = 0;
    std::int64_t count = 0;
    bool operator==(const BatchRange&) const = default;
    bool overlaps(const BatchRange& other) const {
        return epoch == other.epoch && first < other.first + other.count && other.first < first + count;
    }
};

}  // namespace torchbus
