#pragma once
/// A small regression and classification problem that every trainer test can share.

#include <torch/torch.h>
#include <torchbus/trainer.hpp>

namespace torchbus::test {

/// 784-free: 6 inputs, 8 hidden, 3 classes. Seeded, so that two of one seed are equal.
inline torch::nn::Sequential toy_model(std::uint64_t seed = 1) {
    torch::manual_seed(seed);
    return torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::ReLU(), torch::nn::Linear(8, 3));
}

/// `samples` random inputs [N, 6] with classes [N] of a fixed linear rule.
inline std::shared_ptr<TensorDataset> toy_data(std::int64_t samples, std::uint64_t seed = 2) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    const at::Tensor inputs = torch::randn({samples, 6}, generator);
    const at::Tensor rule = torch::randn({6, 3}, generator);
    return std::make_shared<TensorDataset>(inputs, inputs.mm(rule).argmax(1));
}

inline at::Tensor cross_entropy(const at::Tensor& output, const at::Tensor& targets) {
    return torch::nn::functional::cross_entropy(output, targets);
}

inline std::vector<at::Tensor> copies_of(const std::vector<at::Tensor>& tensors) {
    std::vector<at::Tensor> copies;
    for (const at::Tensor& tensor : tensors) copies.push_back(tensor.detach().clone());
    return copies;
}

inline std::vector<at::Tensor> gradients_of(const torch::nn::Sequential& model) {
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& parameter : model->parameters()) gradients.push_back(parameter.grad());
    return gradients;
}

inline bool equal_bits(const std::vector<at::Tensor>& left, const std::vector<at::Tensor>& right) {
    if (left.size() != right.size()) return false;
    for (std::size_t i = 0; i < left.size(); ++i)
        if (!left[i].equal(right[i])) return false;
    return true;
}

/// The largest difference of any element, as a share of the largest element on the right.
inline double relative_difference(const std::vector<at::Tensor>& left, const std::vector<at::Tensor>& right) {
    double difference = 0, largest = 0;
    for (std::size_t i = 0; i < left.size(); ++i) {
        difference = std::max(difference, (left[i] - right[i]).abs().max().item<double>());
        largest = std::max(largest, right[i].abs().max().item<double>());
    }
    return difference / largest;
}

}  // namespace torchbus::test
