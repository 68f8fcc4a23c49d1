#include "generators.hpp"

#include <map>
#include <string>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

/// Of every device, by its name.
std::map<std::string, at::Generator> default_generators() {
    std::map<std::string, at::Generator> generators = {{"cpu", at::detail::getDefaultCPUGenerator()}};
    if (!at::globalContext().hasCUDA()) return generators;
    for (c10::DeviceIndex index = 0; index < static_cast<c10::DeviceIndex>(at::detail::getCUDAHooks().deviceCount()); ++index)
        generators.emplace(fmt::format("cuda:{}", index), at::globalContext().defaultGenerator(at::Device(at::kCUDA, index)));
    return generators;
}

}  // namespace

SavedState save_generators() {
    SavedState state;
    for (auto& [device, generator] : default_generators()) {
        const std::lock_guard lock(generator.mutex());
        state.tensors.emplace(device, generator.get_state());
    }
    return state;
}

void load_generators(const SavedState& state) {
    auto own = default_generators();
    for (const auto& [device, saved] : state.tensors) {
        const auto generator = own.find(device);
        if (generator == own.end()) {
            warn(fmt::format("the random generator of {} was saved, and there is no such device here; what was drawn on it is drawn from another one", device));
            continue;
        }
        const std::lock_guard lock(generator->second.mutex());
        generator->second.set_state(saved);
    }
}

}  // namespace torchbus
