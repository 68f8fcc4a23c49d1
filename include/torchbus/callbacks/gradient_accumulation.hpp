#pragma once
#include <cstdint>
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Makes one update of several batches, without needing the memory of one large batch.
/// Listens: RunConfigured (interceptor). Writes: the plan's window size; nothing else: the loader delivers windows,
/// and each batch's loss is weighed by its share of the window, the short last one of an epoch included.
struct GradientAccumulationOptions {
    std::int64_t micro_batches = 1;  ///< batches an update, ≥ 1
};
std::unique_ptr<Callback> make_gradient_accumulation(GradientAccumulationOptions options);

}  // namespace torchbus
