// torchbus checkpoint: what training states and files of weights hold, and their weights in other formats.
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/checkpoint/weights.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Paths = std::vector<fs::path>;

WeightsSelection selection_of(const json& options) {
    WeightsSelection selection{options.at("key"), options.at("include"), options.at("skip"), {}};
    for (const std::string rule : options.at("rename")) {
        const auto equals = rule.find('=');
        if (equals == std::string::npos) throw ConfigError(fmt::format("--rename {}: expected FROM=TO, e.g. 'module.*=*'", rule));
        selection.rename.emplace_back(rule.substr(0, equals), rule.substr(equals + 1));
    }
    return selection;
}

std::string in_words(std::uint64_t bytes) {
    if (bytes < 1024) return fmt::format("{} B", bytes);
    double value = static_cast<double>(bytes) / 1024;
    const char* const units[] = {"KiB", "MiB", "GiB", "TiB"};
    std::size_t unit = 0;
    for (; value >= 1024 && unit < 3; ++unit) value /= 1024;
    return fmt::format("{:.1f} {}", value, units[unit]);
}

void print(const std::string& line) { std::printf("%s\n", line.c_str()); }

bool is_folder(const fs::path& path) {
    std::error_code status;
    return fs::is_directory(path, status);
}

std::string in_words(const at::Tensor& tensor) { return fmt::format("{:<9} [{}]", c10::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", ")); }

// ── ls, show, verify ─────────────────────────────────────────────────────────────────────────────────────────────
/// A folder whose manifest cannot be read is listed, too.
int list(const fs::path& folder) {
    if (!is_folder(folder)) throw CheckpointError(fmt::format("{}: there is no such folder; give one that a run saves to, e.g. checkpoints", folder.string()));
    const Paths states = training_states_in(folder);
    if (states.empty()) print(folder.string() + ": no training state");
    std::error_code status;
    const fs::path latest = fs::read_symlink(folder / "latest", status);
    for (const fs::path& path : states) {
        try {
            const TrainingStateSummary summary = summary_of_training_state(path);
            print(fmt::format("{:<14} epoch {:<5} {:>10}  {}{}", path.filename().string(), summary.about.value("epoch", json("?")).dump(), in_words(summary.size_bytes),
                              summary.about.value("reason", ""), path.filename() == latest ? "  (latest)" : ""));
        } catch (const CheckpointError& error) {
            print(fmt::format("{:<14} {}", path.filename().string(), error.what()));
        }
    }
    return 0;
}

void show_tensors(const std::vector<NamedTensor>& tensors, const std::string& indent) {
    for (const auto& [name, tensor] : tensors) print(fmt::format("{}{:<40} {}", indent, name, in_words(tensor)));
}

int show(const fs::path& path, const WeightsSelection& selection) {
    if (!is_folder(path)) {
        const auto tensors = read_weights(path, selection);
        std::uint64_t bytes = 0;
        for (const auto& [name, tensor] : tensors) bytes += tensor.nbytes();
        print(fmt::format("{}: {} tensors, {}", path.string(), tensors.size(), in_words(bytes)));
        return show_tensors(tensors, "  "), 0;
    }
    const TrainingState state = read_training_state(path);
    print(fmt::format("{}: weights of the view '{}', {}", path.string(), state.view, in_words(summary_of_training_state(path).size_bytes)));
    for (const auto& [name, value] : state.about.items()) print(fmt::format("  {:<10} {}", name, value.is_string() ? value.get<std::string>() : value.dump()));
    for (const auto& [part, saved] : state.parts) {
        print(fmt::format("{}{}", part, saved.values.empty() ? "" : "  " + saved.values.dump()));
        show_tensors({saved.tensors.begin(), saved.tensors.end()}, "  ");
    }
    return 0;
}

/// All are looked at, whatever is found.
int verify(const Paths& paths) {
    int exit_code = 0;
    for (const fs::path& path : paths) {
        try {
            if (is_folder(path)) read_training_state(path);
            else read_weights(path);
            print(path.string() + ": whole");
        } catch (const Error& error) {
            print(error.what());
            exit_code = 1;
        }
    }
    return exit_code;
}

// ── export, import, average ──────────────────────────────────────────────────────────────────────────────────────
int write(const std::vector<NamedTensor>& weights, const fs::path& to) {
    save_weights(to, weights);
    std::fprintf(stderr, "%zu tensors are in %s\n", weights.size(), to.c_str());
    return 0;
}

int import_weights(const Paths& paths, const WeightsSelection& selection) {
    if (paths[1].extension() != ".safetensors") throw ConfigError(fmt::format("{}: import writes safetensors; give a name that ends so (export writes other formats)", paths[1].string()));
    return write(read_weights(paths[0], selection), paths[1]);
}

// ── diff ─────────────────────────────────────────────────────────────────────────────────────────────────────────
/// A line for every difference; returns how many there are.
int print_differences(const std::vector<NamedTensor>& one, const std::vector<NamedTensor>& other, const std::string& prefix) {
    const std::map<std::string, at::Tensor> first(one.begin(), one.end()), second(other.begin(), other.end());
    int differences = 0;
    const auto tell = [&](const std::string& name, const std::string& what) {
        print(fmt::format("{}{}: {}", prefix, name, what));
        ++differences;
    };
    for (const auto& [name, tensor] : one) {
        const auto found = second.find(name);
        if (found == second.end()) {
            tell(name, "only in the first");
        } else if (const at::Tensor& own = found->second; own.sizes() != tensor.sizes() || own.scalar_type() != tensor.scalar_type()) {
            tell(name, fmt::format("{} and {}", in_words(tensor), in_words(own)));
        } else if (!own.contiguous().view(-1).view(at::kByte).equal(tensor.contiguous().view(-1).view(at::kByte))) {
            const at::Tensor distance = (own.to(at::kDouble) - tensor.to(at::kDouble)).abs();
            tell(name, fmt::format("{} of {} elements differ, by {:.3g} at most", distance.ne(0).sum().item<std::int64_t>(), tensor.numel(), distance.max().item<double>()));
        }
    }
    for (const auto& [name, tensor] : other)
        if (!first.contains(name)) tell(name, "only in the second");
    return differences;
}

int print_differences(const TrainingState& one, const TrainingState& other) {
    int differences = 0;
    for (const auto& [part, saved] : one.parts) {
        const auto found = other.parts.find(part);
        if (found == other.parts.end()) {
            print(part + ": only in the first");
            ++differences;
            continue;
        }
        const auto& [values, tensors, version] = saved;
        for (const json& change : json::diff(values, found->second.values)) {
            const json::json_pointer place(change.at("path").get<std::string>());
            const auto value_in = [&](const json& all) { return all.contains(place) ? all.at(place).dump() : std::string("nothing"); };
            print(fmt::format("{}{}: {} and {}", part, place.to_string(), value_in(values), value_in(found->second.values)));
            ++differences;
        }
        differences += print_differences({tensors.begin(), tensors.end()}, {found->second.tensors.begin(), found->second.tensors.end()}, part + "/");
    }
    for (const auto& [part, saved] : other.parts)
        if (!one.parts.contains(part)) print(part + ": only in the second"), ++differences;
    return differences;
}

/// As diff(1) does: 0 where they are the same.
int diff(const Paths& paths, const WeightsSelection& selection) {
    const int differences = is_folder(paths[0]) && is_folder(paths[1]) ? print_differences(read_training_state(paths[0]), read_training_state(paths[1]))
                                                                       : print_differences(read_weights(paths[0], selection), read_weights(paths[1], selection), "");
    return differences == 0 ? 0 : 1;
}

}  // namespace

int checkpoint(const json& options) {
    const std::string action = options.at("action");
    const std::vector<std::string> names = options.at("paths");
    Paths paths(names.begin(), names.end());
    const WeightsSelection selection = selection_of(options);
    if (action == "ls") return list(paths[0]);
    if (action == "show") return show(paths[0], selection);
    if (action == "verify") return verify(paths);
    if (action == "export") return write(read_weights(paths[0], selection), paths[1]);
    if (action == "import") return import_weights(paths, selection);
    if (action == "diff") return diff(paths, selection);
    const fs::path to = paths.back();
    paths.pop_back();
    return write(average_weights(paths, selection), to);
}

}  // namespace torchbus::cli
