#include <torchbus/blackboard.hpp>

namespace torchbus {

void Blackboard::put(std::string_view name, Entry entry) {
    entry.publication = ++publications_;
    if (const auto known = values_.find(name); known != values_.end())
        known->second = std::move(entry);
    else
        values_.emplace(std::string(name), std::move(entry));
}

void Blackboard::publish(std::string_view name, double value) { put(name, {.value = value}); }

void Blackboard::publish_lazy(std::string_view name, std::function<double()> value) { put(name, {.compute = std::move(value)}); }

std::optional<double> Blackboard::number(std::string_view name) const {
    const auto known = values_.find(name);
    return known == values_.end() ? std::nullopt : std::optional(known->second.number());
}

void Blackboard::withdraw(std::string_view name) {
    if (const auto known = values_.find(name); known != values_.end()) values_.erase(known);
}

std::vector<std::string> Blackboard::names() const {
    std::vector<std::string> all;
    for (const auto& [name, entry] : values_) all.push_back(name);
    return all;
}

}  // namespace torchbus
