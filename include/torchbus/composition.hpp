#pragma once
/// A run described in JSON: the same composition that code makes.

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/run_config.hpp>

namespace torchbus {

/// Reads a run file and applies `--set path=value` overrides, e.g. "optimizer.learning_rate=0.01" or
/// "callbacks[1].max_norm=2". A value that is no JSON is taken as a string.
/// Throws: ConfigError: file missing, malformed JSON with line and column, a key twice, an override that does not fit.
nlohmann::json read_run_file(const std::filesystem::path& path, const std::vector<std::string>& overrides = {});

/// All that a run file names, made.
struct Composition {
    std::string name;                            ///< the file's name, for messages
    TrainerOptions trainer;
    TrainOptions train;
    std::shared_ptr<const Dataset> train_dataset;
    std::shared_ptr<const Dataset> eval_dataset;
    std::string data;                            ///< "mnist: 60000 training and 10000 test samples"
    std::optional<std::filesystem::path> output; ///< folder for weights and history; none: nothing is written
};

/// Makes all that a run file names. Throws: ConfigError with the JSON path, DataError for its data.
Composition compose(const nlohmann::json& run, const std::string& name);

/// Losses by name: cross_entropy, mse, l1, binary_cross_entropy. Throws: ConfigError for another.
Loss loss_from_json(const nlohmann::json& json, const std::string& where);

enum class Probe : std::uint8_t {
    Create,        ///< the folder is there afterwards
    LeaveNoTrace,  ///< what was made to find out is removed again
};

/// Makes sure that a file can be written in a folder, which need not be there yet. Throws: ConfigError.
void require_writable_folder(const std::filesystem::path& folder, const std::string& where, Probe probe = Probe::Create);

}  // namespace torchbus
