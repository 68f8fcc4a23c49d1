#include "deepspeed_file.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>

#include "deepspeed_keys.hpp"
#include "known_keys.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

bool is_read(std::string_view section) {
    return section == "optimizer" || section == "scheduler" || section == "fp16" || section == "bf16" || section == "bfloat16" || section == "zero_optimization";
}

bool changes_training(std::string_view section) {
    return std::ranges::find(kChangeTraining, section, [](const char* one) { return std::string_view(one); }) != std::end(kChangeTraining);
}

std::string path_of(const std::string& section, const std::string& key) { return section.empty() ? key : section + "." + key; }

void check_section(const DeepSpeedFile& file, const DeepSpeedSection& section, const json& value) {
    const bool may_be_flag = std::string_view(section.name) == "zero_optimization" && value.is_boolean();
    if (may_be_flag || value.is_null()) return;
    if (!value.is_object()) {
        if (*section.keys == '\0' || is_auto(value)) return;
        file.refuse_value(section.name, value, "an object");
    }
    const std::vector<std::string> known = words_of(section.keys);
    if (known.empty()) return;
    for (const auto& [key, inner] : value.items())
        if (std::ranges::find(known, key) == known.end())
            throw ConfigError(fmt::format("{}: {}: unknown key '{}'{}; known are {}", file.name(), section.name, key, did_you_mean(key, known), fmt::join(known, ", ")));
}

}  // namespace

DeepSpeedFile::DeepSpeedFile(std::string name, json content, const json& run, int world_size) : name_(std::move(name)), content_(std::move(content)), run_(run), world_size_(world_size) {
    if (!content_.is_object()) throw ConfigError(fmt::format("{}: a configuration of DeepSpeed is a JSON object; found a {}", name_, content_.type_name()));
    check_keys();
}

void DeepSpeedFile::refuse(const std::string& path, const std::string& what) const { throw ConfigError(fmt::format("{}: {}: {}", name_, path, what)); }
void DeepSpeedFile::refuse_value(const std::string& path, const json& found, const std::string& expected) const {
    refuse(path, fmt::format("{} is {}, expected {}", found.dump(), found.type_name(), expected));
}

void DeepSpeedFile::check_keys() const {
    std::vector<std::string> known = words_of(kDeepSpeedRead);
    std::ranges::move(words_of(kDeepSpeedWithoutEffect), std::back_inserter(known));
    for (const DeepSpeedSection& section : kDeepSpeedSections) known.emplace_back(section.name);
    for (const auto& [key, value] : content_.items()) {
        if (std::ranges::find(known, key) == known.end())
            throw ConfigError(fmt::format("{}: unknown key '{}'{}; it is none of DeepSpeed's", name_, key, did_you_mean(key, known)));
        const auto section = std::ranges::find_if(kDeepSpeedSections, [&](const DeepSpeedSection& one) { return key == one.name; });
        if (section != std::end(kDeepSpeedSections)) check_section(*this, *section, value);
    }
    for (const char* one : kChangeTraining)
        if (is_on(one)) refuse(one, "it is not supported, and would train another model; take it out, or disable it");
    for (const char* size : {"sequence_parallel_size", "data_parallel_size"})
        if (const auto value = integer("", size); value && *value > 1 && !(std::string_view(size) == "data_parallel_size" && *value == world_size_))
            refuse(size, fmt::format("{} is not supported; take it out: every rank trains on its part of a batch", *value));
}

/// A section that says nothing of being enabled is.
bool DeepSpeedFile::is_on(const char* section) const {
    const auto found = content_.find(section);
    if (found == content_.end() || found->is_null() || *found == false) return false;
    if (!found->is_object()) return true;
    if (found->empty()) return false;
    if (std::string_view(section) == "tensor_parallel") return found->value("autotp_size", json(0)) != 0;
    const auto enabled = found->find("enabled");
    return enabled == found->end() ? std::string_view(section) != "msamp" : *enabled != false && !is_auto(*enabled);
}

std::vector<std::string> DeepSpeedFile::without_effect() const {
    std::vector<std::string> keys;
    for (const std::string& scalar : words_of(kDeepSpeedWithoutEffect))
        if (content_.contains(scalar)) keys.push_back(scalar);
    for (const DeepSpeedSection& section : kDeepSpeedSections)
        if (content_.contains(section.name) && !is_read(section.name) && !changes_training(section.name))
            keys.emplace_back(section.name);
    return keys;
}

const json* DeepSpeedFile::find(const std::string& section, const std::string& key) const {
    const json* place = &content_;
    if (!section.empty()) {
        const auto found = content_.find(section);
        if (found == content_.end() || !found->is_object()) return nullptr;
        place = &*found;
    }
    const auto found = place->find(key);
    return found == place->end() || found->is_null() ? nullptr : &*found;
}
std::optional<double> DeepSpeedFile::number_of(const json* value, const std::string& path) const {
    if (!value || is_auto(*value)) return std::nullopt;
    if (!value->is_number()) refuse_value(path, *value, "a number");
    return value->get<double>();
}
std::optional<double> DeepSpeedFile::number(const std::string& section, const std::string& key) const { return number_of(find(section, key), path_of(section, key)); }
std::optional<std::int64_t> DeepSpeedFile::integer(const std::string& section, const std::string& key) const {
    const std::string path = path_of(section, key);
    const auto found = number_of(find(section, key), path);
    if (!found) return std::nullopt;
    if (*found != std::floor(*found) || std::abs(*found) > 1e15) refuse_value(path, *find(section, key), "a whole number");
    return static_cast<std::int64_t>(*found);
}
std::optional<std::int64_t> DeepSpeedFile::size_of(const json* value, const std::string& path, std::int64_t least) const {
    const auto found = number_of(value, path);
    if (!found) return std::nullopt;
    if (*found < static_cast<double>(least) || *found > static_cast<double>(kLargestSize)) refuse(path, fmt::format("{} is out of range; give {} to {}", value->dump(), least, kLargestSize));
    if (*found != std::floor(*found)) refuse_value(path, *value, "a whole number");
    return static_cast<std::int64_t>(*found);
}
std::optional<std::int64_t> DeepSpeedFile::size(const std::string& section, const std::string& key) const { return size_of(find(section, key), path_of(section, key)); }
std::optional<bool> DeepSpeedFile::flag(const std::string& section, const std::string& key) const {
    const json* value = find(section, key);
    if (!value || is_auto(*value)) return std::nullopt;
    if (!value->is_boolean()) refuse_value(path_of(section, key), *value, "true, false or \"auto\"");
    return value->get<bool>();
}
std::optional<std::string> DeepSpeedFile::text(const std::string& section, const std::string& key) const {
    const json* value = find(section, key);
    if (!value || is_auto(*value)) return std::nullopt;
    if (!value->is_string()) refuse_value(path_of(section, key), *value, "a text");
    return value->get<std::string>();
}
bool DeepSpeedFile::says_auto(const std::string& section, const std::string& key) const {
    const json* value = find(section, key);
    return value && is_auto(*value);
}

json DeepSpeedFile::of_run(const char* section, const char* key) const {
    const auto found = run_.find(section);
    return found != run_.end() && found->is_object() && found->contains(key) ? found->at(key) : json();
}
json DeepSpeedFile::of_callback(const char* kind, const char* option) const {
    const auto callbacks = run_.find("callbacks");
    if (callbacks == run_.end() || !callbacks->is_array()) return nullptr;
    for (const json& one : *callbacks)
        if (one.is_object() && one.value("kind", json()) == kind) return one.value(option, json());
    return nullptr;
}

}  // namespace torchbus
