#pragma once
/// What several ranks predicted, each its part of every batch, in the order of the data.

#include <vector>

#include <ATen/core/Tensor.h>

#include <torchbus/consensus.hpp>

namespace torchbus {

/// `own`: of each batch, in their order. The same on all ranks. Shapes: [N_r, …] each; [N, …] together. Rank: a collective.
at::Tensor gathered_outputs(const std::vector<at::Tensor>& own, Consensus& consensus);

}  // namespace torchbus
