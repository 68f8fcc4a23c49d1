#include <algorithm>
#include <charconv>
#include <cmath>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "query.hpp"
#include "shown_runs.hpp"

namespace torchbus {
namespace {

constexpr std::size_t kMostNames = 64;
constexpr std::size_t kMostPoints = 4000;  // of a curve

std::vector<std::string> words(std::string_view list) {
    std::vector<std::string> words;
    while (!list.empty()) {
        const std::string_view word = list.substr(0, list.find(','));
        list.remove_prefix(std::min(word.size() + 1, list.size()));
        if (!word.empty()) words.emplace_back(word);
    }
    return words;
}

double number_of_query(const std::string& name, const std::string& value) {
    double number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc() || end != value.data() + value.size() || !std::isfinite(number)) throw ConfigError(fmt::format("query: {}: '{}' is no number", name, value));
    return number;
}

}  // namespace

CurvesQuery curves_query(std::string_view query) {
    CurvesQuery wanted;
    for (const auto& [name, value] : parse_query(query)) {
        if (name == "names") wanted.names = words(value);
        else if (name == "runs") wanted.runs = words(value);
        else if (name == "x") wanted.axis = value;
        else if (name == "from") wanted.range.from = number_of_query(name, value);
        else if (name == "to") wanted.range.to = number_of_query(name, value);
        else if (name == "points") wanted.range.points = static_cast<std::size_t>(std::clamp(number_of_query(name, value), 2.0, static_cast<double>(kMostPoints)));
        else throw ConfigError(fmt::format("query: '{}' is not known; give names, x, points, from, to and runs", name));
    }
    const auto axis = curve_axis(wanted.axis);
    if (!axis) throw ConfigError(fmt::format("query: x: '{}' is no axis; give step, samples, seconds or epoch", wanted.axis));
    if (wanted.names.empty() || wanted.names.size() > kMostNames) throw ConfigError(fmt::format("query: names: {} were found; give 1 to {}, as /runs has them", wanted.names.size(), kMostNames));
    wanted.range.axis = *axis;
    std::ranges::sort(wanted.names);
    wanted.names.erase(std::unique(wanted.names.begin(), wanted.names.end()), wanted.names.end());
    return wanted;
}

}  // namespace torchbus
