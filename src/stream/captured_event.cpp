#include "captured_event.hpp"

#include <concepts>
#include <cstring>
#include <map>
#include <tuple>
#include <type_traits>

#include <fmt/format.h>

#include <torchbus/events_json.hpp>

#include "../event_fields.hpp"

namespace torchbus {
namespace {

/// Numbers, and what consists of numbers and is in every event: copied as they lie in memory.
template <class T>
concept IsCopied = std::is_arithmetic_v<T> || std::same_as<T, Position> || std::same_as<T, Counts>;

void put(std::string& bytes, const void* from, std::size_t count) { bytes.append(static_cast<const char*>(from), count); }

template <class T>
void capture(std::string& bytes, const T& value) {
    if constexpr (IsCopied<T>) {
        put(bytes, &value, sizeof value);
    } else if constexpr (HasFields<T>) {
        std::apply([&](const auto&... field) { (capture(bytes, field.get(value)), ...); }, FieldsOf<T>::kFields);
    } else if constexpr (IsOptional<T>) {
        capture(bytes, value.has_value());
        if (value) capture(bytes, *value);
    } else if constexpr (IsText<T>) {
        const std::string_view text = value;
        capture(bytes, text.size());
        put(bytes, text.data(), text.size());
    } else {
        static_assert(IsList<T>);
        capture(bytes, value.size());
        for (const auto& one : value) capture(bytes, one);
    }
}

template <IsCopied T>
T take(std::string_view& bytes) {
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    bytes.remove_prefix(sizeof value);
    return value;
}

template <class T>
void append_captured(std::string& json, std::string_view& bytes) {
    if constexpr (IsCopied<T>) {
        const T value = take<T>(bytes);
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
        if (take<bool>(bytes)) append_captured<typename T::value_type>(json, bytes);
        else json += "null";
    } else if constexpr (IsText<T>) {
        const auto length = take<std::size_t>(bytes);
        append_json_text(json, bytes.substr(0, length));
        bytes.remove_prefix(length);
    } else {
        const auto length = take<std::size_t>(bytes);
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
    static const auto kForms = forms_by_name(static_cast<TrainerEvents*>(nullptr));
    const auto known = kForms.find(event);
    return known == kForms.end() ? nullptr : &known->second;
}

}  // namespace torchbus
