#include <torchbus/changed_option.hpp>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

namespace torchbus {

double changed_number(const nlohmann::json& value, std::string_view kind, std::string_view option) {
    if (!value.is_number()) throw ConfigError(fmt::format("{}: {}: {} is not a number", kind, option, value.dump()));
    return value.get<double>();
}

Interval changed_interval(const nlohmann::json& value, std::string_view kind, std::string_view option) {
    if (!value.is_number() && !value.is_string())
        throw ConfigError(fmt::format("{}: {}: {} is not an interval; give e.g. \"100step\"", kind, option, value.dump()));
    const Interval interval = value.is_string() ? parse_interval(value.get<std::string>()) : Interval(value.get<double>(), Interval::Unit::Natural);
    if (!(interval.amount > 0)) throw ConfigError(fmt::format("{}: {}: {} is not positive; give e.g. \"100step\"", kind, option, to_string(interval)));
    return interval;
}

}  // namespace torchbus
