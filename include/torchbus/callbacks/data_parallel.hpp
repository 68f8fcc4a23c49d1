#pragma once
/// One model on several processes: each trains on a part of every batch, and all make the same update.

#include <memory>

#include <torchbus/callback.hpp>
#include <torchbus/distributed/gradient_reducer.hpp>

namespace torchbus {

struct DataParallelOptions {
    /// Default: as the environment says, set by `torchbus launch`, torchrun or by hand; without it this is one process, and
    /// nothing is done.
    std::shared_ptr<World> world = {};
    GradientReducerOptions gradients = {};
    /// Whether the weights of windows are summed before every step. Otherwise they are where tokens count, and known without
    /// asking where samples do; what changes them on their way is then refused.
    bool sum_weights = false;
    bool share_buffers = true;  ///< rank 0's buffers go to all ranks after every window, so that models stay equal
    WorldOptions waiting = {};  ///< where no world is given
};

/// Sends rank 0's parameters and buffers to all at the start, sums window weights and what is counted before a step, and
/// gradients over ranks in the last backward of its window: an update is that of one process on the whole batch. Random
/// generators of the other ranks begin elsewhere than rank 0's. Brings the run's Consensus.
/// Throws: DistributedError where the world cannot be joined; ConfigError for a size that is not positive.
std::unique_ptr<Callback> make_data_parallel(DataParallelOptions options = {});

}  // namespace torchbus
