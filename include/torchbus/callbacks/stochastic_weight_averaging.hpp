#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Keeps the equal average of the weights at regular points from `start` on, and evaluates it beside them as the weights
/// view `view`: average ← average + (weights − average) / (n + 1). The first one is taken where `start` is reached.
/// Until then the view shows the trained weights. The very bits of these are put back when the view is left.
/// A skipped update counts for nothing where an interval is in steps; epochs and samples go on.
///
/// Batch norm: running statistics belong to the weights that made them, and an average of weights has none. A callback
/// cannot go through the data, so it keeps the last `batches` training batches (from `start` on, as they went forward,
/// cloned). When the view is shown and its average is new, these go through the averaged weights in training mode,
/// without gradients and without autocast, and each statistic becomes the equal mean of theirs over the batches (and
/// over ranks): what torch.optim.swa_utils.update_bn computes, of these batches alone. A model without running
/// statistics keeps no batches and costs no forward. Other buffers are the model's own. The default generators are left
/// as they were, dropout notwithstanding. The state holds the kept batches, so that a resumed run is equal.
/// Listens: RunConfigured (interceptor: the plan's views), TrainEpochStart, ForwardEnd, OptimizerStepEnd, TrainEpochEnd and
/// WeightsViewChanged (observers). Writes: plan.views. Holds the weights view `view`. Rank: a collective for batch norm.
/// Source: Izmailov et al. 2018, arXiv:1803.05407, algorithm 1.
struct StochasticWeightAveragingOptions {
    Interval start = {0.75, Interval::Unit::Run};
    Interval every = {1, Interval::Unit::Epoch};  ///< > 0
    std::int64_t batches = 16;                    ///< kept for batch norm; 0: the view shows the model's statistics
    std::string view = "swa";
    bool evaluate = true;                         ///< adds the view to the plan, so that evaluations go through it
};
std::unique_ptr<Callback> make_stochastic_weight_averaging(StochasticWeightAveragingOptions options = {});

}  // namespace torchbus
