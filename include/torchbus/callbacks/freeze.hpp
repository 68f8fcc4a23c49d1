#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Parameters that are trained for a part of the run. A parameter belongs to the first group that names it.
struct FreezeGroup {
    std::vector<std::string> names;                  ///< patterns of parameter names: `*` any characters, `?` one
    std::optional<Interval> unfreeze_at = {};        ///< frozen until this position of the run; nothing: from the start trained, or never
    std::optional<Interval> freeze_at = {};          ///< frozen from this position on, e.g. "3epoch"
    double learning_rate_factor = 1;                 ///< > 0, of the rate of the optimizer's group that it lay in
};

/// Keeps parameters as they are by name, and trains groups of layers for a part of the run: gradual unfreezing.
/// What is frozen requires no gradient, gets none, and is left alone by the optimizer. It takes effect where an epoch or a
/// step starts, is announced by ParametersChanged, and follows from the position alone: a resumed run is the same.
/// A skipped update does not bring a position in steps nearer; epochs and samples go on.
/// A group with a learning-rate factor becomes a parameter group of its own behind the optimizer's, before schedules
/// take their base rates. On detach, requires_grad and the optimizer's groups are what they were.
/// Batch norm: with `batch_norm`, a layer whose running statistics are named (backbone.* names backbone.1.running_mean)
/// is in evaluation mode while frozen: it normalises by its statistics and leaves them as they are. A model whose
/// layers cannot be set apart (ModelInterface::set_layer_training) keeps the statistics, but normalises by the batch.
/// Listens: RunConfigured (interceptor: parameter groups), TrainEpochStart and TrainStepStart (observers), ForwardEnd
/// and EvalEpochStart (observers, with `batch_norm`). Writes: learning_rate, where a factor is not 1.
/// Publishes: nothing. Source: gradual unfreezing: Howard and Ruder 2018, arXiv:1801.06146.
struct FreezeOptions {
    std::vector<std::string> names = {};              ///< frozen for the whole run
    std::vector<FreezeGroup> groups = {};
    bool batch_norm = true;               ///< whether batch norm is frozen with its layer
};
std::unique_ptr<Callback> make_freeze(FreezeOptions options = {});

}  // namespace torchbus
