#pragma once
/// New values of options of a callback at work, for Callback::change_option.

#include <initializer_list>
#include <optional>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include <torchbus/interval.hpp>

namespace torchbus {

/// Throws: ConfigError for what is no number.
double changed_number(const nlohmann::json& value, std::string_view kind, std::string_view option);

/// A number or a text such as "100step". Throws: ConfigError for what is no interval, or is not positive.
Interval changed_interval(const nlohmann::json& value, std::string_view kind, std::string_view option);

/// Sets the number that is called `option`, where it is among `numbers`, once `require_valid` has taken the options as a whole.
/// Returns the value until now, or nothing where it is called otherwise. Throws: ConfigError; the options are then as before.
template <class Options, class Require>
std::optional<nlohmann::json> change_number(Options& options, std::initializer_list<std::pair<std::string_view, double Options::*>> numbers, std::string_view kind,
                                            std::string_view option, const nlohmann::json& value, const Require& require_valid) {
    for (const auto& [name, place] : numbers) {
        if (name != option) continue;
        Options changed = options;
        const double before = std::exchange(changed.*place, changed_number(value, kind, option));
        require_valid(changed);
        options = std::move(changed);
        return before;
    }
    return std::nullopt;
}

}  // namespace torchbus
