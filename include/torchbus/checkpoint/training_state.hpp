#pragma once
/// All of a run in a folder: one state.json, and a safetensors file for every part that has tensors.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <torchbus/run_state.hpp>

namespace torchbus {

/// Writes every part of `run` into the folder `path`. It is written beside it under a hidden temporary name, synced, and
/// renamed: at any time `path` is the old one, the new one, or not there. A folder that is there already is replaced.
/// Throws: CheckpointError naming the path and what the system said; then `path` is as it was.
void write_training_state(const std::filesystem::path& path, const RunState& run);

/// What load_training_state did, by name of the parts.
struct RestoredState {
    std::vector<std::string> put_back;
    std::vector<std::string> left_out;  ///< saved, but this run has no such part, or does not take it while it is under way
    std::vector<std::string> not_saved; ///< parts of this run that the folder knows nothing of
};

/// Puts back what can be put back: the optimizers and the model, which must all be there and fit, then the other parts.
/// The folder is read and compared with the run before the first part is touched. Where the run goes on (`data`,
/// `position`) is not for a run under way to take.
/// Throws: CheckpointError for a folder that is missing, truncated, damaged or of another model.
RestoredState load_training_state(const std::filesystem::path& path, RunState& run);

/// The folder `step_<n>` in `folder` that was finished with the largest n, or nothing. `below`: only smaller n.
std::optional<std::filesystem::path> newest_training_state(const std::filesystem::path& folder, std::optional<std::int64_t> below = {});

}  // namespace torchbus
