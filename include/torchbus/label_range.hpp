#pragma once
/// Labels that are no class of the model.

#include <cstdint>
#include <exception>

#include <torchbus/batch.hpp>

namespace torchbus {

/// Looks at integer targets [N, …] of an output [N, C, …]; others are left alone. Syncs: on a device.
/// Throws: DataError that names the first label outside [0, C), its sample, and what to do.
void require_labels_in_range(const at::Tensor& output, const Batch& batch, std::int64_t ignore_index = -100);

/// Calls `loss` on an output and a batch; where it fails because a label is no class, the error says so.
template <class ComputeLoss>
auto with_labels_explained(ComputeLoss&& loss, const at::Tensor& output, const Batch& batch, std::int64_t ignore_index = -100) {
    try {
        return loss();
    } catch (const std::exception&) {
        require_labels_in_range(output, batch, ignore_index);
        throw;
    }
}

}  // namespace torchbus
