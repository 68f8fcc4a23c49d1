#include "field_difference.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

#include <fmt/format.h>

#include "shown_text.hpp"

namespace torchbus::cli {
namespace {

using nlohmann::json;

std::string shown(const json& value) {
    constexpr std::size_t kLongest = 200;
    return shortened(terminal_text(value.dump(-1, ' ', false, json::error_handler_t::replace)), kLongest);
}

/// How many doubles lie between, so that one flipped bit is seen to be one.
std::uint64_t places_apart(double one, double other) {
    const auto place = [](double value) {
        const auto bits = std::bit_cast<std::uint64_t>(value);
        return bits >> 63 ? 0x8000000000000000U - (bits & 0x7FFFFFFFFFFFFFFFU) : 0x8000000000000000U + bits;
    };
    const std::uint64_t left = place(one), right = place(other);
    return left > right ? left - right : right - left;
}

std::string how_far_apart(double one, double other) {
    const double gap = std::abs(one - other), largest = std::max(std::abs(one), std::abs(other));
    std::string text = fmt::format("{:.3g} apart", gap);
    if (largest > 0) text += fmt::format(", {:.3g} of the larger", gap / largest);
    if (const std::uint64_t places = places_apart(one, other); places < 1000) text += fmt::format(", {} {} of a double", places, places == 1 ? "unit in the last place" : "units in the last place");
    return text;
}

/// Whether a whole number is one in the schema of the stream; others may be doubles, which are written alike: 2 for 2.0.
bool is_count(std::string_view path) {
    constexpr std::array<std::string_view, 26> kCounts = {"added", "attempts", "batches", "calls", "count", "dropped", "epoch", "epochs", "exit_code", "first", "index", "last", "max_passes",
                                                          "max_steps", "micro_batch", "micro_batches", "micro_batches_per_step", "pass", "rank", "samples", "seed", "splits", "step", "steps", "tokens", "valid"};
    return !path.starts_with("numbers.") && std::ranges::find(kCounts, path.substr(path.rfind('.') + 1)) != kCounts.end();
}

class FieldComparison {
public:
    explicit FieldComparison(const Tolerance& tolerance) : tolerance_(tolerance) {}
    void compare(const json& one, const json& other, const std::string& path) {
        if (one.is_object() && other.is_object()) return compare_members(one, other, path);
        if (one.is_array() && other.is_array()) return compare_elements(one, other, path);
        if (one.is_number() && other.is_number()) return compare_numbers(one, other, path);
        if (one != other) found.push_back({path, shown(one), shown(other), {}});
    }
    std::vector<FieldDifference> found;

private:
    void compare_members(const json& one, const json& other, const std::string& path) {
        const std::string before = path.empty() ? path : path + ".";
        for (const auto& [name, value] : one.items()) {
            if (other.contains(name)) compare(value, other[name], before + name);
            else found.push_back({before + name, shown(value), "nothing", {}});
        }
        for (const auto& [name, value] : other.items())
            if (!one.contains(name)) found.push_back({before + name, "nothing", shown(value), {}});
    }
    void compare_elements(const json& one, const json& other, const std::string& path) {
        for (std::size_t i = 0; i < std::min(one.size(), other.size()); ++i) compare(one[i], other[i], fmt::format("{}[{}]", path, i));
        if (one.size() != other.size()) found.push_back({path, fmt::format("{} elements", one.size()), fmt::format("{} elements", other.size()), {}});
    }
    void compare_numbers(const json& one, const json& other, const std::string& path) {
        const bool are_whole = one.is_number_integer() && other.is_number_integer();
        const double left = one.get<double>(), right = other.get<double>();
        if (are_whole ? one == other : std::bit_cast<std::uint64_t>(left) == std::bit_cast<std::uint64_t>(right)) return;
        const bool are_counts = are_whole && is_count(path);
        const double allowed = std::max(tolerance_.absolute, tolerance_.relative * std::max(std::abs(left), std::abs(right)));
        if (!are_counts && !tolerance_.is_exact() && std::abs(left - right) <= allowed) return;
        found.push_back({path, shown(one), shown(other), are_counts ? std::string() : how_far_apart(left, right)});
    }

    Tolerance tolerance_;
};

}  // namespace

std::string FieldDifference::text() const { return fmt::format("{}: {} and {}{}{}", terminal_text(path), one, other, how_far.empty() ? "" : ", ", how_far); }

std::vector<FieldDifference> differences(const json& one, const json& other, const Tolerance& tolerance) {
    FieldComparison comparison(tolerance);
    comparison.compare(one, other, "");
    return std::move(comparison.found);
}

}  // namespace torchbus::cli
