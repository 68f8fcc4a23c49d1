#include <cxxabi.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <set>
#include <typeindex>
#include <unordered_map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

#include "bus_core.hpp"

namespace torchbus::detail {
namespace {

struct Registry {
    std::mutex mutex;
    std::deque<EventType> types;
    std::unordered_map<std::type_index, EventType*> by_type;
};

Registry& registry() {
    static auto* const instance = new Registry;  // outlives every static object that may emit
    return *instance;
}

/// torchbus::TrainStepEnd → train_step_end
std::string snake_case_name(const std::type_info& type) {
    int status = 0;
    const std::unique_ptr<char, void (*)(void*)> demangled(abi::__cxa_demangle(type.name(), nullptr, nullptr, &status), std::free);
    std::string name = demangled ? demangled.get() : type.name();
    name = name.substr(0, name.find('<'));
    const auto scope = name.rfind("::");
    if (scope != std::string::npos) name = name.substr(scope + 2);
    std::string snake;
    for (const char c : name) {
        const auto letter = static_cast<unsigned char>(c);
        if (std::isupper(letter) && !snake.empty()) snake += '_';
        snake += static_cast<char>(std::tolower(letter));
    }
    return snake;
}

template <class... Events>
std::set<std::string> names_of(std::tuple<Events...>*) {
    return {snake_case_name(typeid(Events))...};
}

bool is_of_library(const std::string& name) {
    static const std::set<std::string> kOfLibrary = names_of(static_cast<TrainerEvents*>(nullptr));
    return kOfLibrary.contains(name);
}

}  // namespace

bool is_message_of_streams(std::string_view name) {
    constexpr auto kOfStreams = std::to_array<std::string_view>({"accounting", "answer", "gap", "numbers", "snapshot", "stream_start"});
    return std::ranges::find(kOfStreams, name) != kOfStreams.end();
}

const EventType& register_event_type(const std::type_info& type, bool of_trainer, bool is_span, ToJson to_json, AppendJson append_json) {
    auto& [mutex, types, by_type] = registry();
    const std::lock_guard lock(mutex);
    if (const auto known = by_type.find(type); known != by_type.end()) {
        // The same event may be seen first where its to_json is not visible.
        if (!known->second->to_json) known->second->to_json = to_json;
        return *known->second;
    }
    if (types.size() == kMaxEventTypes)
        throw StateError(fmt::format("more than {} types of events; use one type with a field that tells them apart", kMaxEventTypes));
    std::string name = snake_case_name(type);
    if (!of_trainer && !is_span && (is_of_library(name) || is_message_of_streams(name))) name.insert(0, "user_");
    EventType& entry = types.emplace_back(EventType{std::move(name), types.size(), of_trainer, is_span, to_json, append_json});
    by_type.emplace(type, &entry);
    return entry;
}

const EventType& event_type_at(std::size_t index) {
    auto& [mutex, types, by_type] = registry();
    const std::lock_guard lock(mutex);
    return types[index];
}

std::size_t event_type_count() {
    auto& [mutex, types, by_type] = registry();
    const std::lock_guard lock(mutex);
    return types.size();
}

}  // namespace torchbus::detail

namespace torchbus {

void AnyEvent::append_json(std::string& out) const {
    if (type_->append_json) return type_->append_json(out, event_);
    nlohmann::json value;
    write_json(value);
    torchbus::append_json(out, value);
}

}  // namespace torchbus
