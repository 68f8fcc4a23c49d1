#pragma once
/// Brings batches to a device while those before are computed with.

#include <optional>

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <torchbus/batch.hpp>

namespace torchbus {

/// Copies from pinned memory, on a stream of its own. Thread: any, several at a time.
class DeviceCopies {
public:
    /// Requires: an accelerator that LibTorch knows in this process.
    explicit DeviceCopies(c10::Device device);
    /// Replaces the tensors of a batch by copies that are under way.
    /// Returns: what comes to pass when they have arrived.
    c10::Event begin(Batch& batch) const;
    /// What the calling thread computes from here on, on its current stream, comes after the copies.
    void await(const c10::Event& arrived, Batch& batch) const;

private:
    c10::Device device_;
    c10::Stream stream_;
};

}  // namespace torchbus
