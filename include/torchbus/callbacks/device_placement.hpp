#pragma once
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Moves the model at the start of a run, and every batch before its forward, to one device.
/// Listens: RunConfigured (interceptor), BatchReady (interceptor). Writes: parameters, batch.
struct DevicePlacementOptions {
    std::string device = "cpu";  ///< "cpu", "cuda" or "cuda:N"
};
std::unique_ptr<Callback> make_device_placement(DevicePlacementOptions options = {});

}  // namespace torchbus
