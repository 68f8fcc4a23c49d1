#pragma once
/// New values of options of a callback at work, for Callback::change_option.

#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/interval.hpp>

namespace torchbus {

/// Throws: ConfigError for what is no number.
double changed_number(const nlohmann::json& value, std::string_view kind, std::string_view option);

/// A number or a text such as "100step". Throws: ConfigError for what is no interval, or is not positive.
Interval changed_interval(const nlohmann::json& value, std::string_view kind, std::string_view option);

}  // namespace torchbus
