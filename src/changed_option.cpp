#include <torchbus/changed_option.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

Interval changed_interval(const nlohmann::json& value, std::string_view kind, std::string_view option) {
    if (!value.is_number() && !value.is_string())
        throw ConfigError(fmt::format("{}: {}: {} is not an interval; give e.g. \"100step\"", kind, option, value.dump()));
    const Interval interval = value.is_string() ? parse_interval(value.get<std::string>()) : Interval(value.get<double>(), Interval::Unit::Natural);
    if (!(interval.amount > 0)) throw ConfigError(fmt::format("{}: {}: {} is not positive; give e.g. \"100step\"", kind, option, to_string(interval)));
    return interval;
}

}  // namespace

double changed_number(const nlohmann::json& value, std::string_view kind, std::string_view option) {
    if (!value.is_number()) throw ConfigError(fmt::format("{}: {}: {} is not a number", kind, option, value.dump()));
    return value.get<double>();
}

void refuse_change(std::string_view kind, std::string_view option, const std::vector<std::string_view>& changeable) {
    const std::string others = changeable.empty() ? "none of its options can" : fmt::format("those that can: {}", fmt::join(changeable, ", "));
    throw ConfigError(fmt::format("{}: the option '{}' cannot be changed while a run is under way ({})", kind, option, others));
}

nlohmann::json change_interval(Interval& interval, std::string_view name, std::string_view kind, std::string_view option, const nlohmann::json& value) {
    if (option != name) refuse_change(kind, option, {name});
    return to_string(std::exchange(interval, changed_interval(value, kind, option)));
}

}  // namespace torchbus
