#pragma once
#include <cstdint>
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Ends the run as failed when a training loss is NaN or infinite. The update of that loss is not made, so the weights
/// are still those of the last finite one.
/// Listens: ForwardEnd (observer), GradientsReady (interceptor, phase `decide`). Reads: loss.
/// Syncs: on a device, one number every `check_every` updates; on the CPU every loss is looked at.
struct TerminateOnNanOptions {
    std::int64_t check_every = 50;  ///< updates between two looks, where the loss lies on a device; ≥ 1
};
std::unique_ptr<Callback> make_terminate_on_nan(TerminateOnNanOptions options = {});

}  // namespace torchbus
