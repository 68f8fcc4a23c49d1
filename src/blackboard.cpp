#include <torchbus/blackboard.hpp>

namespace torchbus {

void Blackboard::publish(std::string_view name, double value) {
    publish_lazy(name, [value] { return value; });
}

void Blackboard::publish_lazy(std::string_view name, std::function<double()> value) {
    if (const auto known = values_.find(name); known != values_.end())
        known->second = std::move(value);
    else
        values_.emplace(std::string(name), std::move(value));
}

std::optional<double> Blackboard::number(std::string_view name) const {
    const auto known = values_.find(name);
    return known == values_.end() ? std::nullopt : std::optional(known->second());
}

void Blackboard::withdraw(std::string_view name) {
    if (const auto known = values_.find(name); known != values_.end()) values_.erase(known);
}

std::vector<std::string> Blackboard::names() const {
    std::vector<std::string> all;
    for (const auto& [name, value] : values_) all.push_back(name);
    return all;
}

}  // namespace torchbus
