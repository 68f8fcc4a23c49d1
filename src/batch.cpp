#include <torchbus/batch.hpp>

#include <algorithm>

namespace torchbus {

at::Tensor& NamedTensors::operator[](std::string_view name) {
    const auto found = std::ranges::find(entries_, name, [](const auto& entry) -> std::string_view { return entry.first; });
    if (found != entries_.end()) return found->second;
    return entries_.emplace_back(std::string(name), at::Tensor()).second;
}

const at::Tensor* NamedTensors::find(std::string_view name) const {
    const auto found = std::ranges::find(entries_, name, [](const auto& entry) -> std::string_view { return entry.first; });
    return found == entries_.end() ? nullptr : &found->second;
}

}  // namespace torchbus
