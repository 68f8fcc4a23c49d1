#pragma once
/// Members of JSON that a stranger may have written: what is missing or of another type has a value as well, and nothing throws.

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace torchbus {

/// What messages have in place of what is no number in JSON; nothing for another word.
inline std::optional<double> number_of_word(std::string_view word) {
    if (word == "NaN") return NAN;
    if (word == "Infinity") return INFINITY;
    if (word == "-Infinity") return -INFINITY;
    return std::nullopt;
}

/// A number as messages have them; nothing for all else.
inline std::optional<double> stream_number(const nlohmann::json& value) {
    if (value.is_number()) return value.get<double>();
    return value.is_string() ? number_of_word(value.get_ref<const std::string&>()) : std::nullopt;
}

/// The member, or null.
inline const nlohmann::json& member_of(const nlohmann::json& object, const char* name) {
    static const nlohmann::json none;
    if (!object.is_object()) return none;
    const auto found = object.find(name);
    return found == object.end() ? none : *found;
}

inline std::string text_member(const nlohmann::json& object, const char* name) {
    const nlohmann::json& value = member_of(object, name);
    return value.is_string() ? value.get<std::string>() : "";
}

inline double number_member(const nlohmann::json& object, const char* name, double otherwise) { return stream_number(member_of(object, name)).value_or(otherwise); }

inline std::int64_t whole_member(const nlohmann::json& object, const char* name, std::int64_t otherwise) {
    const nlohmann::json& value = member_of(object, name);
    return value.is_number_integer() ? value.get<std::int64_t>() : otherwise;
}

/// The data of a message of numbers: what is older among what is new.
inline nlohmann::json with_all_numbers(nlohmann::json data) {
    if (member_of(data, "older").is_object() && member_of(data, "numbers").is_object()) data["numbers"].update(data["older"]);
    data.erase("older");
    return data;
}

inline bool is_true(const nlohmann::json& object, const char* name) { return member_of(object, name) == true; }

}  // namespace torchbus
