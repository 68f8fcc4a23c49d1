#pragma once
/// Options of callbacks that were changed while they were at work.

#include <functional>
#include <string>

#include <nlohmann/json.hpp>

namespace torchbus {

class ChangedOptions {
public:
    void note(const std::string& id, const std::string& option, const nlohmann::json& before, const nlohmann::json& now);
    /// Of a callback that is gone: another of that name has its own.
    void forget(const std::string& id);
    /// What was changed, by id and option, as it is now.
    const nlohmann::json& now() const { return now_; }
    /// Has `change` make it as in `saved`: what was not changed then gets back what it was first.
    void restore(const nlohmann::json& saved, const std::function<void(const std::string& id, const std::string& option, const nlohmann::json& value)>& change);

private:
    nlohmann::json first_ = nlohmann::json::object(), now_ = nlohmann::json::object();
};

}  // namespace torchbus
