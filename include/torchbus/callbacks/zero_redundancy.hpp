#pragma once
/// The state of an optimizer, divided among ranks.

#include <memory>

#include <torchbus/callback.hpp>
#include <torchbus/distributed/world.hpp>

namespace torchbus {

struct ZeroRedundancyOptions {
    std::shared_ptr<World> world = {};  ///< default: that of the environment; without it nothing is done
    WorldOptions waiting = {};          ///< where it is joined here
};

/// ZeRO stage 1, beside data_parallel: each rank updates its share of the parameters, keeps the optimizer's state of these
/// alone, and sends them to the others after each update. GradientsView says which those are: the optimizer is shown their
/// gradients alone, and a norm that somebody asks for is measured by the owners, one exchange of a number a parameter.
/// Gradients are whole on every rank, and updates have the bits of undivided ones. A training state holds the state of all
/// ranks, put together, and goes on with any number of them.
/// For optimizers that skip parameters without a gradient and make their state when they first update: LibTorch's and this
/// library's are. Parameters are dealt out by size; the largest lies on one rank as a whole.
/// Source: Rajbhandari et al. 2020, arXiv:1910.02054, P_os. Throws: DistributedError where the world cannot be joined.
std::unique_ptr<Callback> make_zero_redundancy(ZeroRedundancyOptions options = {});

}  // namespace torchbus
