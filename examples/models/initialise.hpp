#pragma once
/// Weights for a model file that has none: examples/models/*.pt, which the export scripts write with --skeleton.

#include <algorithm>
#include <optional>
#include <vector>

#include <torch/torch.h>
#include <torchbus/model.hpp>

/// Draws all weights of two or more dimensions, from a normal distribution of this standard deviation, or by default as
/// for ReLU by He et al. 2015, arXiv:1502.01852. Norms, biases and statistics are in the file. Where any weight is not
/// zero, as in a file exported with weights, nothing is changed. Returns whether weights were drawn.
inline bool initialise(const torchbus::Model& model, std::optional<double> standard_deviation = {}) {
    std::vector<at::Tensor> weights;
    for (const auto& [name, parameter] : model->named_parameters())
        if (parameter.dim() >= 2) weights.push_back(parameter);
    const torch::NoGradGuard no_grad;
    if (std::ranges::any_of(weights, [](const at::Tensor& weight) { return weight.any().item<bool>(); })) return false;
    for (at::Tensor& weight : weights)
        standard_deviation ? torch::nn::init::normal_(weight, 0, *standard_deviation) : torch::nn::init::kaiming_normal_(weight);
    return true;
}

inline std::vector<at::Tensor> parameters_of(const torchbus::Model& model) {
    std::vector<at::Tensor> parameters;
    for (const auto& [name, parameter] : model->named_parameters()) parameters.push_back(parameter);
    return parameters;
}
