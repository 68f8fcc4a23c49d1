#pragma once
/// What a run is going to do. Subscribers may change it at RunConfigured, and only there.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <c10/core/Device.h>

#include <torchbus/position.hpp>

namespace torchbus {

/// One pass over one set of data.
struct SplitPlan {
    std::string name;                         ///< "train", "eval", or the user's name of an evaluation split
    Mode mode = Mode::Train;
    std::optional<std::int64_t> batches;      ///< as the loader tells; unknown for data without a length
    std::optional<std::int64_t> max_batches = {};               ///< a limit set by a subscriber
    std::optional<std::int64_t> max_batches_within_epoch = {};  ///< … for evaluations between two steps alone

    /// Batches after which a pass ends.
    std::optional<std::int64_t> limit(bool within_epoch) const {
        if (!within_epoch || !max_batches_within_epoch) return max_batches;
        return max_batches && *max_batches < *max_batches_within_epoch ? max_batches : max_batches_within_epoch;
    }
    /// Batches that a pass will deliver, where known.
    std::optional<std::int64_t> length() const {
        if (batches && max_batches) return *batches < *max_batches ? batches : max_batches;
        return batches ? batches : max_batches;
    }
};

/// The whole run: epochs, the size of a window, and the splits (training first, if there is any).
struct RunPlan {
    std::optional<std::int64_t> epochs;
    std::optional<std::int64_t> max_steps;      ///< the run stops after this many updates
    std::int64_t micro_batches_per_step = 1;    ///< size of a window; the last one of an epoch may be shorter
    std::int64_t max_passes = 4;                ///< how often `again` may repeat one window
    std::vector<SplitPlan> splits;
    std::vector<std::string> views = {"training"};  ///< weights views that an evaluation goes through
    c10::Device device = c10::kCPU;             ///< where loaders bring batches, while those before are computed with
    std::uint64_t seed = 0;  ///< of the data's order, which is settled by now: for reading

    /// Whether any split serves `mode`.
    bool has(Mode mode) const {
        for (const SplitPlan& split : splits)
            if (split.mode == mode) return true;
        return false;
    }
};

}  // namespace torchbus
