#pragma once
/// NCCL, behind a library that is loaded where ranks have CUDA devices, and only there.

#include <chrono>
#include <string>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace torchbus {

/// Of one rank, and its device.
struct NcclPlace {
    c10::intrusive_ptr<c10d::Store> store;
    int rank = 0, world_size = 1;
    c10::Device device;
    std::chrono::milliseconds timeout;  ///< of a collective, after which c10d ends the process
};

/// What the library offers: torchbus_nccl_module() returns it.
struct NcclModule {
    const char* torchbus_version;
    /// Rank: a collective. Throws: c10::Error where ranks cannot be connected.
    c10::intrusive_ptr<c10d::Backend> (*make_group)(const NcclPlace& place);
    std::string (*flight_record)();  ///< JSON, of all collectives that c10d remembers
};

/// Loads the library, the first time. Requires: CUDA's libraries are loaded.
/// Throws: ConfigError where it is missing, as torchbus was built without NCCL, or cannot be loaded.
const NcclModule& load_nccl();

}  // namespace torchbus
