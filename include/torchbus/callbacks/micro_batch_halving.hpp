#pragma once
#include <cstdint>
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Halves the micro-batches of a window that runs out of memory and tries it again, until it fits. The update is that of
/// the whole window: parts weigh what their samples weigh, so gradients are equal to rounding, unless layers look
/// across the batch (batch norm sees its parts). Metrics and counters take every sample once; generators and the
/// model's buffers are as at the start of the step before it is tried again, and BatchReady fires for the new parts.
/// For one process only: it is refused with several ranks. Errors other than out of memory still fail the run.
/// Costs a copy of the CPU's generator state (5 kB) and of the model's buffers at every step.
/// Listens: RunConfigured, TrainStepStart and MicroBatchFailed (interceptors). Reads: parameters. Writes: window.
/// Publishes: micro_batch_parts, where it is not 1. Announces each halving by OptionChanged.
struct MicroBatchHalvingOptions {
    std::int64_t min_samples = 1;  ///< ≥ 1: parts are not made smaller; the run fails instead
    bool keep = true;              ///< later windows are divided from the start
};
std::unique_ptr<Callback> make_micro_batch_halving(MicroBatchHalvingOptions options = {});

}  // namespace torchbus
