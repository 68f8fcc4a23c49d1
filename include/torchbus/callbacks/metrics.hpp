#pragma once
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Mean loss and accuracy over an epoch, for training and every evaluation split and weights view.
/// Listens: TrainEpochStart, EvalEpochStart, ForwardEnd, TrainEpochEnd, EvalEpochEnd. Reads: batch, output, loss.
/// Publishes: train.loss, train.accuracy, eval.loss, eval.accuracy; with the name of a split, a view or an update in
/// between where it is not the default. While an epoch runs they are the means so far.
/// Accuracy: share of samples whose largest output is that of their target. Shapes: output [N, C], targets [N].
/// Rank: sums over ranks at the end of an epoch. Syncs: never; sums stay on the device until they are read.
struct MetricsOptions {
    bool loss = true;
    bool accuracy = false;
};
std::unique_ptr<Callback> make_metrics(MetricsOptions options = {});

}  // namespace torchbus
