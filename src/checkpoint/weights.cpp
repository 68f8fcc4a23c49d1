#include <torchbus/checkpoint/weights.hpp>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/types.h>

#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/error.hpp>
#include <torchbus/name_pattern.hpp>

#include "python_file.hpp"
#include "tensor_file.hpp"

namespace torchbus {
namespace {

using std::filesystem::path;
using nlohmann::json;

bool is_chosen(const WeightsSelection& selection, const std::string& name) {
    return (selection.include.empty() || matches_any(selection.include, name)) && !matches_any(selection.skip, name);
}

// ── renaming ─────────────────────────────────────────────────────────────────────────────────────────────────────
/// What `*` stands for, where the name fits the rule.
std::optional<std::string> rest_of(const std::string& from, const std::string& name) {
    const auto star = from.find('*');
    if (star == std::string::npos) return from == name ? std::optional<std::string>("") : std::nullopt;
    const std::string_view before = std::string_view(from).substr(0, star), behind = std::string_view(from).substr(star + 1);
    if (name.size() < before.size() + behind.size() || !name.starts_with(before) || !name.ends_with(behind)) return std::nullopt;
    return name.substr(before.size(), name.size() - before.size() - behind.size());
}

std::string renamed(const std::string& name, const WeightsSelection& selection) {
    for (const auto& [from, to] : selection.rename)
        if (const auto rest = rest_of(from, name)) {
            const auto star = to.find('*');
            return star == std::string::npos ? to : to.substr(0, star) + *rest + to.substr(star + 1);
        }
    return name;
}

void require_sense(const WeightsSelection& selection) {
    for (const auto& [from, to] : selection.rename) {
        const auto in_from = std::ranges::count(from, '*'), in_to = std::ranges::count(to, '*');
        if (from.empty() || to.empty() || in_from > 1 || in_to != in_from)
            throw ConfigError(fmt::format("rename '{}' to '{}': expected two names, or two with one * each, e.g. 'module.*' to '*'", from, to));
    }
}

// ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────
/// Those of one dictionary within the file, by their names there.
std::vector<NamedTensor> in_dictionary(const PythonFile& read, const std::string& key, const path& file) {
    std::vector<NamedTensor> chosen;
    if (key.empty()) {
        for (const auto& entry : read.tensors)
            if (read.values.is_object() && read.values.contains(entry.first)) chosen.push_back(entry);  // the others lie deeper
        if (!chosen.empty()) return chosen;
    }
    for (const auto& [name, tensor] : read.tensors)
        if (name.starts_with(key + ".") && !key.empty()) chosen.emplace_back(name.substr(key.size() + 1), tensor);
    if (!chosen.empty()) return chosen;
    std::vector<std::string> keys;
    if (read.values.is_object())
        for (const auto& [name, value] : read.values.items())
            if (value.is_object() && std::ranges::any_of(read.tensors, [&](const NamedTensor& entry) { return entry.first.starts_with(name + "."); })) keys.push_back(name);
    if (key.empty() && keys.size() == 1) return in_dictionary(read, keys.front(), file);
    if (keys.empty()) throw CheckpointError(file, fmt::format("it holds no dictionary of tensors{}; save one in Python: torch.save(model.state_dict(), ...)", key.empty() ? "" : fmt::format(" called '{}'", key)));
    throw CheckpointError(file, fmt::format("{}tensors are in '{}'; choose one of them as key", key.empty() ? "" : fmt::format("there are none in '{}'; ", key), fmt::join(keys, "', '")));
}

std::vector<NamedTensor> read_all(const path& file, const std::string& key) {
    if (std::error_code status; std::filesystem::is_directory(file, status)) {
        const TrainingState state = read_training_state(file, "model");
        const auto model = state.parts.find("model");
        if (model == state.parts.end()) throw CheckpointError(file, "the training state has no model");
        return {model->second.tensors.begin(), model->second.tensors.end()};
    }
    return is_python_file(file) ? in_dictionary(read_python_file(file), key, file) : load_safetensors(file);
}

}  // namespace

std::vector<NamedTensor> read_weights(const path& file, const WeightsSelection& selection) {
    require_sense(selection);
    std::vector<NamedTensor> chosen;
    std::set<std::string> taken;
    const auto all = read_all(file, selection.key);
    for (const auto& [name, tensor] : all) {
        std::string own = renamed(name, selection);
        if (!is_chosen(selection, own)) continue;
        if (!taken.insert(own).second) throw ConfigError(fmt::format("{}: two tensors are called '{}' after renaming; give the rules so that all names differ", file.string(), own));
        chosen.emplace_back(std::move(own), tensor);
    }
    if (!chosen.empty() || all.empty()) return chosen;
    throw ConfigError(fmt::format("{}: none of its {} tensors is chosen by include and skip; the first is called '{}'{}", file.string(), all.size(), renamed(all.front().first, selection),
                                  selection.rename.empty() ? "" : " after renaming"));
}

void save_weights(const path& file, const std::vector<NamedTensor>& tensors) {
    const std::string ending = file.extension().string();
    if (ending == ".safetensors") return save_safetensors(file, tensors);
    if (ending == ".pt" || ending == ".pth" || ending == ".bin") return write_python_file(file, tensors);
    throw ConfigError(fmt::format("{}: expected a name that ends in .safetensors, or in .pt, .pth or .bin for Python's torch.load", file.string()));
}

LoadedWeights load_weights(const path& file, Model& model, const LoadWeightsOptions& options) {
    const std::vector<NamedTensor> read = read_weights(file, options.selection), all = weights_of(model);
    const std::map<std::string, at::Tensor> by_name(read.begin(), read.end());
    std::vector<NamedTensor> wanted, here, there;  // the last two: what both sides have
    LoadedWeights result;
    for (const auto& [name, tensor] : all) {
        if (!is_chosen(options.selection, name)) continue;
        wanted.emplace_back(name, tensor);
        const auto found = by_name.find(name);
        (found == by_name.end() ? result.missing : result.loaded).push_back(name);
        if (found == by_name.end()) continue;
        here.emplace_back(name, tensor);
        there.emplace_back(name, found->second);
    }
    for (const auto& [name, tensor] : read)
        if (std::ranges::find(wanted, name, &NamedTensor::first) == wanted.end()) result.left_over.push_back(name);
    const auto problems = options.strict ? misfits(read, wanted) : misfits(there, here);
    if (!problems.empty()) throw CheckpointError(file, fmt::format("the weights do not fit the model: {}; nothing was loaded", fmt::join(problems, "; ")));
    if (result.loaded.empty() && !all.empty())
        throw CheckpointError(file, fmt::format("none of its tensors ('{}', ...) has a name of the model's ('{}', ...); rename them; nothing was loaded", read.empty() ? "" : read.front().first, all.front().first));
    const at::NoGradGuard no_grad;
    for (std::size_t i = 0; i < here.size(); ++i) here[i].second.copy_(there[i].second);
    return result;
}

std::vector<NamedTensor> weights_of(const Model& model) {
    auto weights = model->named_parameters();
    const auto buffers = model->named_buffers();
    weights.insert(weights.end(), buffers.begin(), buffers.end());
    return weights;
}

std::vector<NamedTensor> average_weights(const std::vector<path>& paths, const WeightsSelection& selection) {
    if (paths.empty()) throw ConfigError("there are no weights to average; give at least one file");
    std::vector<NamedTensor> first, sums;
    for (const path& file : paths) {
        std::vector<NamedTensor> read = read_weights(file, selection);
        if (first.empty()) {
            first = sums = read;
            for (auto& [name, tensor] : sums)
                if (tensor.is_floating_point()) tensor = tensor.to(at::kDouble);
            continue;
        }
        if (const auto problems = misfits(read, first); !problems.empty()) throw CheckpointError(file, fmt::format("it does not fit {}: {}", paths.front().string(), fmt::join(problems, "; ")));
        const std::map<std::string, at::Tensor> by_name(read.begin(), read.end());
        for (auto& [name, tensor] : sums) tensor = tensor.is_floating_point() ? tensor + by_name.at(name).to(at::kDouble) : by_name.at(name);
    }
    for (std::size_t i = 0; i < sums.size(); ++i)
        if (at::Tensor& sum = sums[i].second; sum.is_floating_point()) sum = (sum / static_cast<double>(paths.size())).to(first[i].second.scalar_type());
    return sums;
}

}  // namespace torchbus
