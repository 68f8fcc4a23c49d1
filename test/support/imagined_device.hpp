#pragma once
// An accelerator in the memory of the host, under LibTorch's key for devices of others: it has streams and events, copies to it
// take until somebody waits for them, and what computes before that computes with wrong numbers.
#include <cstdint>

#include <c10/core/Device.h>

namespace torchbus::test {

struct DeviceLog {
    std::int64_t copies = 0;              ///< to the device
    std::int64_t copies_of_unpinned = 0;  ///< of them, which had the host wait
    std::int64_t on_current_stream = 0;   ///< of them, which come after all that was computed before
    std::int64_t waits = 0;               ///< of a stream for an event
    std::int64_t recorded = 0;            ///< tensors that another stream uses
};

/// Null where LibTorch knows a real accelerator: there can be only one in a process.
class ImaginedDevice {
public:
    static ImaginedDevice* get();
    c10::Device device() const { return {c10::DeviceType::PrivateUse1, 0}; }
    /// Since the last call.
    DeviceLog take_log();
};

}  // namespace torchbus::test
