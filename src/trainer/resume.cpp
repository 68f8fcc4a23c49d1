#include "resume.hpp"

#include <algorithm>
#include <functional>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

namespace torchbus {

/// One difference between a saved run and the one to come. `name` is what allows it.
struct Difference {
    std::string name, text;
};

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

bool is_callback(std::string_view part) { return part.starts_with("callback."); }

Counts counts_from(const json& values) {
    return {values.at("step"), values.at("attempts"), values.at("micro_batch"), values.at("samples"), values.at("tokens")};
}

Position position_from(const json& values) {
    Position position;
    static_cast<Counts&>(position) = counts_from(values);
    position.epoch = values.at("epoch");
    position.in_epoch = counts_from(values.at("in_epoch"));
    return position;
}

/// Numbers, texts and whole objects that are not the same, each under its path.
void compare(const json& saved, const json& own, const std::string& name, const std::string& path, std::vector<Difference>& found) {
    if (saved == own) return;
    if (saved.is_object() && own.is_object()) {
        for (const auto& [key, value] : saved.items()) compare(value, own.contains(key) ? own.at(key) : json(), name, path.empty() ? key : path + "." + key, found);
        for (const auto& [key, value] : own.items())
            if (!saved.contains(key)) compare(json(), value, name, path.empty() ? key : path + "." + key, found);
        return;
    }
    found.push_back({name, fmt::format("{} was {}, is {}", path.empty() ? name : name + ": " + path, saved.dump(), own.dump())});
}

/// What differs in how the run is configured: one name for each entry, and one for each callback's options.
std::vector<Difference> compare_configurations(const json& saved, const json& own) {
    std::vector<Difference> found;
    for (const auto& [name, value] : own.items())
        if (name != "callbacks" && name != "environment" && name != "max_steps" && saved.contains(name)) compare(saved.at(name), value, name, "", found);
    const json empty = json::object();
    const json& saved_callbacks = saved.contains("callbacks") ? saved.at("callbacks") : empty;
    for (const auto& [id, callback] : own.at("callbacks").items())
        if (saved_callbacks.contains(id)) compare(saved_callbacks.at(id), callback, "callback." + id, "", found);
    return found;
}

}  // namespace

namespace {

/// The newest whole state of a folder, or nothing where there is none and that is allowed.
std::optional<TrainingState> found_by(const ResumeOptions& options) {
    if (fs::exists(options.from / "manifest.json")) return read_training_state(options.from);
    std::vector<fs::path> folders = {options.from};
    folders.insert(folders.end(), options.also.begin(), options.also.end());
    for (const fs::path& folder : folders) bring_back_training_states(folder);
    FoundState found = newest_whole_training_state(folders);
    // A run that has come far is not to begin anew over what it cannot read.
    if (!found.state && !found.passed_over.empty())
        throw CheckpointError(fmt::format("{}: none of the training states there can be read: {}; mend them, or move them away to begin anew", options.from.string(), fmt::join(found.passed_over, "; ")));
    for (const std::string& passed : found.passed_over) warn(fmt::format("passed over {}", passed));
    if (!found.state && !options.if_any)
        throw CheckpointError(fmt::format("{}: there is no whole training state to resume from; give a folder that was saved, e.g. checkpoints/step_100, or one that holds some",
                                          options.from.string()));
    return std::move(found.state);
}

/// What rank 0 finds, read by all: ranks that go on from different states would train different models.
std::optional<TrainingState> read_by_all(Consensus& consensus, const std::function<std::optional<TrainingState>()>& find) {
    if (consensus.world_size() == 1) return find();
    std::optional<TrainingState> found;
    std::exception_ptr failure;
    json told = json::object();
    if (consensus.rank() == 0) {
        try {
            found = find();
            told["path"] = found ? json(found->path.string()) : json();
        } catch (const std::exception& error) {
            failure = std::current_exception();
            told["failure"] = error.what();
        }
    }
    told = json::parse(consensus.broadcast(told.dump()));
    if (failure) std::rethrow_exception(failure);
    if (told.contains("failure")) throw CheckpointError(fmt::format("rank 0 found no state to go on from: {}", told.at("failure").get<std::string>()));
    if (consensus.rank() > 0 && !told.at("path").is_null()) found = read_training_state(told.at("path").get<std::string>());
    return found;
}

}  // namespace

std::shared_ptr<const Resume> Resume::find(const ResumeOptions& options, Consensus& consensus) {
    auto found = read_by_all(consensus, [&] { return found_by(options); });
    if (!found) return nullptr;
    return std::shared_ptr<const Resume>(new Resume(std::move(*found), options.allow, consensus));
}

std::shared_ptr<const Resume> Resume::newest_of(const std::vector<std::string>& states, Consensus& consensus) {
    auto found = read_by_all(consensus, [&] {
        FoundState newest = newest_whole_of({states.begin(), states.end()});
        if (!newest.state) throw CheckpointError(fmt::format("none of the run's training states can be read: {}", fmt::join(newest.passed_over, "; ")));
        for (const std::string& passed : newest.passed_over) warn(fmt::format("passed over {}", passed));
        return std::move(newest.state);
    });
    return std::shared_ptr<const Resume>(new Resume(std::move(*found), {}, consensus));
}

int Resume::saved_world_size() const { return state_.parts.at("configuration").values.value("world_size", 1); }

void Resume::fail(const std::string& what) const { throw CheckpointError(fmt::format("{}: {}", state_.path.string(), what)); }

ResumePoint Resume::point(std::int64_t batch_size) const {
    try {
        const json& data = state_.parts.at("data").values;
        ResumePoint point{position_from(state_.parts.at("position").values), {data.at("epoch"), data.at("batches")}, run_progress_from(state_.parts.at("decisions").values)};
        const json& configuration = state_.parts.at("configuration").values;
        // With batches of another size, as many samples are left out as were seen.
        if (const std::int64_t before = configuration.at("batch_size").get<std::int64_t>() * configuration.value("world_size", std::int64_t{1}); before != batch_size) {
            const auto converted = [&](std::int64_t batches) { return batches * before / batch_size; };
            point.data.batches = converted(point.data.batches);
            for (auto& [range, requester, why] : point.progress.left_out) {
                const std::int64_t end = (range.first + range.count) * before;
                range.first = converted(range.first);
                range.count = (end + batch_size - 1) / batch_size - range.first;
            }
        }
        return point;
    } catch (const std::exception& error) {
        fail(fmt::format("it does not say where the run goes on: {}", error.what()));
    }
}

bool Resume::is_allowed(const std::string& name) const { return std::ranges::find(allowed_, name) != allowed_.end(); }

/// Without them the bits may differ, the run is the same.
void Resume::tell_environment(const json& own) const {
    const json& configuration = state_.parts.at("configuration").values;
    std::vector<Difference> differences;
    if (configuration.contains("environment") && own.contains("environment")) compare(configuration.at("environment"), own.at("environment"), "environment", "", differences);
    std::vector<std::string> texts;
    for (const Difference& difference : differences) texts.push_back(difference.text);
    if (!texts.empty()) warn(fmt::format("{}: {}; what is computed from here on may differ in the last bits from the run that was saved", state_.path.string(), fmt::join(texts, "; ")));
}

void Resume::require_known_versions(const RunState& run) const {
    for (const std::string& part : run.parts()) {
        const auto saved = state_.parts.find(part);
        if (saved == state_.parts.end()) continue;
        if (const int known = run.save(part).version; saved->second.version > known)
            fail(fmt::format("the part '{}' is of version {}, this program knows up to {}; use the one that saved it, or a newer one; nothing was loaded", part, saved->second.version, known));
    }
}

/// An epoch that max_steps cut off has ended; a run of more steps would never see the rest of its data.
std::optional<Difference> Resume::cut_epoch(const json& own) const {
    const bool was_cut = state_.parts.at("decisions").values.value("epoch_cut", false);
    const std::int64_t step = state_.parts.at("position").values.at("step");
    const json most = own.value("max_steps", json());
    if (!was_cut || (most.is_number() && most <= step)) return std::nullopt;
    return Difference{"max_steps", fmt::format("its last epoch was cut off by max_steps after step {}, and the rest of that epoch's data would be left out", step)};
}

void Resume::require_same_run(const RunState& run) const {
    require_essential_parts(state_, run);
    require_known_versions(run);
    const std::vector<std::string> own = run.parts();
    const json configuration = run.save("configuration").values;
    std::vector<Difference> differences;
    for (const std::string& part : own)
        if (!state_.parts.contains(part)) differences.push_back({part, fmt::format("{} is new, and has no saved state to go on with", part)});
    for (const auto& [part, state] : state_.parts)
        if (!is_part_of_rank(part) && std::ranges::find(own, part) == own.end()) differences.push_back({part, fmt::format("{} was saved, and is not in this run", part)});
    for (Difference& difference : compare_configurations(state_.parts.at("configuration").values, configuration)) differences.push_back(std::move(difference));
    if (const auto cut = cut_epoch(configuration)) differences.push_back(*cut);
    std::vector<std::string> texts, names;
    for (const Difference& difference : differences) {
        if (is_allowed(difference.name)) continue;
        texts.push_back(difference.text);
        if (std::ranges::find(names, difference.name) == names.end()) names.push_back(difference.name);
    }
    if (!texts.empty()) fail(fmt::format("it is of another run: {}; to go on all the same allow by name: {}; nothing was loaded", fmt::join(texts, "; "), fmt::join(names, ", ")));
    tell_environment(configuration);
}

void Resume::put_back_part(RunState& run, const std::string& part) const {
    if (!state_.parts.contains(part)) return;
    const int saved_size = saved_world_size();
    if (part == "generators" && rank_ >= saved_size) return;  // this rank had none: it draws as a new one does
    try {
        const std::vector<SavedState> of_ranks = states_of_ranks(state_, part, saved_size);
        if (saved_size == world_size_ || part == "generators")
            run.load(part, of_ranks[static_cast<std::size_t>(rank_)]);
        else
            run.load_of_ranks(part, of_ranks);
    } catch (const std::exception& error) {
        fail(fmt::format("the part '{}' does not fit this run: {}", part, error.what()));
    }
}

void Resume::put_back_all_but_after_start(RunState& run) const {
    for (const std::string& part : run.parts())
        if (is_callback(part)) put_back_part(run, part);
    for (const char* part : {"options", "blackboard", "history"}) put_back_part(run, part);
    for (const std::string& part : run.parts())
        if (is_essential_part(part)) put_back_part(run, part);
}

void Resume::before_start(RunState& run) const {
    require_same_run(run);
    put_back_all_but_after_start(run);
}

void Resume::after_start(RunState& run) const {
    put_back_part(run, "connections");
    put_back_part(run, "generators");  // last, so that nobody draws from them afterwards
}

void Resume::put_back(RunState& run) const {
    require_essential_parts(state_, run);
    put_back_all_but_after_start(run);
    after_start(run);
}

}  // namespace torchbus
