#pragma once
/// The content of a DeepSpeed file: its keys are known, and values are of their type when they are asked for.

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <torchbus/composition/run_changes.hpp>

namespace torchbus {

/// Of a batch, or of a number of updates; two of them multiply within 64 bits.
inline constexpr std::int64_t kLargestSize = std::numeric_limits<std::int32_t>::max();

class DeepSpeedFile {
public:
    /// `run`: the run file that names it. Throws: ConfigError for a key that is unknown, or what would train another model.
    DeepSpeedFile(std::string name, nlohmann::json content, const nlohmann::json& run, int world_size);

    const std::string& name() const { return name_; }
    int world_size() const { return world_size_; }
    [[noreturn]] void refuse(const std::string& path, const std::string& what) const;
    [[noreturn]] void refuse_value(const std::string& path, const nlohmann::json& found, const std::string& expected) const;

    /// Of a section, or of the top level where that is empty; null counts as missing. What is "auto" is no value.
    /// Throws: ConfigError for another type.
    const nlohmann::json* find(const std::string& section, const std::string& key) const;
    std::optional<double> number(const std::string& section, const std::string& key) const;
    std::optional<std::int64_t> integer(const std::string& section, const std::string& key) const;
    std::optional<std::int64_t> size(const std::string& section, const std::string& key) const;
    std::optional<bool> flag(const std::string& section, const std::string& key) const;
    std::optional<std::string> text(const std::string& section, const std::string& key) const;
    std::optional<double> number_of(const nlohmann::json* value, const std::string& path) const;
    /// From `least` to kLargestSize.
    std::optional<std::int64_t> size_of(const nlohmann::json* value, const std::string& path, std::int64_t least = 1) const;
    bool says_auto(const std::string& section, const std::string& key) const;

    /// What the run file says; null where it does not.
    nlohmann::json of_run(const char* section, const char* key) const;
    nlohmann::json of_callback(const char* kind, const char* option) const;

    /// Keys that are there and have no effect here: top-level ones, and sections as wholes.
    std::vector<std::string> without_effect() const;

private:
    void check_keys() const;
    bool is_on(const char* section) const;

    std::string name_;
    nlohmann::json content_;
    const nlohmann::json& run_;
    int world_size_;
};

inline bool is_auto(const nlohmann::json& value) { return value == "auto"; }

/// What the sections optimizer and scheduler ask for.
void take_optimizer(const DeepSpeedFile& file, RunChanges& changes);
void take_scheduler(const DeepSpeedFile& file, RunChanges& changes);

}  // namespace torchbus
