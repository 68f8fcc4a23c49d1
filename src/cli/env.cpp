#include <cstdio>

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <torchbus/device.hpp>
#include <torchbus/distributed/ranks.hpp>
#include <torchbus/distributed/world.hpp>
#include <torchbus/version.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {

/// Prints what a run would find here: a line each, for bug reports and scripts.
int env(const nlohmann::json&) {
    const CudaStatus cuda = cuda_status();  // first, before LibTorch is asked for CUDA
    const std::string nccl = against_nccl();
    const auto line = [](const char* name, const std::string& value) { std::printf("%s: %s\n", name, value.c_str()); };
    line("torchbus", std::string(kVersion));
    line("LibTorch", TORCH_VERSION);
    line("CPU", fmt::format("{} threads, {}", at::get_num_threads(), at::get_cpu_capability()));
    line("CUDA devices", cuda.against.empty() ? std::to_string(cuda.devices) : "0: " + cuda.against);
    for (int device = 0; device < cuda.devices; ++device) {
        const DeviceMemory memory = memory_of(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device)));
        line(fmt::format("cuda:{}", device).c_str(), fmt::format("{} of {} MiB free", memory.free >> 20, memory.total >> 20));
    }
    line("NCCL", nccl.empty() ? "can be used" : "cannot be used: " + nccl);
    const auto ranks = ranks_from_environment();
    line("rank", ranks ? fmt::format("{} of {}, local rank {}", ranks->rank, ranks->world_size, ranks->local_rank) : "none: one process");
    return 0;
}

}  // namespace torchbus::cli
