#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <torchbus/composition.hpp>
#include <torchbus/composition/accelerate_config.hpp>
#include <torchbus/composition/deepspeed_config.hpp>
#include <torchbus/distributed/ranks.hpp>
#include <torchbus/error.hpp>

#include "../json_text.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

/// One name or index of a path such as callbacks[1].max_norm.
std::vector<std::string> split_path(const std::string& path) {
    std::vector<std::string> parts(1);
    for (const char c : path) {
        if (c == '.' || c == '[') parts.emplace_back();
        else if (c != ']') parts.back() += c;
    }
    return parts;
}

void apply_override(json& run, const std::string& text) {
    const auto equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
        throw ConfigError(fmt::format("--set {}: expected path=value, e.g. --set optimizer.learning_rate=0.01", text));
    const std::string value = text.substr(equals + 1);
    json* place = &run;
    for (const std::string& part : split_path(text.substr(0, equals))) {
        if (place->is_array()) {
            const bool is_index = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos && part.size() < 9;
            if (!is_index || std::stoul(part) >= place->size())
                throw ConfigError(fmt::format("--set {}: '{}' is no index of an array of {} entries", text, part, place->size()));
            place = &(*place)[std::stoul(part)];
        } else if (place->is_object() || place->is_null()) {
            place = &(*place)[part];
        } else {
            throw ConfigError(fmt::format("--set {}: '{}' lies within {}, which is a {}", text, part, place->dump(), place->type_name()));
        }
    }
    *place = json::accept(value) ? json::parse(value) : json(value);
}

/// "optimizer.learning_rate" of "optimizer", "callbacks[1]" of "callbacks".
std::string path_within(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }
std::string path_within(const std::string& path, std::size_t index) { return fmt::format("{}[{}]", path, index); }

/// "callbacks[1]" of "callbacks[1].max_norm"; nothing of a path of one step.
std::string path_around(const std::string& path) {
    const auto last = path.find_last_of(".[");
    return last == std::string::npos ? std::string() : path.substr(0, last);
}

/// The value of what stands between `${` and `}`: a name, or a name and a default behind `:-`.
std::string variable_value(std::string_view inside, const std::string& where) {
    const auto colon = inside.find(":-");
    const std::string name(inside.substr(0, colon));
    const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
    const auto is_part = [&](char c) { return is_letter(c) || (c >= '0' && c <= '9'); };
    if (name.empty() || !is_letter(name.front()) || !std::ranges::all_of(name, is_part))
        throw ConfigError(fmt::format("{}: '${{{}}}' names no environment variable; write ${{NAME}} or ${{NAME:-default}}, and $${{ for the signs themselves", where, inside));
    const char* value = std::getenv(name.c_str());
    if (colon != std::string_view::npos) return value && *value ? value : std::string(inside.substr(colon + 2));
    if (!value) throw ConfigError(fmt::format("{}: the environment variable '{}' is not set; set it, or give a default: ${{{}:-...}}", where, name, name));
    return value;
}

/// What is put in is not looked through again. `$${` stands for `${`.
std::string with_variables(const std::string& text, const std::string& where) {
    std::string result;
    for (std::size_t at = 0; at < text.size();) {
        if (text.compare(at, 3, "$${") == 0) {
            result += "${";
            at += 3;
        } else if (text.compare(at, 2, "${") == 0) {
            const auto end = text.find('}', at);
            if (end == std::string::npos) throw ConfigError(fmt::format("{}: '{}' has a ${{ without its }}; write $${{ for the signs themselves", where, text));
            result += variable_value(std::string_view(text).substr(at + 2, end - at - 2), where);
            at = end + 1;
        } else {
            result += text[at++];
        }
    }
    return result;
}

/// Replaces variables in all texts within `value`, at any depth.
void put_in_variables(json& value, const std::string& file, const std::string& path) {
    if (value.is_string()) value = with_variables(value.get<std::string>(), fmt::format("{}: {}", file, path));
    if (value.is_object())
        for (auto& [key, inner] : value.items()) put_in_variables(inner, file, path_within(path, key));
    if (value.is_array())
        for (std::size_t i = 0; i < value.size(); ++i) put_in_variables(value[i], file, path_within(path, i));
}

using Origins = std::map<std::string, std::string>;  // by path of what is no object, as in RunFileContent

/// Says of all values within `value` that they come from `file`.
void originate(const json& value, const std::string& file, const std::string& path, Origins& origins) {
    if (!value.is_object()) origins[path] = file;
    else for (const auto& [key, inner] : value.items()) originate(inner, file, path_within(path, key), origins);
}

void forget_within(const std::string& path, Origins& origins) {
    std::erase_if(origins, [&](const auto& one) { return one.first == path || one.first.starts_with(path + "."); });
}

/// Objects merge key by key; all else replaces, and so does an object of another kind: its options would not fit.
void merge(json& into, const json& from, const std::string& path, Origins& origins, const Origins& from_origins) {
    for (const auto& [key, value] : from.items()) {
        json& place = into[key];
        const std::string here = path_within(path, key);
        const bool other_kind = place.is_object() && value.is_object() && place.contains("kind") && value.contains("kind") && place["kind"] != value["kind"];
        if (place.is_object() && value.is_object() && !other_kind) {
            merge(place, value, here, origins, from_origins);
            continue;
        }
        place = value;
        forget_within(here, origins);
        for (const auto& [at, file] : from_origins)
            if (at == here || at.starts_with(here + ".")) origins[at] = file;
    }
}

std::string text_of(const std::filesystem::path& path, const std::string& where) {
    errno = 0;
    std::ifstream stream(path);
    if (!stream || std::filesystem::is_directory(path))
        throw ConfigError(fmt::format("{}{}: cannot open the run file: {}", where, path.string(), errno ? std::strerror(errno) : "it is a folder"));
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

/// The texts of a key that is a text or a list of them, taken out of the file.
std::vector<std::string> take_texts(json& run, const char* key, const std::string& file) {
    const auto found = run.find(key);
    if (found == run.end()) return {};
    const json value = *found;
    run.erase(found);
    const json list = value.is_array() ? value : json::array({value});
    for (const json& one : list)
        if (!one.is_string() || one.get<std::string>().empty())
            throw ConfigError(fmt::format("{}: {}: {} is a {}; expected a file's name, or a list of them", file, key, one.dump(), one.type_name()));
    return list.get<std::vector<std::string>>();
}

const std::string& only_one_of(const std::vector<std::string>& files, const char* key, const std::string& name) {
    if (files.size() > 1) throw ConfigError(fmt::format("{}: {}: {} files are named; give one", name, key, files.size()));
    return files.front();
}

std::string beside(const std::filesystem::path& file, const std::string& other) { return (file.parent_path() / other).lexically_normal().string(); }

/// Reads a file and what it includes. `open`: the files that are being read, outermost first.
RunFileContent read_file(const std::filesystem::path& path, const std::string& where, std::vector<std::filesystem::path>& open) {
    const std::string name = path.string();
    const std::string text = text_of(path, where);
    const auto identity = std::filesystem::weakly_canonical(path);
    if (std::ranges::find(open, identity) != open.end()) {
        std::vector<std::string> names;
        for (auto from = std::ranges::find(open, identity); from != open.end(); ++from) names.push_back(from->filename().string());
        throw ConfigError(fmt::format("{}{} includes itself: {} -> {}; remove one of the includes", where, name, fmt::join(names, " -> "), names.front()));
    }
    json run = json_of_text(text, name);
    if (!run.is_object()) throw ConfigError(fmt::format("{}: a run file is a JSON object; found a {}", name, run.type_name()));
    put_in_variables(run, name, "");
    RunFileContent whole{name, json::object(), {}};
    open.push_back(identity);
    for (const std::string& included : take_texts(run, "include", name)) {
        const RunFileContent base = read_file(beside(path, included), fmt::format("{}: include: ", name), open);
        merge(whole.run, base.run, "", whole.origins, base.origins);
    }
    open.pop_back();
    for (const char* other : {"accelerate", "deepspeed"})
        if (const auto files = take_texts(run, other, name); !files.empty()) run[other] = beside(path, only_one_of(files, other, name));
    if (run.contains("plugins")) {
        json plugins = json::array();
        for (const std::string& plugin : take_texts(run, "plugins", name)) plugins.push_back(beside(path, plugin));
        run["plugins"] = plugins;
    }
    Origins own;
    originate(run, name, "", own);
    merge(whole.run, run, "", whole.origins, own);
    return whole;
}

/// What files of Accelerate and DeepSpeed ask for. What does not train may be one process, whatever a file says; several must be as many.
void put_in_configurations(json& run, const std::string& name, Purpose purpose) {
    const auto ranks = ranks_from_environment();
    const int started = ranks ? ranks->world_size : 1;
    std::vector<RunChanges> all;
    int world_size = started;
    if (const auto files = take_texts(run, "accelerate", name); !files.empty()) {
        const AccelerateConfig config = read_accelerate_config(only_one_of(files, "accelerate", name));
        if (purpose == Purpose::Look && started == 1) world_size = config.processes;
        all = changes_of_accelerate(config, run, world_size);
    }
    if (const auto files = take_texts(run, "deepspeed", name); !files.empty()) {
        const std::string& file = only_one_of(files, "deepspeed", name);
        if (purpose == Purpose::Look && started == 1) world_size = world_size_of_deepspeed(file).value_or(world_size);
        all.push_back(changes_of_deepspeed(file, run, world_size));
    }
    for (const RunChanges& changes : all) {
        apply(changes, run, name);
        if (!changes.not_supported.empty() && (!ranks || ranks->is_main())) warn(fmt::format("{}: not supported, and without effect: {}", changes.name, fmt::join(changes.not_supported, ", ")));
    }
}

}  // namespace

RunFileContent load_run_file(const std::filesystem::path& path, const std::vector<std::string>& overrides, Purpose purpose) {
    std::vector<std::filesystem::path> open;
    RunFileContent content = read_file(path, "", open);
    for (const std::string& one : overrides) {
        apply_override(content.run, one);
        const std::string path = one.substr(0, one.find('='));
        forget_within(path, content.origins);
        content.origins[path] = content.name;
    }
    put_in_configurations(content.run, content.name, purpose);
    return content;
}

json read_run_file(const std::filesystem::path& path, const std::vector<std::string>& overrides) { return load_run_file(path, overrides).run; }

Composition compose(const RunFileContent& file) {
    try {
        return compose(file.run, file.name);
    } catch (const ConfigError& error) {
        // "run.json: optimizer.learning_rate: …": the value may stand in a file that run.json includes.
        const std::string message = error.what(), prefix = file.name + ": ";
        if (!message.starts_with(prefix)) throw;
        std::string at = message.substr(prefix.size(), message.find(": ", prefix.size()) - prefix.size());
        while (!at.empty() && !file.origins.contains(at)) at = path_around(at);
        if (at.empty() || file.origins.at(at) == file.name) throw;
        throw ConfigError(file.origins.at(at) + message.substr(file.name.size()));
    }
}

}  // namespace torchbus
