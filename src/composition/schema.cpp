#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/callbacks/registry.hpp>
#include <torchbus/composition_schema.hpp>
#include <torchbus/data/registry.hpp>
#include <torchbus/models/registry.hpp>
#include <torchbus/optim/registry.hpp>

#include "parts.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

void bound(json& schema, Range range) {
    if (std::isfinite(range.low)) schema[range.low_included ? "minimum" : "exclusiveMinimum"] = range.low;
    if (std::isfinite(range.high)) schema[range.high_included ? "maximum" : "exclusiveMaximum"] = range.high;
}

/// A number with a unit, as parse_interval() reads it.
json interval() {
    return {{"type", {"string", "number"}}, {"minimum", 0},
            {"pattern", R"(^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?(step|attempt|micro_batch|epoch|sample|token|run|s|min|h|emission)?$)"}};
}

json object_of(const std::vector<OptionDescription>& options);

/// What a value of this type looks like, without the words about it.
json shape_of(const OptionDescription& option, const std::string& type) {
    constexpr std::string_view kArray = "array of ";
    if (type.starts_with(kArray)) return {{"type", "array"}, {"items", shape_of(option, type.substr(kArray.size()))}};
    if (type == "interval") return interval();
    if (type == "object" && !option.members.empty()) return object_of(option.members);
    if (type == "factor or schedule") return {{"anyOf", {{{"type", "number"}, {"minimum", 0}}, {{"$ref", "#/$defs/schedule"}}}}};
    if (type == "object" && option.name == "schedule") return {{"$ref", "#/$defs/schedule"}};
    if (type != "number" && type != "integer" && type != "boolean" && type != "string" && type != "object") return json::object();
    json schema = {{"type", type}};
    if (type == "number" || type == "integer") bound(schema, option.range);
    if (!option.allowed.empty()) schema["enum"] = option.allowed;
    return schema;
}

json property_of(const OptionDescription& option) {
    json schema = shape_of(option, option.type);
    schema["description"] = option.about;
    // An infinite number is described by a text, which JSON Schema would take for the default.
    const json value = json::parse(option.default_value, nullptr, false);
    if (!value.is_discarded() && !value.is_null() && !(option.type == "number" && !value.is_number())) schema["default"] = value;
    return schema;
}

json object_of(const std::vector<OptionDescription>& options) {
    json properties = json::object();
    for (const OptionDescription& option : options) properties[option.name] = property_of(option);
    return {{"type", "object"}, {"properties", std::move(properties)}, {"additionalProperties", false}};
}

/// What the function reads, found by giving it nothing.
template <class Read>
json object_read_by(Read read) {
    return object_of(describe_options("", [&](OptionReader& reader) { read(reader); }));
}

/// An object of a kind, with that kind's options. What the default kind is called need not be said.
template <class Entry>
json object_of_kind(const Registry<Entry>& table, const Entry& entry, bool is_default) {
    json schema = object_of(table.describe(entry));
    schema["description"] = entry.summary;
    schema["properties"]["kind"] = {{"const", entry.kind}};
    if (!is_default) schema["required"] = {"kind"};
    return schema;
}

template <class Entry>
json one_of(const Registry<Entry>& table) {
    const auto entries = table.entries();
    json kinds = json::array();
    for (const Entry& entry : entries) kinds.push_back(object_of_kind(table, entry, &entry == &entries.front()));
    return {{"oneOf", std::move(kinds)}};
}

/// A loss is a name as well.
json one_of_losses() {
    json schema = one_of(loss_table());
    schema["oneOf"].push_back({{"enum", loss_table().kinds()}, {"description", "a loss with its default options"}});
    schema["default"] = loss_table().kinds().front();
    return schema;
}

json one_of_optimizers() {
    json schema = one_of(optimizer_table());
    const json groups = object_read_by(read_parameter_groups)["properties"];
    for (json& one : schema["oneOf"]) one["properties"].update(groups);
    return schema;
}

json one_of_callbacks() {
    json schema = {{"oneOf", json::array()}};
    json place = object_read_by(read_callback_place)["properties"];
    place.erase("kind");
    for (const CallbackEntry& entry : callback_registry()) {
        json one = object_of_kind(callback_table(), entry, false);
        one["properties"].update(place);
        one["properties"]["id"]["default"] = entry.kind;
        schema["oneOf"].push_back(std::move(one));
    }
    return schema;
}

json reference(const char* part, const char* about) { return {{"$ref", std::string("#/$defs/") + part}, {"description", about}}; }

json initial_weights() {
    json options = object_read_by(read_initial_weights);
    options["required"] = {"file"};
    return {{"anyOf", {{{"type", "string"}, {"minLength", 1}}, std::move(options)}}, {"description", "a file of weights to begin with, or which of its tensors under which names"}};
}

json file_name(const char* about) { return {{"type", "string"}, {"minLength", 1}, {"description", about}}; }

json file_names(const char* about) {
    const json name = {{"type", "string"}, {"minLength", 1}};
    return {{"anyOf", {name, {{"type", "array"}, {"items", name}}}}, {"description", about}};
}

}  // namespace

json run_file_schema() {
    json schema = object_read_by(read_run);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema";
    schema["title"] = "torchbus run file";
    schema["properties"].update({
        {"$schema", {{"type", "string"}, {"description", "where this schema lies, for editors"}}},
        {"include", file_names("run files that this one builds on, relative to it")},
        {"plugins", file_names(schema["properties"]["plugins"]["description"].get_ref<const std::string&>().c_str())},
        {"accelerate", file_name("a YAML of Accelerate, relative to this file: what it asks for is put in")},
        {"deepspeed", file_name("a JSON of DeepSpeed, relative to this file: what it asks for is put in")},
        {"model", reference("model", "what is trained")},
        {"weights", initial_weights()},
        {"data", reference("data", "what it is trained and evaluated on")},
        {"loss", reference("loss", "of output and targets, a mean over the batch")},
        {"optimizer", reference("optimizer", "how the parameters are updated")},
        {"schedule", reference("schedule", "how the learning rate changes; none: it does not")},
        {"train", reference("train", "how long and in which portions")},
        {"callbacks", {{"type", "array"}, {"items", {{"$ref", "#/$defs/callback"}}}, {"description", "behaviours, in this order within a stage"}}},
    });
    // What a file leaves out may stand in one that it includes.
    schema["anyOf"] = {{{"required", {"model", "data", "optimizer"}}}, {{"required", {"include"}}}, {{"required", {"model", "data", "deepspeed"}}}, {{"required", {"model", "data", "accelerate"}}}};
    schema["$defs"] = {{"model", one_of(model_table())},         {"data", one_of(data_table())},         {"loss", one_of_losses()},
                       {"optimizer", one_of_optimizers()},      {"schedule", one_of(schedule_table())}, {"train", object_read_by(read_train)},
                       {"callback", one_of_callbacks()}};
    return schema;
}

}  // namespace torchbus
