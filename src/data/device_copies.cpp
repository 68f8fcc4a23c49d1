#include "device_copies.hpp"

#include <ATen/ops/pin_memory.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace torchbus {

DeviceCopies::DeviceCopies(c10::Device device) : device_(device), stream_(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device)) {}

c10::Event DeviceCopies::begin(Batch& batch) const {
    const c10::StreamGuard on_own_stream(stream_);
    batch.for_each_tensor([this](at::Tensor& tensor) {
        if (tensor.device() == device_) return;
        // From other memory the copy would wait for the host. Pinned memory is kept by its allocator until the copy is done.
        const at::Tensor source = tensor.is_cpu() && !tensor.is_pinned() ? tensor.pin_memory() : tensor;
        tensor = source.to(device_, /*non_blocking=*/true);
    });
    c10::Event arrived(device_.type());
    arrived.record(stream_);
    return arrived;
}

void DeviceCopies::await(const c10::Event& arrived, Batch& batch) const {
    const c10::Stream current = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
    arrived.block(current);
    // Their memory is that of the other stream, which may not take it back before this one is done with it.
    batch.for_each_tensor([&](at::Tensor& tensor) { tensor.record_stream(current); });
}

}  // namespace torchbus
