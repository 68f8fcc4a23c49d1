#include <torchbus/checkpoint/safetensors.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/types.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/error.hpp>

#include "file.hpp"
#include "tensor_file.hpp"

namespace torchbus {

using std::filesystem::path;

void save_safetensors(const path& file, const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata) {
    AtomicFile temporary(file);
    write_tensors(tensors, metadata, file.string(), [&](const void* bytes, std::size_t count) { temporary.write(bytes, count); });
    temporary.commit();
}

std::vector<NamedTensor> load_safetensors(const path& file) { return tensors_of_file(read_file(file), file.string()); }

std::vector<NamedTensor> weights_of(const Model& model) {
    auto weights = model->named_parameters();
    const auto buffers = model->named_buffers();
    weights.insert(weights.end(), buffers.begin(), buffers.end());
    return weights;
}

void load_weights(const path& file, Model& model) {
    auto loaded = load_safetensors(file);
    auto weights = weights_of(model);
    if (const auto problems = misfits(loaded, weights); !problems.empty())
        throw CheckpointError(fmt::format("{}: the weights do not fit the model: {}; nothing was loaded", file.string(), fmt::join(problems, "; ")));
    const at::NoGradGuard no_grad;
    for (auto& [name, tensor] : weights) tensor.copy_(std::ranges::find(loaded, name, &NamedTensor::first)->second);
}

}  // namespace torchbus
