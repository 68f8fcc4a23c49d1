#pragma once
#include <cstdint>
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Ends the run as failed when a loss is NaN or infinite. In training the update of that loss is not made, so the weights
/// are still those of the last finite one; an evaluation is looked at when its split is over.
/// Listens: ForwardEnd and EvalEpochEnd (observers), GradientsReady (interceptor, phases `inspect` and `decide`). Reads: loss.
/// Syncs: on a device, one number every `check_every` updates and one a split; on the CPU every loss is looked at.
struct TerminateOnNanOptions {
    std::int64_t check_every = 50;  ///< updates between two looks, where the loss lies on a device; ≥ 1
};
std::unique_ptr<Callback> make_terminate_on_nan(TerminateOnNanOptions options = {});

}  // namespace torchbus
