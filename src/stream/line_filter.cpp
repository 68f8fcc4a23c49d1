#include <algorithm>
#include <cstdint>
#include <utility>

#include <nlohmann/json.hpp>

#include <torchbus/events_json.hpp>
#include <torchbus/name_pattern.hpp>
#include <torchbus/stream/numbers.hpp>

#include "subscription.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

/// The count that an interval is measured in; nothing for time.
std::string_view count_of(Interval::Unit unit) {
    using enum Interval::Unit;
    switch (unit) {
        case Attempt: return "attempts";
        case MicroBatch: return "micro_batch";
        case Epoch: return "epoch";
        case Sample: return "samples";
        case Token: return "tokens";
        case Second: return {};
        default: return "step";
    }
}

/// The parts of `data` that are named.
json chosen_of(const json& data, const std::vector<std::string>& fields) {
    json chosen = json::object();
    for (const std::string& field : fields) {
        const json* value = &data;
        json* place = &chosen;
        bool is_there = true;
        for (std::string_view rest = field; is_there && !rest.empty();) {
            const std::string name(rest.substr(0, rest.find('.')));
            rest.remove_prefix(std::min(name.size() + 1, rest.size()));
            // A name of the blackboard has dots of its own: what is left as a whole comes first.
            const std::string whole = rest.empty() ? name : name + "." + std::string(rest);
            const bool has_whole = value->is_object() && value->contains(whole);
            const std::string& key = has_whole ? whole : name;
            is_there = value->is_object() && value->contains(key);
            if (!is_there) break;
            value = &(*value)[key];
            if (has_whole) rest = {};
            if (rest.empty()) (*place)[key] = *value;
            else place = &(*place)[key];
        }
    }
    return chosen;
}

}  // namespace

bool LineFilter::is_due(const MessageView& message) {
    if (subscription_.every.amount == 0 || !message.is_frequent()) return true;
    const std::string_view count = count_of(subscription_.every.unit);
    const auto found = count.empty() ? std::nullopt : message.position(count);
    if (!count.empty() && !found) return true;
    return steps_[std::string(message.name)].take(message.position("attempts").value_or(-2), [&] {
        // The time is that of the message: who comes late is given all of the past at once.
        return (found ? static_cast<double>(*found) : seconds_of_time(message.time()).value_or(0)) / subscription_.every.amount;
    });
}

std::optional<std::string> LineFilter::take(const MessageView& message) {
    auto wanted = wanted_.find(message.name);
    if (wanted == wanted_.end()) wanted = wanted_.emplace(message.name, matches_any(subscription_.events, std::string(message.name)) || message.name == "gap").first;
    if (!wanted->second || !is_due(message)) return std::nullopt;
    if (subscription_.fields.empty()) return std::string(message.line);
    std::string line(message.line.substr(0, static_cast<std::size_t>(message.data.data() - message.line.data())));
    append_json(line, message.name == "gap" ? json::parse(message.data) : chosen_of(json::parse(message.data), subscription_.fields));
    return line + "}\n";
}

}  // namespace torchbus
