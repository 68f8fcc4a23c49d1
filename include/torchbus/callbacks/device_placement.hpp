#pragma once
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Moves the model at the start of a run, and every batch before its forward, to one device. Loaders bring batches there ahead,
/// from pinned memory and on a stream of their own; what comes by on another device is moved when it is ready.
/// Of several processes on a machine each takes a CUDA device of its own. CUDA's libraries are loaded here, where one is asked for:
/// before anybody else asks LibTorch for CUDA, as torch::manual_seed does.
/// Listens: RunConfigured (interceptor), BatchReady (interceptor), RunClosed. Writes: parameters, batch. Thread: the device is the
/// current one of the training thread during a run.
struct DevicePlacementOptions {
    std::string device = "cpu";  ///< "cpu", "cuda", "cuda:N" or "auto"; see device_from_text()
};
std::unique_ptr<Callback> make_device_placement(DevicePlacementOptions options = {});

}  // namespace torchbus
