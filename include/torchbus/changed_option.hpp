#pragma once
/// New values of options of a callback at work, for Callback::change_option.

#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <torchbus/interval.hpp>

namespace torchbus {

/// Throws: ConfigError for what is no number.
double changed_number(const nlohmann::json& value, std::string_view kind, std::string_view option);

/// Throws: ConfigError that names the options of this kind that can be changed.
[[noreturn]] void refuse_change(std::string_view kind, std::string_view option, const std::vector<std::string_view>& changeable = {});

/// Sets `interval`, the only option that can be changed, which is called `name`; `value` is a number or a text such as "100step".
/// Returns the value until now. Throws: ConfigError for another option, for what is no interval, or is not positive.
nlohmann::json change_interval(Interval& interval, std::string_view name, std::string_view kind, std::string_view option, const nlohmann::json& value);

/// Sets the one of `numbers` that is called `option`, once `require_valid` has taken the options as a whole. Returns the value
/// until now. Throws: ConfigError, also for an option that is not among them; the options are then as before.
template <class Options, class Require>
nlohmann::json change_number(Options& options, std::initializer_list<std::pair<std::string_view, double Options::*>> numbers, std::string_view kind,
                             std::string_view option, const nlohmann::json& value, const Require& require_valid) {
    for (const auto& [name, place] : numbers) {
        if (name != option) continue;
        Options changed = options;
        const double before = std::exchange(changed.*place, changed_number(value, kind, option));
        require_valid(changed);
        options = std::move(changed);
        return before;
    }
    std::vector<std::string_view> changeable;
    for (const auto& [name, place] : numbers) changeable.push_back(name);
    refuse_change(kind, option, changeable);
}

}  // namespace torchbus
