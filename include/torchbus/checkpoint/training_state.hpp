#pragma once
/// All of a run in a folder: manifest.json with the size and checksum of every file, state.json, and a safetensors file
/// for every part that has tensors.

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/checkpoint/disk.hpp>
#include <torchbus/run_state.hpp>

namespace torchbus {

/// A training state in memory.
struct TrainingState {
    std::filesystem::path path = {};  ///< where it was read from
    std::map<std::string, SavedState> parts = {};
    std::string view = "training";    ///< which weights the part "model" holds
    nlohmann::json about = nlohmann::json::object();  ///< for people: why it was saved, …
};

/// Every part of a run, as it is now. With `copied` its tensors are clones on the devices where they are, which the run does not
/// change; who writes them brings them to the CPU.
TrainingState capture(const RunState& run, bool copied);

/// Writes a state into the folder `path`: beside it under a hidden name first, every file synced, then renamed. At any time,
/// also after a crash or a power failure, `path` is the old one, the new one, or not there.
/// Throws: CheckpointError naming the path and what the system said, and then `path` is as it was; NotDurableError.
void write_training_state(const std::filesystem::path& path, const TrainingState& state);
void write_training_state(const std::filesystem::path& path, const RunState& run);

/// Throws: CheckpointError for a folder that is missing, or of which any file is missing, truncated or damaged: it names
/// the file, and the tensor where the file's header can be read. `only`: of its parts this one, if it is there.
TrainingState read_training_state(const std::filesystem::path& path, const std::optional<std::string>& only = {});

/// What a training state says of itself; of its files only the manifest is read. Throws: CheckpointError.
struct TrainingStateSummary {
    std::filesystem::path path;
    std::string view;
    nlohmann::json about;
    std::uint64_t size_bytes = 0;  ///< of all files but the manifest
};
TrainingStateSummary summary_of_training_state(const std::filesystem::path& path);

/// Makes `name` (latest, best) in the folder of a checkpoint a link to it, in one step; for a checkpoint that is durable.
/// Throws: CheckpointError; the link is then as it was. What is there and is no link stays, and is an error.
void point_link_to(const std::filesystem::path& checkpoint, const std::string& name);

/// Brings back a step_<n> that an interrupted save had moved aside.
void bring_back_training_states(const std::filesystem::path& folder);
/// Does so, and removes what an interrupted save has left half done; for who saves there next, and holds the folder's lock:
/// another's save under way would be gone. What has another name stays.
void clean_up_training_states(const std::filesystem::path& folder);

/// Removes a training state, first under a hidden name: what is half deleted is not to look like one. Missing ones are fine.
/// Throws: CheckpointError.
void remove_training_state(const std::filesystem::path& path);

/// The newest of some folders that can be read as a whole, and what is wrong with the newer ones.
struct FoundState {
    std::optional<TrainingState> state;
    std::vector<std::string> passed_over;
};
/// Throws: CheckpointError for a folder that is there and cannot be listed.
FoundState newest_whole_training_state(const std::vector<std::filesystem::path>& folders);
/// The same of these states, wherever they lie.
FoundState newest_whole_of(std::vector<std::filesystem::path> states);

/// The folders `step_<n>` in `folder` that were finished, newest first.
std::vector<std::filesystem::path> training_states_in(const std::filesystem::path& folder);

/// The folder `step_<n>` in `folder` that was finished with the largest n, or nothing. `below`: only smaller n.
std::optional<std::filesystem::path> newest_training_state(const std::filesystem::path& folder, std::optional<std::int64_t> below = {});

/// What load_training_state did, by name of the parts.
struct RestoredState {
    std::vector<std::string> put_back;
    std::vector<std::string> left_out;  ///< saved, but this run has no such part, or does not take it while it is under way
    std::vector<std::string> not_saved; ///< parts of this run that the folder knows nothing of
};

/// Puts back what can be put back: the optimizers and the model, which must all be there and fit, then the other parts.
/// The folder is read and compared with the run before the first part is touched. Where the run goes on is not for a run
/// under way to take: that is TrainOptions::resume.
/// Throws: CheckpointError for a folder that is missing, truncated, damaged or of another model.
RestoredState load_training_state(const std::filesystem::path& path, RunState& run);

/// The model and the optimizers: without them, and with others, no run goes on.
bool is_essential_part(std::string_view part);
/// Throws: CheckpointError where an essential part is missing, left over, or of another model; it names all that does not fit.
void require_essential_parts(const TrainingState& saved, const RunState& run);

}  // namespace torchbus
