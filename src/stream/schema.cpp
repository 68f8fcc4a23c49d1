// The schema of what leaves the process, made from the fields that are written.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/stream/message.hpp>

#include "../event_fields.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

template <class T>
struct ElementOf;
template <class T>
struct ElementOf<std::optional<T>> { using Type = T; };
template <class T>
struct ElementOf<std::vector<T>> { using Type = T; };

template <class T>
json schema_of() {
    if constexpr (HasFields<T>) {
        json properties = json::object(), required = json::array();
        const auto add = [&]<class Get>(const EventField<Get>& field) {
            json schema = schema_of<std::remove_cvref_t<std::invoke_result_t<Get, const T&>>>();
            if (*field.about) schema["description"] = field.about;
            properties[field.name] = std::move(schema);
            required.push_back(field.name);
        };
        std::apply([&](const auto&... field) { (add(field), ...); }, FieldsOf<T>::kFields);
        return {{"type", "object"}, {"properties", std::move(properties)}, {"required", std::move(required)}};
    } else if constexpr (std::convertible_to<const T&, std::string_view>) {
        return {{"type", "string"}};
    } else if constexpr (requires(const T& value) { value.has_value(); }) {
        return {{"anyOf", {schema_of<typename ElementOf<T>::Type>(), {{"type", "null"}}}}};
    } else if constexpr (requires(const T& value) { value.begin(); }) {
        return {{"type", "array"}, {"items", schema_of<typename ElementOf<T>::Type>()}};
    } else if constexpr (std::same_as<T, bool>) {
        return {{"type", "boolean"}};
    } else if constexpr (std::floating_point<T>) {
        return {{"$ref", "#/$defs/number"}};
    } else {
        return {{"type", "integer"}};
    }
}

json type_is(std::string_view name) { return {{"properties", {{"type", {{"const", "torchbus." + std::string(name)}}}}}}; }

template <class... Events>
void add_events(json& data, json& rules, std::tuple<Events...>*) {
    const auto add = [&](const std::string& name, json schema) {
        data[name] = std::move(schema);
        rules.push_back({{"if", type_is(name)}, {"then", {{"properties", {{"data", {{"$ref", "#/$defs/" + name}}}}}}}});
    };
    (add(detail::event_type<Events>().name, schema_of<Events>()), ...);
    const json integer = {{"type", "integer"}};
    const json numbers = {{"type", "object"}, {"additionalProperties", {{"$ref", "#/$defs/number"}}}};
    const auto described = [](json schema, const char* about) {
        schema["description"] = about;
        return schema;
    };
    add("stream_start", {{"type", "object"}, {"description", "the first message of a run"},
                         {"properties", {{"torchbus", {{"type", "string"}, {"description", "version of the library"}}}, {"events", {{"type", "array"}, {"description", "patterns of the events that are written"}}},
                                         {"every", {{"type", "string"}, {"description", "interval of what comes with every step or batch"}}},
                                         {"resumed", {{"type", "boolean"}, {"description", "the run goes on from a training state"}}}}},
                         {"required", {"torchbus", "events", "every", "resumed"}}});
    add("numbers", {{"type", "object"}, {"description", "what is on the blackboard, by name"},
                    {"properties", {{"position", schema_of<Position>()}, {"numbers", described(numbers, "published since the message before, or computed when they are read")},
                                    {"older", described(numbers, "all others, as they were")},
                                    {"after", {{"type", "string"}, {"description", "the event that they are of"}}}}},
                    {"required", {"position", "numbers", "older", "after"}}});
    const json number = {{"$ref", "#/$defs/number"}};
    add("accounting", {{"type", "object"}, {"description", "what each subscriber has cost since it was attached"},
                       {"properties", {{"position", schema_of<Position>()}, {"seconds", described(number, "since the run began")},
                                       {"rows", {{"type", "array"}, {"items", {{"type", "object"}, {"properties", {{"subscriber", {{"type", "string"}}}, {"event", {{"type", "string"}}}, {"calls", {{"type", "integer"}}},
                                           {"seconds", described(number, "of the training thread")}, {"thread_seconds", described(number, "of its own thread")},
                                           {"dropped", {{"type", "integer"}, {"description", "snapshots that its queue had no place for"}}}}}}}}}}},
                       {"required", {"position", "seconds", "rows"}}});
    const json anything = {{"type", json::array({"object", "null"})}};
    add("snapshot", {{"type", "object"}, {"description", "what the run looks like when a client connects; made of messages before it, and none of them itself"},
                     {"properties", {{"state", {{"type", "string"}}}, {"last_sequence", integer}, {"position", anything}, {"start", anything}, {"numbers", anything}, {"end", anything}, {"checkpoint", anything}, {"accounting", anything},
                                     {"decisions", {{"type", "array"}}}}},
                     {"required", {"state", "last_sequence"}}});
    add("answer", {{"type", "object"}, {"description", "to a client's command"}, {"properties", {{"accepted", {{"type", "boolean"}}}, {"error", {{"type", "string"}}}}}, {"required", {"accepted"}}});
    add("gap", {{"type", "object"}, {"description", "messages that were left out, by their sequence numbers; to a client that has chosen, some of them may be none that it wanted"}, {"properties", {{"first", integer}, {"last", integer}, {"count", integer}}},
                {"required", {"first", "last", "count"}}});
}

}  // namespace

json stream_schema() {
    json data = json::object(), rules = json::array();
    add_events(data, rules, static_cast<TrainerEvents*>(nullptr));
    data["number"] = {{"anyOf", {{{"type", "number"}}, {{"enum", {"NaN", "Infinity", "-Infinity"}}}}}};
    const auto text = [](const char* about) { return json{{"type", "string"}, {"description", about}}; };
    const std::string name = fmt::format("torchbus:events:{}", kStreamVersion);
    json envelope = {{"specversion", {{"const", "1.0"}}}, {"source", text("of one rank of one run")}, {"id", text("of the message within its source")},
                     {"type", text("torchbus. and the name of an event, numbers, accounting, gap or stream_start; a user's own events are called by their names alike, behind user_ where the name is taken")},
                     {"time", {{"type", "string"}, {"format", "date-time"}, {"description", "when it was emitted, UTC"}}},
                     {"dataschema", {{"const", name}}},
                     {"sequence", text("number of the message within its source, so that texts sort as numbers do")}, {"run", text("the same on all ranks")},
                     {"rank", {{"type", "integer"}}}, {"data", {{"type", "object"}, {"description", "of a user's own event: what it gives; in value where that is no object, as JSON in text where it is nested too deeply; why there is none in error"}}}};
    json required = json::array();
    for (const auto& [field, schema] : envelope.items()) required.push_back(field);
    return {{"$schema", "https://json-schema.org/draft/2020-12/schema"}, {"$id", name}, {"title", "a message of torchbus, a line of JSON in the envelope of CloudEvents 1.0"},
            {"type", "object"}, {"properties", std::move(envelope)}, {"required", std::move(required)}, {"allOf", std::move(rules)}, {"$defs", std::move(data)}};
}

}  // namespace torchbus
