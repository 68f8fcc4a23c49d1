#include <torchbus/composition/run_changes.hpp>

#include <algorithm>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using nlohmann::json;

[[noreturn]] void refuse(const RunChanges& changes, const std::string& from, const json& wanted, const std::string& run_name, const std::string& path, const json& found) {
    throw ConfigError(fmt::format("{}: {} asks for {}, and {}: {} is {}; make them the same, or leave one of them out", changes.name, from, wanted.dump(), run_name, path, found.dump()));
}

void set(const RunChanges& changes, const RunChanges::Value& wanted, json& run, const std::string& run_name) {
    json* place = &run;
    std::size_t begin = 0;
    for (std::size_t dot = 0; dot != std::string::npos; begin = dot + 1) {
        dot = wanted.path.find('.', begin);
        if (!place->is_null() && !place->is_object()) refuse(changes, wanted.from, wanted.value, run_name, wanted.path.substr(0, begin - 1), *place);
        place = &(*place)[wanted.path.substr(begin, dot == std::string::npos ? dot : dot - begin)];
        if (dot == std::string::npos) break;
    }
    if (place->is_null()) *place = wanted.value;
    if (*place != wanted.value) refuse(changes, wanted.from, wanted.value, run_name, wanted.path, *place);
}

void add(const RunChanges& changes, const RunChanges::Wanted& wanted, json& run, const std::string& run_name) {
    json& callbacks = run["callbacks"];
    if (callbacks.is_null()) callbacks = json::array();
    if (!callbacks.is_array()) throw ConfigError(fmt::format("{}: callbacks: expected an array, found a {}", run_name, callbacks.type_name()));
    for (std::size_t i = 0; i < callbacks.size(); ++i) {
        json& own = callbacks[i];
        if (!own.is_object() || own.value("kind", json()) != wanted.kind) continue;
        for (const auto& [option, value] : wanted.options.items()) {
            json& place = own[option];
            if (place.is_null()) place = value;
            if (place != value) refuse(changes, wanted.from, value, run_name, fmt::format("callbacks[{}].{}", i, option), place);
        }
        return;
    }
    json added = {{"kind", wanted.kind}};
    added.update(wanted.options);
    callbacks.push_back(std::move(added));
}

}  // namespace

void apply(const RunChanges& changes, json& run, const std::string& run_name) {
    for (const RunChanges::Value& value : changes.values) set(changes, value, run, run_name);
    for (const RunChanges::Wanted& wanted : changes.callbacks) add(changes, wanted, run, run_name);
}

}  // namespace torchbus
