#pragma once
/// A run described in JSON: the same composition that code makes.

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <torchbus/checkpoint/writable.hpp>
#include <torchbus/run_config.hpp>

namespace torchbus {

/// Reads a run file. In this order:
/// - `${NAME}` in a text is replaced by that environment variable, `${NAME:-default}` has a default where it is unset
///   or empty, `$${` stands for `${`;
/// - `"include": "base.json"`, or a list of files relative to this one: they come first, in their order, and this file
///   after them. Objects merge key by key, unless they name another `kind`; all else replaces;
/// - `"plugins"` become relative to the working folder;
/// - `"accelerate": "accelerate.yaml"` and `"deepspeed": "ds_config.json"`: what these files ask for is put in at the end, and
///   must not differ from what the run file says;
/// - overrides of `--set path=value`, e.g. "optimizer.learning_rate=0.01" or "callbacks[1].max_norm=2". A value that is
///   no JSON is taken as a string.
/// Throws: ConfigError: file missing, malformed JSON with line and column, a key twice, files that include each other,
/// a variable that is not set, an override that does not fit.
nlohmann::json read_run_file(const std::filesystem::path& path, const std::vector<std::string>& overrides = {});

/// A run file as read, and which file each value comes from.
struct RunFileContent {
    std::string name;
    nlohmann::json run;
    std::map<std::string, std::string> origins;  ///< file by path, e.g. "optimizer.learning_rate" or "callbacks"
};
/// To train as it says, on as many ranks as configurations of other tools name; or to look at it, or evaluate, with one process or as many.
enum class Purpose : std::uint8_t { Train, Look };
RunFileContent load_run_file(const std::filesystem::path& path, const std::vector<std::string>& overrides = {}, Purpose purpose = Purpose::Train);

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
/// The same; a message names the file that the value comes from.
Composition compose(const RunFileContent& file);

/// The array `callbacks` of a run file. Throws: ConfigError that begins with the path, e.g. "run.json: callbacks[2]: ".
std::vector<ComposedCallback> callbacks_from_json(const nlohmann::json& part, const std::string& where);

/// A loss by name, e.g. "mse", or by kind and options. Throws: ConfigError for one that is in no table.
Loss loss_from_json(const nlohmann::json& json, const std::string& where);

/// Makes sure that a file can be written in a folder, which need not be there yet. Throws: ConfigError.
void require_writable_folder(const std::filesystem::path& folder, const std::string& where, Probe probe = Probe::Create);

}  // namespace torchbus
