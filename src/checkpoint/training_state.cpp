#include <torchbus/checkpoint/training_state.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "file.hpp"
#include "folder_writer.hpp"
#include "manifest.hpp"
#include "tensor_file.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kStateName = "state.json";

[[noreturn]] void fail(const fs::path& where, const std::string& what) { throw CheckpointError(fmt::format("{}: {}", where.string(), what)); }

// ── numbers that JSON does not know ──────────────────────────────────────────────────────────────────────────────
/// NaN and infinities would become null: {"@float": "nan"} stands for them.
json encoded(const json& value) {
    if (value.is_number_float() && !std::isfinite(value.get<double>())) return {{"@float", fmt::format("{}", value.get<double>())}};
    json result = value;
    if (value.is_structured())
        for (json& item : result) item = encoded(item);
    return result;
}
json decoded(const json& value) {
    if (value.is_object() && value.size() == 1 && value.contains("@float") && value["@float"].is_string()) {
        const std::string text = value["@float"];
        const double infinity = std::numeric_limits<double>::infinity();
        return text == "inf" ? infinity : text == "-inf" ? -infinity : std::numeric_limits<double>::quiet_NaN();
    }
    json result = value;
    if (value.is_structured())
        for (json& item : result) item = decoded(item);
    return result;
}

// ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────
/// A name for the part's file that no other part has: ids may hold any character.
std::string file_of(const std::string& part, std::set<std::string>& taken) {
    std::string name = part;
    std::ranges::replace_if(name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-'; }, '_');
    while (!taken.insert(name).second) name += '_';
    return name + ".safetensors";
}

// ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────
std::optional<std::int64_t> step_of(const fs::path& path) {
    const std::string name = path.filename().string();
    constexpr std::string_view kPrefix = "step_";
    std::int64_t step = 0;
    if (!name.starts_with(kPrefix)) return std::nullopt;
    const auto [end, status] = std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), step);
    return status == std::errc() && end == name.data() + name.size() ? std::optional(step) : std::nullopt;
}

/// "; resume from checkpoints/step_20", where there is an earlier one.
std::string way_out(const fs::path& path) {
    const auto step = step_of(path);
    const auto earlier = step ? newest_training_state(path.parent_path(), *step) : std::nullopt;
    return earlier ? fmt::format("; resume from {}", earlier->string()) : "";
}

/// What a file of the manifest holds, once it is known to be what was written; `damage` tells of the content that is not.
std::string text_of_file(const fs::path& folder, const std::string& name, const ManifestFile& expected, std::string (*damage)(std::string_view)) {
    const fs::path file = folder / name;
    std::string text;
    try {
        text = read_file(file);
    } catch (const CheckpointError& error) {
        throw CheckpointError(error.what() + way_out(folder));
    }
    if (text.size() != expected.size_bytes)
        fail(file, fmt::format("{} bytes, expected {}; the file is {}{}", text.size(), expected.size_bytes, text.size() < expected.size_bytes ? "truncated" : "damaged", way_out(folder)));
    if (checksum_of(text) != expected.checksum) fail(file, fmt::format("its checksum is not that of the manifest; {}{}", damage(text), way_out(folder)));
    return text;
}

Manifest manifest_of(const fs::path& folder) {
    std::error_code status;
    if (!fs::is_directory(folder, status)) fail(folder, "there is no such folder; give one that was saved, e.g. checkpoints/step_100" + way_out(folder));
    const fs::path file = folder / kManifestName;
    if (!fs::exists(file, status)) fail(folder, fmt::format("it holds no {}, so it is no training state, or not a whole one{}", kManifestName, way_out(folder)));
    try {
        return parse_manifest(read_file(file), file.string());
    } catch (const CheckpointError& error) {
        throw CheckpointError(error.what() + way_out(folder));
    }
}

/// The parts' numbers and texts; which file has whose tensors is said there, too.
json state_values(const fs::path& folder, const Manifest& manifest) {
    const auto listed = manifest.files.find(kStateName);
    if (listed == manifest.files.end()) fail(folder, fmt::format("its manifest names no {}; it is damaged{}", kStateName, way_out(folder)));
    const std::string text = text_of_file(folder, kStateName, listed->second, [](std::string_view) { return std::string("the file is damaged"); });
    json values = json::parse(text, nullptr, false);
    if (!values.is_object()) fail(folder / kStateName, "it is no JSON object; the file is damaged" + way_out(folder));
    return values;
}

SavedState read_part(const fs::path& folder, const std::string& part, const json& entry, const Manifest& manifest) {
    try {
        SavedState state{decoded(entry.at("values")), {}, entry.at("version")};
        if (!entry.contains("file")) return state;
        const std::string name = entry.at("file");
        const auto listed = manifest.files.find(name);
        if (listed == manifest.files.end()) fail(folder, fmt::format("its manifest does not name {}, which has the tensors of '{}'{}", name, part, way_out(folder)));
        const std::string text = text_of_file(folder, name, listed->second, damage_in_tensors);
        for (auto& [tensor_name, tensor] : tensors_of_file(text, (folder / name).string())) state.tensors.emplace(std::move(tensor_name), std::move(tensor));
        return state;
    } catch (const json::exception& error) {
        fail(folder / kStateName, fmt::format("the part '{}' is described wrongly: {}{}", part, error.what(), way_out(folder)));
    }
}

/// Returns whether the run took it.
bool put_back(const fs::path& folder, const std::string& part, const SavedState& state, RunState& run) {
    try {
        run.load(part, state);
        return true;
    } catch (const StateError&) {
        return false;
    } catch (const std::exception& error) {
        fail(folder, fmt::format("the part '{}' does not fit this run: {}", part, error.what()));
    }
}

}  // namespace

bool is_essential_part(std::string_view part) { return part == "model" || part == "update" || part.starts_with("update."); }

void require_essential_parts(const TrainingState& saved, const RunState& run) {
    const std::vector<std::string> own = run.parts();
    for (const std::string& part : own)
        if (is_essential_part(part) && !saved.parts.contains(part)) fail(saved.path, fmt::format("it has no part '{}', which this run has; it is of another run; nothing was loaded", part));
    for (const auto& [part, state] : saved.parts)
        if (is_essential_part(part) && std::ranges::find(own, part) == own.end())
            fail(saved.path, fmt::format("its part '{}' is not in this run; it is of another run; nothing was loaded", part));
    if (!saved.parts.contains("model")) return;
    const auto& weights = saved.parts.at("model").tensors;
    const SavedState model = run.save("model");
    if (const auto problems = misfits({weights.begin(), weights.end()}, {model.tensors.begin(), model.tensors.end()}); !problems.empty())
        fail(saved.path, fmt::format("it is of another model: {}; nothing was loaded", fmt::join(problems, "; ")));
}

TrainingState capture(const RunState& run, bool copied) {
    TrainingState state;
    for (const std::string& part : run.parts()) {
        SavedState saved = run.save(part);
        if (copied)
            for (auto& [name, tensor] : saved.tensors) tensor = tensor.detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
        state.parts.emplace(part, std::move(saved));
    }
    return state;
}

void write_training_state(const fs::path& path, const TrainingState& state) {
    FolderWriter folder(path);
    json parts = json::object();
    std::set<std::string> taken;
    for (const auto& [part, saved] : state.parts) {
        json entry = {{"values", encoded(saved.values)}, {"version", saved.version}};
        if (!saved.tensors.empty()) {
            const std::string file = file_of(part, taken);
            folder.begin_file(file);
            write_tensors({saved.tensors.begin(), saved.tensors.end()}, {}, (path / file).string(), [&](const void* bytes, std::size_t count) { folder.write(bytes, count); });
            folder.end_file();
            entry["file"] = file;
        }
        parts[part] = std::move(entry);
    }
    folder.begin_file(kStateName);
    folder.write(json{{"parts", std::move(parts)}}.dump(2) + "\n");
    folder.end_file();
    Manifest manifest;
    manifest.view = state.view;
    manifest.about = state.about;
    folder.commit(std::move(manifest));
}

void write_training_state(const fs::path& path, const RunState& run) { write_training_state(path, capture(run, false)); }

TrainingState read_training_state(const fs::path& path) {
    const Manifest manifest = manifest_of(path);
    TrainingState state{path, {}, manifest.view, manifest.about};
    const json values = state_values(path, manifest);
    if (!values.contains("parts") || !values["parts"].is_object()) fail(path / kStateName, "it has no parts; the file is damaged" + way_out(path));
    for (const auto& [part, entry] : values["parts"].items()) state.parts.emplace(part, read_part(path, part, entry, manifest));
    return state;
}

FoundState newest_whole_training_state(const fs::path& folder) {
    FoundState found;
    std::optional<std::int64_t> below;
    while (const auto newest = newest_training_state(folder, below)) {
        try {
            found.state = read_training_state(*newest);
            break;
        } catch (const CheckpointError& error) {
            found.passed_over.emplace_back(error.what());
        }
        below = step_of(*newest);
    }
    return found;
}

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
        if (std::ranges::find(own, part) == own.end()) restored.left_out.push_back(part);
    return restored;
}

std::optional<fs::path> newest_training_state(const fs::path& folder, std::optional<std::int64_t> below) {
    std::optional<fs::path> newest;
    std::int64_t newest_step = -1;
    std::error_code status;
    for (const auto& entry : fs::directory_iterator(folder, status)) {
        const auto step = step_of(entry.path());
        if (!step || *step <= newest_step || (below && *step >= *below) || !fs::exists(entry.path() / kManifestName)) continue;
        newest_step = *step;
        newest = entry.path();
    }
    return newest;
}

}  // namespace torchbus
