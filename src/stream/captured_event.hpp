#pragma once
/// The fields of an event as bytes: the training thread copies them, and another one makes JSON of them, which takes several times as long.

#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include <torchbus/event_type.hpp>

namespace torchbus {

/// As it lies in memory, behind `bytes`; and taken from the front of them again.
template <class T>
void append_bytes(std::string& bytes, const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}
template <class T>
T take_bytes(std::string_view& bytes) {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    bytes.remove_prefix(sizeof value);
    return value;
}

/// Of one event of the library. The bytes are for this process alone.
struct CapturedForm {
    /// Puts the fields behind `bytes`.
    void (*capture)(std::string& bytes, const AnyEvent& event);
    /// Puts the JSON of those fields, the same as the event's own, behind `json`.
    void (*append_json)(std::string& json, std::string_view bytes);
};

/// Null for an event that is not the library's.
const CapturedForm* captured_form(std::string_view event);

}  // namespace torchbus
