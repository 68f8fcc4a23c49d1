#include <torchbus/checkpoint/training_state.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>
#include <functional>
#include <limits>
#include <set>

#include <fmt/format.h>

#include "file.hpp"
#include "folder_writer.hpp"
#include "manifest.hpp"
#include "tensor_file.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kStateName = "state.json";
constexpr const char* kUnknown = "~";  ///< when a folder that cannot be read was written: it sorts as the newest, so that it is told of

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
FileContent content_of_file(const fs::path& folder, const std::string& name, const ManifestFile& expected, std::string (*damage)(std::string_view)) {
    const fs::path file = folder / name;
    try {
        FileContent content = read_file(file);
        const std::size_t size = content.size();
        if (size != expected.size_bytes) throw CheckpointError(file, fmt::format("{} bytes, expected {}; the file is {}", size, expected.size_bytes, size < expected.size_bytes ? "truncated" : "damaged"));
        if (checksum_of(content.text()) != expected.checksum) throw CheckpointError(file, fmt::format("its checksum is not that of the manifest; {}", damage(content.text())));
        return content;
    } catch (const CheckpointError& error) {
        throw CheckpointError(error.what() + way_out(folder));
    }
}

Manifest manifest_of(const fs::path& folder) {
    std::error_code status;
    if (!fs::is_directory(folder, status)) throw CheckpointError(folder, "there is no such folder; give one that was saved, e.g. checkpoints/step_100" + way_out(folder));
    const fs::path file = folder / kManifestName;
    if (!fs::exists(file, status)) throw CheckpointError(folder, fmt::format("it holds no {}, so it is no training state, or not a whole one{}", kManifestName, way_out(folder)));
    try {
        return parse_manifest(read_file(file).text(), file.string());
    } catch (const CheckpointError& error) {
        throw CheckpointError(error.what() + way_out(folder));
    }
}

/// The parts' numbers and texts; which file has whose tensors is said there, too.
json state_values(const fs::path& folder, const Manifest& manifest) {
    const auto listed = manifest.files.find(kStateName);
    if (listed == manifest.files.end()) throw CheckpointError(folder, fmt::format("its manifest names no {}; it is damaged{}", kStateName, way_out(folder)));
    const FileContent content = content_of_file(folder, kStateName, listed->second, [](std::string_view) { return std::string("the file is damaged"); });
    json values = json::parse(content.text(), nullptr, false);
    if (!values.is_object()) throw CheckpointError(folder / kStateName, "it is no JSON object; the file is damaged" + way_out(folder));
    return values;
}

SavedState read_part(const fs::path& folder, const std::string& part, const json& entry, const Manifest& manifest) {
    try {
        SavedState state{decoded(entry.at("values")), {}, entry.at("version")};
        if (!entry.contains("file")) return state;
        const std::string name = entry.at("file");
        const auto listed = manifest.files.find(name);
        if (listed == manifest.files.end()) throw CheckpointError(folder, fmt::format("its manifest does not name {}, which has the tensors of '{}'{}", name, part, way_out(folder)));
        const FileContent content = content_of_file(folder, name, listed->second, damage_in_tensors);
        for (auto& [tensor_name, tensor] : tensors_of_file(content.text(), (folder / name).string(), Checked::Already)) state.tensors.emplace(std::move(tensor_name), std::move(tensor));
        return state;
    } catch (const json::exception& error) {
        throw CheckpointError(folder / kStateName, fmt::format("the part '{}' is described wrongly: {}{}", part, error.what(), way_out(folder)));
    }
}

// ── which is the newest ──────────────────────────────────────────────────────────────────────────────────────────
/// UTC, to the nanosecond, as texts sort.
std::string time_text() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now);
    const std::time_t whole = seconds.count();
    std::tm utc{};
    ::gmtime_r(&whole, &utc);
    return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                       std::chrono::duration_cast<std::chrono::nanoseconds>(now - seconds).count());
}

bool is_finished(const fs::path& path) {
    std::error_code status;
    return fs::exists(path / kManifestName, status);
}

/// States of before have no time.
std::string written_at(const fs::path& state) {
    try {
        return is_finished(state) ? manifest_of(state).about.value("written", "") : kUnknown;
    } catch (const std::exception&) {
        return kUnknown;
    }
}

/// After that of the last one in the folder, also where a clock was put back.
std::string next_time(const fs::path& folder) {
    const std::string time = time_text(), last = written_at(folder / "latest");
    return last != kUnknown && time <= last ? last + "~" : time;
}

/// The folders called `step_<n>`, whole or not.
std::vector<fs::path> folders_in(const fs::path& folder) {
    std::vector<fs::path> found;
    std::error_code status;
    for (fs::directory_iterator entry(folder, status), end; !status && entry != end; entry.increment(status))
        if (step_of(entry->path())) found.push_back(entry->path());
    if (status && status != std::errc::no_such_file_or_directory) throw CheckpointError(folder, fmt::format("cannot list the folder: {}", status.message()));
    return found;
}

/// Of equal time, such as none, the larger step.
void sort_newest_first(std::vector<fs::path>& paths) {
    std::ranges::sort(paths, std::greater(), [](const fs::path& path) { return std::pair(written_at(path), step_of(path).value_or(0)); });
}

}  // namespace

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
    manifest.about["written"] = next_time(path.parent_path());
    folder.commit(std::move(manifest));
}

TrainingState read_training_state(const fs::path& path, const std::optional<std::string>& only) {
    const Manifest manifest = manifest_of(path);
    TrainingState state{path, {}, manifest.view, manifest.about};
    const json values = state_values(path, manifest);
    if (!values.contains("parts") || !values["parts"].is_object()) throw CheckpointError(path / kStateName, "it has no parts; the file is damaged" + way_out(path));
    for (const auto& [part, entry] : values["parts"].items())
        if (!only || part == *only) state.parts.emplace(part, read_part(path, part, entry, manifest));
    return state;
}

TrainingStateSummary summary_of_training_state(const fs::path& path) {
    const Manifest manifest = manifest_of(path);
    TrainingStateSummary summary{path, manifest.view, manifest.about};
    for (const auto& [name, file] : manifest.files) summary.size_bytes += file.size_bytes;
    return summary;
}

FoundState newest_whole_of(std::vector<fs::path> states) {
    FoundState found;
    sort_newest_first(states);
    for (const fs::path& path : states) {
        try {
            found.state = read_training_state(path);
            break;
        } catch (const CheckpointError& error) {
            found.passed_over.emplace_back(error.what());
        }
    }
    return found;
}

FoundState newest_whole_training_state(const std::vector<fs::path>& folders) {
    std::vector<fs::path> states;
    for (const fs::path& folder : folders) {
        const std::vector<fs::path> here = folders_in(folder);
        states.insert(states.end(), here.begin(), here.end());
    }
    return newest_whole_of(std::move(states));
}

std::vector<fs::path> training_states_in(const fs::path& folder) {
    std::vector<fs::path> paths = folders_in(folder);
    std::erase_if(paths, [](const fs::path& path) { return !is_finished(path); });
    sort_newest_first(paths);
    return paths;
}

std::optional<fs::path> newest_training_state(const fs::path& folder, std::optional<std::int64_t> below) {
    std::vector<fs::path> paths = folders_in(folder);
    std::erase_if(paths, [&](const fs::path& path) { return !is_finished(path) || (below && *step_of(path) >= *below); });
    const auto largest = std::ranges::max_element(paths, {}, [](const fs::path& path) { return *step_of(path); });
    return largest == paths.end() ? std::nullopt : std::optional(*largest);
}

}  // namespace torchbus
