#include "captured_event.hpp"

#include <concepts>
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include <torchbus/events_json.hpp>

#include "../event_fields.hpp"

namespace torchbus {
namespace {

/// Numbers, and what consists of numbers and is in every event: copied as they lie in memory.
template <class T>
concept IsCopied = std::is_arithmetic_v<T> || std::same_as<T, Position> || std::same_as<T, Counts>;

template <class T>
void capture(std::string& bytes, const T& value) {
    if constexpr (IsCopied<T>) {
        append_bytes(bytes, value);
    } else if constexpr (HasFields<T>) {
        std::apply([&](const auto&... field) { (capture(bytes, field.get(value)), ...); }, FieldsOf<T>::kFields);
    } else if constexpr (IsOptional<T>) {
        capture(bytes, value.has_value());
        if (value) capture(bytes, *value);
    } else if constexpr (IsText<T>) {
        const std::string_view text = value;
        capture(bytes, text.size());
        bytes += text;
    } else {
        static_assert(IsList<T>);
        capture(bytes, value.size());
        for (const auto& one : value) capture(bytes, one);
    }
}

template <class T>
void append_captured(std::string& json, std::string_view& bytes) {
    if constexpr (IsCopied<T>) {
        const T value = take_bytes<T>(bytes);
        if constexpr (HasFields<T>) append_json(json, value);
        else if constexpr (std::same_as<T, bool>) json += value ? "true" : "false";
        else if constexpr (std::floating_point<T>) append_json_number(json, value);
        else json += fmt::format_int(value).c_str();
    } else if constexpr (HasFields<T>) {
        char before = '{';
        const auto append_field = [&](const auto& field) {
            json += std::exchange(before, ',');
            json += field.key.substr(1);
            append_captured<std::remove_cvref_t<decltype(field.get(std::declval<const T&>()))>>(json, bytes);
        };
        std::apply([&](const auto&... field) { (append_field(field), ...); }, FieldsOf<T>::kFields);
        json += '}';
    } else if constexpr (IsOptional<T>) {
        if (take_bytes<bool>(bytes)) append_captured<typename T::value_type>(json, bytes);
        else json += "null";
    } else if constexpr (IsText<T>) {
        const auto length = take_bytes<std::size_t>(bytes);
        append_json_text(json, bytes.substr(0, length));
        bytes.remove_prefix(length);
    } else {
        const auto length = take_bytes<std::size_t>(bytes);
        json += '[';
        for (std::size_t i = 0; i < length; ++i) {
            if (i > 0) json += ',';
            append_captured<typename T::value_type>(json, bytes);
        }
        json += ']';
    }
}

template <class E>
CapturedForm form_of() {
    return {[](std::string& bytes, const AnyEvent& event) { capture(bytes, *event.as<E>()); },
            [](std::string& json, std::string_view bytes) { append_captured<E>(json, bytes); }};
}

template <class... Es>
std::map<std::string_view, CapturedForm> forms_by_name(std::tuple<Es...>*) {
    return {{detail::event_type<Es>().name, form_of<Es>()}...};
}

}  // namespace

const CapturedForm* captured_form(std::string_view event) {
    static const auto& kForms = *new auto(forms_by_name(static_cast<TrainerEvents*>(nullptr)));  // never destroyed: events come after main(), too
    const auto known = kForms.find(event);
    return known == kForms.end() ? nullptr : &known->second;
}

}  // namespace torchbus
