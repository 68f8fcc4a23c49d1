#pragma once
/// What a configuration file of another tool asks of a run.

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace torchbus {

struct RunChanges {
    /// A value of the run file. `from`: where it stands in the other one, e.g. train_micro_batch_size_per_gpu.
    struct Value {
        std::string path;  ///< e.g. train.batch_size
        nlohmann::json value;
        std::string from;
    };
    /// A callback, with the options that are given.
    struct Wanted {
        std::string kind;
        nlohmann::json options;
        std::string from;
    };
    std::string name;                      ///< of the file that asks
    std::vector<Value> values = {};
    std::vector<Wanted> callbacks = {};
    std::vector<std::string> not_supported = {};  ///< keys of the file that have no effect here
};

/// Puts them into a run file: what it does not say is added, what it says must be the same.
/// Throws: ConfigError that names both places, where the two differ.
void apply(const RunChanges& changes, nlohmann::json& run, const std::string& run_name);

}  // namespace torchbus
