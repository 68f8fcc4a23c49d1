#include "changed_options.hpp"

namespace torchbus {

void ChangedOptions::note(const std::string& id, const std::string& option, const nlohmann::json& before, const nlohmann::json& now) {
    if (!first_[id].contains(option)) first_[id][option] = before;
    now_[id][option] = now;
}

void ChangedOptions::forget(const std::string& id) {
    first_.erase(id);
    now_.erase(id);
}

void ChangedOptions::restore(const nlohmann::json& saved, const std::function<void(const std::string&, const std::string&, const nlohmann::json&)>& change) {
    nlohmann::json wanted = first_;
    for (const auto& [id, options] : saved.items())
        for (const auto& [option, value] : options.items()) wanted[id][option] = value;
    for (const auto& [id, options] : wanted.items())
        for (const auto& [option, value] : options.items()) change(id, option, value);
    now_ = saved;
}

}  // namespace torchbus
