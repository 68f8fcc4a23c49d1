#pragma once
/// What LibTorch's batch norm computes, over the samples of all ranks.

#include <cstdint>
#include <memory>

#include <torchbus/distributed/world.hpp>

namespace torchbus {

/// While it lives, batch norm in training mode on this thread takes mean and variance over all ranks, and so does its
/// backward later. Rank: a collective for each batch norm, forward and backward; on all ranks alike.
/// Thread: one at a time on a thread.
class BatchNormOverRanks {
public:
    /// Of inputs whose first dimension counts samples only the first `valid` are in mean and variance.
    struct Samples {
        std::int64_t all = 0, valid = 0;
    };
    BatchNormOverRanks(std::shared_ptr<World> world, Samples samples);
    ~BatchNormOverRanks();
    BatchNormOverRanks(const BatchNormOverRanks&) = delete;
    BatchNormOverRanks& operator=(const BatchNormOverRanks&) = delete;

    struct State;

private:
    std::unique_ptr<State> state_;
};

}  // namespace torchbus
