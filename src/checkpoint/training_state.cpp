#include <torchbus/checkpoint/training_state.hpp>

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/checkpoint/states_of_ranks.hpp>

#include "tensor_file.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;

/// Returns whether the run took it.
bool put_back(const fs::path& folder, const std::string& part, const SavedState& state, RunState& run) {
    try {
        run.load(part, state);
        return true;
    } catch (const StateError&) {
        return false;
    } catch (const std::exception& error) {
        throw CheckpointError(folder, fmt::format("the part '{}' does not fit this run: {}", part, error.what()));
    }
}

}  // namespace

bool is_essential_part(std::string_view part) { return part == "model" || part == "update" || part.starts_with("update."); }

void require_essential_parts(const TrainingState& saved, const RunState& run) {
    const std::vector<std::string> own = run.parts();
    for (const std::string& part : own)
        if (is_essential_part(part) && !saved.parts.contains(part)) throw CheckpointError(saved.path, fmt::format("it has no part '{}', which this run has; it is of another run; nothing was loaded", part));
    for (const auto& [part, state] : saved.parts)
        if (is_essential_part(part) && std::ranges::find(own, part) == own.end())
            throw CheckpointError(saved.path, fmt::format("its part '{}' is not in this run; it is of another run; nothing was loaded", part));
    if (!saved.parts.contains("model")) return;
    const auto& weights = saved.parts.at("model").tensors;
    const SavedState model = run.save("model");
    if (const auto problems = misfits({weights.begin(), weights.end()}, {model.tensors.begin(), model.tensors.end()}); !problems.empty())
        throw CheckpointError(saved.path, fmt::format("it is of another model: {}; nothing was loaded", fmt::join(problems, "; ")));
}

TrainingState capture(const RunState& run, bool copied) {
    TrainingState state;
    for (const std::string& part : run.parts()) {
        SavedState saved = run.save(part);
        if (copied)
            for (auto& [name, tensor] : saved.tensors) tensor = tensor.detach().clone();
        state.parts.emplace(part, std::move(saved));
    }
    return state;
}

void write_training_state(const fs::path& path, const RunState& run) { write_training_state(path, capture(run, false)); }

RestoredState load_training_state(const fs::path& path, RunState& run) {
    const TrainingState state = read_training_state(path);
    const auto& saved = state.parts;
    require_essential_parts(state, run);
    std::vector<std::string> own = run.parts();
    // What may still refuse goes first; generators last, so that nobody draws from them afterwards.
    const auto order = [](const std::string& part) { return part == "model" ? 1 : part == "generators" ? 3 : is_essential_part(part) ? 0 : 2; };
    std::ranges::stable_sort(own, {}, order);
    RestoredState restored;
    for (const std::string& part : own) {
        const auto found = saved.find(part);
        if (found == saved.end())
            restored.not_saved.push_back(part);
        else
            (put_back(path, part, found->second, run) ? restored.put_back : restored.left_out).push_back(part);
    }
    for (const auto& [part, state] : saved)
        if (std::ranges::find(own, part) == own.end() && !is_part_of_rank(part)) restored.left_out.push_back(part);
    return restored;
}

}  // namespace torchbus
