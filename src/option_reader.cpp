#include <torchbus/option_reader.hpp>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using nlohmann::json;

std::string expectation(Range range) {
    if (!range.low_included) return "a positive number";
    if (std::isfinite(range.low) && std::isfinite(range.high)) return fmt::format("a number from {} to {}{}", range.low, range.high_included ? "" : "below ", range.high);
    return fmt::format("a number of at least {}", range.low);
}

void check_range(double value, Range range, const std::string& path) {
    const bool above = range.low_included ? value >= range.low : value > range.low;
    const bool below = range.high_included ? value <= range.high : value < range.high;
    if (above && below) return;
    throw ConfigError(fmt::format("{}: {} is out of range; give {}", path, value, expectation(range)));
}

[[noreturn]] void wrong_type(const std::string& path, const json& found, std::string_view expected) {
    throw ConfigError(fmt::format("{}: {} is a {}; expected {}", path, found.dump(), found.type_name(), expected));
}

}  // namespace

OptionReader::OptionReader(const json& options, std::string where, std::vector<std::string> taken)
    : options_(std::make_unique<json>(options)), where_(std::move(where)), taken_(std::move(taken)) {
    if (!options_->is_object()) wrong_type(where_, *options_, "an object with options");
}
OptionReader::~OptionReader() = default;

std::string OptionReader::path_of(std::string_view name) const {
    return where_.empty() || where_.ends_with(' ') ? fmt::format("{}{}", where_, name) : fmt::format("{}.{}", where_, name);
}

const json* OptionReader::find(std::string_view name, std::string_view type, const json& fallback, std::string_view about,
                               Range range, std::vector<std::string> allowed) {
    described_.push_back({std::string(name), std::string(type), fallback.dump(), std::string(about), range, std::move(allowed)});
    taken_.emplace_back(name);
    const auto found = options_->find(std::string(name));
    return found == options_->end() ? nullptr : &*found;
}

OptionReader& OptionReader::number(std::string_view name, double& value, std::string_view about, Range range) {
    if (const json* found = find(name, "number", std::isfinite(value) ? json(value) : json("inf"), about, range)) {
        if (!found->is_number()) wrong_type(path_of(name), *found, "a number");
        check_range(found->get<double>(), range, path_of(name));
        value = found->get<double>();
    }
    return *this;
}

OptionReader& OptionReader::integer(std::string_view name, std::int64_t& value, std::string_view about, Range range) {
    if (const json* found = find(name, "integer", value, about, range)) {
        if (!found->is_number_integer()) wrong_type(path_of(name), *found, "an integer");
        check_range(found->get<double>(), range, path_of(name));
        value = found->get<std::int64_t>();
    }
    return *this;
}

OptionReader& OptionReader::boolean(std::string_view name, bool& value, std::string_view about) {
    if (const json* found = find(name, "boolean", value, about)) {
        if (!found->is_boolean()) wrong_type(path_of(name), *found, "true or false");
        value = found->get<bool>();
    }
    return *this;
}

OptionReader& OptionReader::text(std::string_view name, std::string& value, std::string_view about) {
    if (const json* found = find(name, "string", value, about)) {
        if (!found->is_string()) wrong_type(path_of(name), *found, "a string");
        value = found->get<std::string>();
    }
    return *this;
}

OptionReader& OptionReader::interval(std::string_view name, Interval& value, std::string_view about) {
    if (const json* found = find(name, "interval", to_string(value), about)) {
        if (!found->is_number() && !found->is_string()) wrong_type(path_of(name), *found, "an interval, e.g. \"100step\"");
        try {
            value = parse_interval(found->is_string() ? found->get<std::string>() : found->dump());
        } catch (const ConfigError& error) {
            throw ConfigError(fmt::format("{}: {}", path_of(name), error.what()));
        }
    }
    return *this;
}

OptionReader& OptionReader::choice(std::string_view name, std::string& value, std::vector<std::string> allowed, std::string_view about) {
    if (const json* found = find(name, "string", value, fmt::format("{}; one of {}", about, fmt::join(allowed, ", ")), {}, allowed)) {
        if (!found->is_string()) wrong_type(path_of(name), *found, "a string");
        value = found->get<std::string>();
    }
    if (std::ranges::find(allowed, value) == allowed.end())
        throw ConfigError(fmt::format("{}: '{}' is not known{} (expected one of {})", path_of(name), value, did_you_mean(value, allowed),
                                      fmt::join(allowed, ", ")));
    return *this;
}

/// Reads an array whose entries `accepts` and `in_range` let pass.
template <class T>
void OptionReader::array(std::string_view name, std::vector<T>& value, const char* type, const char* entry_type, std::string_view about,
                         Range range, bool (*accepts)(const json&)) {
    const json* found = find(name, type, value, about, range);
    if (!found) return;
    if (!found->is_array()) wrong_type(path_of(name), *found, fmt::format("an {}s", type));
    value.clear();
    for (std::size_t i = 0; i < found->size(); ++i) {
        const std::string path = fmt::format("{}[{}]", path_of(name), i);
        const json& entry = (*found)[i];
        if (!accepts(entry)) wrong_type(path, entry, entry_type);
        if constexpr (std::is_arithmetic_v<T>) check_range(entry.get<double>(), range, path);
        value.push_back(entry.get<T>());
    }
}

OptionReader& OptionReader::integers(std::string_view name, std::vector<std::int64_t>& value, std::string_view about, Range range) {
    array(name, value, "array of integer", "an integer", about, range, [](const json& entry) { return entry.is_number_integer(); });
    return *this;
}

OptionReader& OptionReader::numbers(std::string_view name, std::vector<double>& value, std::string_view about, Range range) {
    array(name, value, "array of number", "a number", about, range, [](const json& entry) { return entry.is_number(); });
    return *this;
}

OptionReader& OptionReader::texts(std::string_view name, std::vector<std::string>& value, std::string_view about) {
    array(name, value, "array of string", "a string", about, {}, [](const json& entry) { return entry.is_string(); });
    return *this;
}

void OptionReader::each_object(std::string_view name, std::string_view about, const std::function<void(OptionReader&, bool)>& read) {
    const json* found = find(name, "array of object", json(nullptr), about);
    OptionReader nothing(json::object(), {});
    try {
        read(nothing, true);
    } catch (const ConfigError&) {  // something must be given; what it reads is known by now
    }
    described_.back().members = nothing.described();
    if (!found) return;
    if (!found->is_array()) wrong_type(path_of(name), *found, "an array of objects");
    for (std::size_t i = 0; i < found->size(); ++i) {
        OptionReader one((*found)[i], fmt::format("{}[{}]", path_of(name), i));
        read(one, false);
        one.finish();
    }
}

OptionReader& OptionReader::changeable() {
    described_.back().changeable = true;
    described_.back().about += "; may be changed while a run is under way";
    return *this;
}

bool OptionReader::has(std::string_view name) const { return options_->contains(name); }

const json* OptionReader::part(std::string_view name, std::string_view type, std::string_view about) {
    return find(name, type, json(nullptr), about);
}

void OptionReader::finish() const {
    for (const auto& [key, value] : options_->items()) {
        if (std::ranges::find(taken_, key) != taken_.end()) continue;
        const std::string known = taken_.empty() ? "there are no options" : fmt::format("known: {}", fmt::join(taken_, ", "));
        throw ConfigError(fmt::format("{}: unknown key{} ({})", path_of(key), did_you_mean(key, taken_), known));
    }
}

const std::vector<OptionDescription>& OptionReader::described() const { return described_; }

}  // namespace torchbus
