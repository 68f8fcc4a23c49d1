#pragma once
/// What the bus knows of an event: its type is its key, its name is that of the struct in snake_case; user_gap for a user's own Gap,
/// whose name is taken by an event of the library or by a message of streams.

#include <concepts>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <typeinfo>

#include <torchbus/events.hpp>

namespace torchbus {

namespace detail {

using ToJson = void (*)(nlohmann::json&, const void*);
using AppendJson = void (*)(std::string&, const void*);

struct EventType {
    std::string name;  ///< snake_case
    std::size_t index = 0;
    bool of_trainer = false;
    bool is_span = false;
    ToJson to_json = nullptr;  ///< nullptr for a user's event without a JSON form
    AppendJson append_json = nullptr;  ///< the same as text, where there is a faster way to it
};

/// Whether streams have messages of that name that are no events; see stream/message.hpp.
bool is_message_of_streams(std::string_view name);

const EventType& register_event_type(const std::type_info& type, bool of_trainer, bool is_span, ToJson to_json, AppendJson append_json);

template <class E>
constexpr ToJson json_form() {
    if constexpr (requires(nlohmann::json& out, const E& event) { to_json(out, event); })
        return [](nlohmann::json& out, const void* event) { to_json(out, *static_cast<const E*>(event)); };
    else
        return nullptr;
}

template <class E>
constexpr AppendJson json_text_form() {
    if constexpr (HasEventJson<E>)
        return [](std::string& out, const void* event) { append_json(out, *static_cast<const E*>(event)); };
    else
        return nullptr;
}

template <class E>
const EventType& event_type() {
    static const EventType& type = register_event_type(
        typeid(E), is_one_of<E, TrainerEvents>, is_one_of<E, TrainerSpans>, json_form<E>(), json_text_form<E>());
    return type;
}

}  // namespace detail

/// What slots may be connected to: any plain struct but a span, which is wrapped with around().
template <class E>
concept AnEvent = !detail::is_one_of<std::remove_cvref_t<E>, TrainerSpans>;

/// What a subscriber may emit: events of the user's own, and those of the library by which subscribers announce
/// what they did. The others are the trainer's alone.
template <class E>
concept UserEvent = AnEvent<E> && (!detail::is_one_of<std::remove_cvref_t<E>, TrainerEvents> ||
                                   detail::is_one_of<std::remove_cvref_t<E>, AnnouncedEvents>);

/// An event of whatever type, as observe_all hands it on.
class AnyEvent {
public:
    AnyEvent(const detail::EventType& type, const void* event) : type_(&type), event_(event) {}
    const std::string& name() const { return type_->name; }
    /// Of its type, for tables: small, and the same as long as the process lives.
    std::size_t type_index() const { return type_->index; }
    /// The event, if it is an `E`.
    template <class E>
    const E* as() const {
        return type_ == &detail::event_type<E>() ? static_cast<const E*>(event_) : nullptr;
    }
    bool is_of_library() const { return type_->of_trainer; }
    bool has_json() const { return type_->to_json != nullptr; }
    /// Requires: has_json().
    void write_json(nlohmann::json& out) const { type_->to_json(out, event_); }
    /// The same, as text behind `out`. Requires: has_json().
    void append_json(std::string& out) const;

private:
    const detail::EventType* type_;
    const void* event_;
};

}  // namespace torchbus
