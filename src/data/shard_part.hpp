#pragma once
/// How ranks share the samples of a batch.

#include <algorithm>
#include <cstdint>

#include <torchbus/consensus.hpp>

namespace torchbus {

struct ShardPart {
    std::int64_t begin, count;
    std::int64_t valid;  ///< the first of them; the others are read again, to fill it up
};

/// A shard's of `total` samples. Where they are not divided evenly, a shard without any takes one of another's, which counts nothing.
inline ShardPart part_of_shard(const Shard& shard, std::int64_t total) {
    const auto [index, count, even] = shard;
    if (even) {
        const std::int64_t each = (total + count - 1) / count, begin = index * each;
        return {begin, each, std::clamp<std::int64_t>(total - begin, 0, each)};
    }
    const std::int64_t each = total / count, over = total % count;
    const std::int64_t own = each + (index < over ? 1 : 0);
    return {std::min(index * each + std::min(index, over), total - 1), std::max<std::int64_t>(1, own), own};
}

}  // namespace torchbus
