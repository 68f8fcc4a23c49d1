#include <torchbus/checkpoint/training_state.hpp>

#include <fcntl.h>
#include <stdio.h>  // renameat2
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/error.hpp>

namespace torchbus {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kFormat = "torchbus training state";
constexpr int kVersion = 1;
constexpr const char* kIndex = "state.json";

[[noreturn]] void fail(const fs::path& where, const std::string& what) { throw CheckpointError(fmt::format("{}: {}", where.string(), what)); }
void require(const std::error_code& status, const fs::path& where, const char* action) {
    if (status) fail(where, fmt::format("cannot {}: {}; nothing was changed", action, status.message()));
}

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

void write_parts(const fs::path& folder, const RunState& run) {
    json parts = json::object();
    std::set<std::string> taken;
    for (const std::string& part : run.parts()) {
        const SavedState state = run.save(part);
        json entry = {{"values", encoded(state.values)}};
        if (!state.tensors.empty()) {
            const std::string file = file_of(part, taken);
            save_safetensors(folder / file, std::vector<NamedTensor>(state.tensors.begin(), state.tensors.end()));
            entry["file"] = file;
            entry["size_bytes"] = fs::file_size(folder / file);
        }
        parts[part] = std::move(entry);
    }
    AtomicFile index(folder / kIndex);
    index.write(json{{"format", kFormat}, {"version", kVersion}, {"parts", std::move(parts)}}.dump(2) + "\n");
    index.commit();
}

void sync_folder(const fs::path& folder) {
    const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = descriptor >= 0 && ::fsync(descriptor) == 0;
    const int error = errno;
    if (descriptor >= 0) ::close(descriptor);
    if (!synced) fail(folder, fmt::format("cannot sync the folder: {}; what was written may not outlast a power failure", std::strerror(error)));
}

/// Puts `made` in the place of `target`, and what was there in the place of `made`. One rename either way, where the file
/// system can exchange two names; where it cannot, the old folder is moved aside first.
void put_in_place(const fs::path& made, const fs::path& target) {
    if (!fs::exists(target)) {
        if (::rename(made.c_str(), target.c_str()) != 0) fail(target, fmt::format("cannot rename to it: {}; nothing was changed", std::strerror(errno)));
        return;
    }
    if (::renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) return;
    const fs::path aside = made.string() + ".old";
    std::error_code status;
    fs::rename(target, aside, status);
    require(status, target, "move the old folder aside");
    if (::rename(made.c_str(), target.c_str()) != 0) {
        const int error = errno;
        fs::rename(aside, target, status);
        fail(target, fmt::format("cannot rename to it: {}; nothing was changed", std::strerror(error)));
    }
    fs::rename(aside, made, status);
}

/// A folder that is removed again, whatever it holds in the end.
struct TemporaryFolder {
    fs::path path;
    explicit TemporaryFolder(fs::path where) : path(std::move(where)) {
        std::error_code status;
        fs::remove_all(path, status);  // one that a process that died has left
        fs::create_directories(path, status);
        require(status, path, "make the folder");
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
    }
};

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

json read_index(const fs::path& folder) {
    if (!fs::is_directory(folder)) fail(folder, "there is no such folder; give one that was saved, e.g. checkpoints/step_100" + way_out(folder));
    std::ifstream stream(folder / kIndex);
    if (!stream) fail(folder, fmt::format("it holds no {}, so it is no training state, or not a whole one{}", kIndex, way_out(folder)));
    json index = json::parse(stream, nullptr, false);
    if (!index.is_object() || !index.contains("parts") || !index["parts"].is_object() || index.value("format", "") != kFormat)
        fail(folder / kIndex, fmt::format("the file is truncated, damaged or of another kind{}", way_out(folder)));
    if (index.value("version", 0) != kVersion)
        fail(folder / kIndex, fmt::format("version {} is not known, expected {}; it was written by another torchbus", index.value("version", 0), kVersion));
    return index["parts"];
}

SavedState read_part(const fs::path& folder, const std::string& part, const json& entry) {
    try {
        SavedState state{decoded(entry.at("values")), {}};
        if (!entry.contains("file")) return state;
        const fs::path file = folder / entry.at("file").get<std::string>();
        const auto expected = entry.at("size_bytes").get<std::uintmax_t>();
        std::error_code status;
        const std::uintmax_t size = fs::file_size(file, status);
        if (status) fail(file, fmt::format("cannot open the file: {}{}", status.message(), way_out(folder)));
        if (size != expected)
            fail(file, fmt::format("{} bytes, expected {}; the file is {}{}", size, expected, size < expected ? "truncated" : "damaged", way_out(folder)));
        for (auto& [name, tensor] : load_safetensors(file)) state.tensors.emplace(std::move(name), std::move(tensor));
        return state;
    } catch (const json::exception& error) {
        fail(folder / kIndex, fmt::format("the part '{}' is described wrongly: {}{}", part, error.what(), way_out(folder)));
    }
}

/// What of the saved weights does not fit those of the run; empty where all does.
std::vector<std::string> misfits(const SavedState& saved, const SavedState& own) {
    std::vector<std::string> problems;
    for (const auto& [name, tensor] : own.tensors) {
        const auto found = saved.tensors.find(name);
        if (found == saved.tensors.end())
            problems.push_back(fmt::format("'{}' is missing", name));
        else if (found->second.sizes() != tensor.sizes())
            problems.push_back(fmt::format("'{}' has shape [{}], the model's has [{}]", name, fmt::join(found->second.sizes(), ", "), fmt::join(tensor.sizes(), ", ")));
    }
    for (const auto& [name, tensor] : saved.tensors)
        if (!own.tensors.contains(name)) problems.push_back(fmt::format("'{}' is not in the model", name));
    return problems;
}

bool is_essential(std::string_view part) { return part == "model" || part == "update" || part.starts_with("update."); }

void require_fit(const fs::path& folder, const std::map<std::string, SavedState>& saved, const RunState& run, const std::vector<std::string>& own) {
    for (const std::string& part : own)
        if (is_essential(part) && !saved.contains(part)) fail(folder, fmt::format("it has no part '{}', which this run has; it is of another run; nothing was loaded", part));
    for (const auto& [part, state] : saved)
        if (is_essential(part) && std::ranges::find(own, part) == own.end())
            fail(folder, fmt::format("its part '{}' is not in this run; it is of another run; nothing was loaded", part));
    const auto problems = saved.contains("model") ? misfits(saved.at("model"), run.save("model")) : std::vector<std::string>();
    if (!problems.empty()) fail(folder, fmt::format("it is of another model: {}; nothing was loaded", fmt::join(problems, "; ")));
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

void write_training_state(const fs::path& path, const RunState& run) {
    const fs::path parent = path.has_parent_path() ? path.parent_path() : fs::path(".");
    const TemporaryFolder temporary(parent / fmt::format(".{}.part", path.filename().string()));
    write_parts(temporary.path, run);
    put_in_place(temporary.path, path);
    sync_folder(parent);
}

RestoredState load_training_state(const fs::path& path, RunState& run) {
    const json index = read_index(path);
    std::map<std::string, SavedState> saved;
    for (const auto& [part, entry] : index.items()) saved.emplace(part, read_part(path, part, entry));
    std::vector<std::string> own = run.parts();
    require_fit(path, saved, run, own);
    // What may still refuse goes first; generators last, so that nobody draws from them afterwards.
    const auto order = [](const std::string& part) { return part == "model" ? 1 : part == "generators" ? 3 : is_essential(part) ? 0 : 2; };
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
        if (!step || *step <= newest_step || (below && *step >= *below) || !fs::exists(entry.path() / kIndex)) continue;
        newest_step = *step;
        newest = entry.path();
    }
    return newest;
}

}  // namespace torchbus
