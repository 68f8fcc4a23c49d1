#pragma once
/// Weights by name: of a file in whichever format, chosen and renamed, into a model.

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <torchbus/model.hpp>

namespace torchbus {

/// Which tensors of a file, and under which names. Patterns are of names as the model has them, after renaming: see
/// name_pattern.hpp.
struct WeightsSelection {
    std::string key = {};                   ///< of a Python file: the dictionary that holds them, e.g. state_dict; empty: the only one
    std::vector<std::string> include = {};  ///< patterns of names; empty: all
    std::vector<std::string> skip = {};     ///< patterns of names that are left out
    /// From, to: {"module.*", "*"} takes a prefix away; `*` stands for the same characters in both. The first that fits counts.
    std::vector<std::pair<std::string, std::string>> rename = {};
};

/// The tensors of a safetensors file, of a file of Python's torch.save, or of the model in a training state's folder.
/// Throws: CheckpointError for a file that is missing, truncated or malformed; ConfigError for a selection that makes no
/// sense, or chooses nothing.
std::vector<NamedTensor> read_weights(const std::filesystem::path& path, const WeightsSelection& selection = {});

/// Writes what Python's torch.load(weights_only=True) reads (.pt, .pth, .bin), or safetensors (.safetensors).
/// Throws: ConfigError for another ending; CheckpointError naming the path and what the system said.
void save_weights(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors);

struct LoadWeightsOptions {
    WeightsSelection selection = {};
    bool strict = true;  ///< whether a name that only one side has is an error
};
/// Names, as the model has them.
struct LoadedWeights {
    std::vector<std::string> loaded;
    std::vector<std::string> missing;    ///< the model's, without a tensor in the file
    std::vector<std::string> left_over;  ///< the file's, without a place in the model
};
/// Copies tensors of `path` into the model's parameters and buffers of the same names, converting types.
/// Throws: as read_weights(); CheckpointError that lists what is of another shape (strict or not), missing or left over,
/// or where no name is the model's; nothing was loaded then.
LoadedWeights load_weights(const std::filesystem::path& path, Model& model, const LoadWeightsOptions& options = {});

/// The model's parameters and buffers, parameters first.
std::vector<NamedTensor> weights_of(const Model& model);

/// The mean of each tensor over the files, summed in double; of what is no floating-point number (counters) the last
/// file's. Throws: as read_weights(); CheckpointError for files whose names or shapes differ.
std::vector<NamedTensor> average_weights(const std::vector<std::filesystem::path>& paths, const WeightsSelection& selection = {});

}  // namespace torchbus
