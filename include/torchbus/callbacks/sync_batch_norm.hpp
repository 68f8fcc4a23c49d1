#pragma once
/// Batch norm over the samples of all ranks.

#include <memory>

#include <torchbus/callback.hpp>
#include <torchbus/distributed/world.hpp>

namespace torchbus {

struct SyncBatchNormOptions {
    std::shared_ptr<World> world = {};  ///< default: that of the environment; without it nothing is done
    WorldOptions waiting = {};          ///< where it is joined here
};

/// In training, every batch norm of the model takes mean and variance over the valid samples of all ranks, and sends gradients
/// back through both: the model is that of one process on the whole batch. No module is converted: what LibTorch calls batch
/// norm is answered here while forward runs, whoever calls it, TorchScript included (whose profiling executor is turned off).
/// Instance norm is left as it is. A rank's only sample is given to the model twice, and counts once: LibTorch's modules refuse
/// a single value a channel.
/// Cost: two sums over ranks for each batch norm, one forward and one backward.
/// Throws: DistributedError where the world cannot be joined.
std::unique_ptr<Callback> make_sync_batch_norm(SyncBatchNormOptions options = {});

}  // namespace torchbus
