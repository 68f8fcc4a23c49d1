#pragma once
/// Devices beside the CPU: which there are, and what their memory holds.

#include <cstdint>
#include <string>
#include <string_view>

#include <c10/core/Device.h>

namespace torchbus {

/// The device that a text names:
/// - "cpu";
/// - "cuda:1", by its number, or "cuda": of several processes of a machine each takes that of its `local_rank`;
/// - "auto": as "cuda" where a CUDA device can be used, else "cpu";
/// - another accelerator that LibTorch knows in this process, such as "xpu", or "meta", which has shapes only.
/// CUDA's libraries are loaded when a CUDA device is asked for the first time, and not before: a program that asks for none
/// runs where there are none. LibTorch looks for CUDA once, so this must come before torch::manual_seed and the like.
/// Throws: ConfigError that begins with `where`: for a text that is no device, libraries or a driver that are missing, a number
/// above those that there are, and libraries that come too late.
c10::Device device_from_text(std::string_view text, int local_rank, std::string_view where);

/// CUDA as this process finds it, once its libraries are loaded, or why they are not.
struct CudaStatus {
    int devices = 0;
    std::string against;  ///< why none can be used, where there are none
};
CudaStatus cuda_status();

/// Whether it computes on streams, in memory of its own.
bool is_accelerator(c10::Device device);

/// Makes an accelerator the current device of this thread, and puts the former one back. Of other devices there is no current one.
class CurrentDevice {
public:
    explicit CurrentDevice(c10::Device device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

private:
    c10::DeviceIndex former_ = -1;
};

/// Of a device's memory, in bytes.
struct DeviceMemory {
    std::int64_t allocated = 0, peak = 0;  ///< by tensors of this process: now, and at most since it began
    std::int64_t reserved = 0;             ///< and kept for tensors to come
    std::int64_t free = 0, total = 0;      ///< of the device, whoever uses it
};
/// Requires: an accelerator that LibTorch knows in this process.
DeviceMemory memory_of(c10::Device device);

}  // namespace torchbus
