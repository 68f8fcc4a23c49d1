#include <fmt/format.h>
#include <torch/torch.h>

#include <torchbus/error.hpp>
#include <torchbus/models/registry.hpp>

namespace torchbus {

Model make_mlp(MlpOptions options) {
    if (options.inputs < 1 || options.classes < 1) throw ConfigError("mlp: inputs and classes must be at least 1");
    if (!(options.dropout >= 0 && options.dropout < 1)) throw ConfigError(fmt::format("mlp: dropout: {} is out of range; give a number in [0, 1)", options.dropout));
    torch::nn::Sequential layers(torch::nn::Flatten{});
    std::int64_t width = options.inputs;
    for (const std::int64_t hidden : options.hidden) {
        if (hidden < 1) throw ConfigError(fmt::format("mlp: hidden: {} is not a width; give at least 1", hidden));
        layers->push_back(torch::nn::Linear(width, hidden));
        layers->push_back(torch::nn::ReLU());
        if (options.dropout > 0) layers->push_back(torch::nn::Dropout(options.dropout));
        width = hidden;
    }
    layers->push_back(torch::nn::Linear(width, options.classes));
    return layers;
}

}  // namespace torchbus
