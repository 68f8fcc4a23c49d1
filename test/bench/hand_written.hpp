#pragma once
/// The hand-written LibTorch loop that the benchmarks compare with: the MLP of 784-128-10 on MNIST, with the same
/// numbers computed: progress every 100 ms, mean loss and accuracy. `Kernels` says with what: all of ours (the fused
/// optimizer, the hits counted in one pass over the output), or all of LibTorch's, as its users write them.

#include <algorithm>
#include <chrono>
#include <cstdio>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

#include "../../callbacks/parts/count_correct.hpp"

namespace torchbus::bench {

namespace nn = torch::nn;
using Optimizer = std::shared_ptr<torch::optim::Optimizer>;
using MakeOptimizer = Optimizer (*)(std::vector<at::Tensor>);

inline Optimizer fused_sgd(std::vector<at::Tensor> p) { return make_sgd(std::move(p), {.learning_rate = 0.05, .momentum = 0.9}); }
inline Optimizer plain_sgd(std::vector<at::Tensor> p) { return std::make_shared<torch::optim::SGD>(std::move(p), torch::optim::SGDOptions(0.05).momentum(0.9)); }
inline Optimizer fused_adamw(std::vector<at::Tensor> p) { return make_adamw(std::move(p), {.weight_decay = 0.01}); }
inline Optimizer plain_adamw(std::vector<at::Tensor> p) { return std::make_shared<torch::optim::AdamW>(std::move(p), torch::optim::AdamWOptions(1e-3)); }

inline nn::Sequential make_model() {
    torch::manual_seed(1);
    return nn::Sequential(nn::Flatten(), nn::Linear(784, 128), nn::ReLU(), nn::Linear(128, 10));
}

inline at::Tensor cross_entropy(const at::Tensor& output, const at::Tensor& targets) { return nn::functional::cross_entropy(output, targets); }

inline double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

inline void discard(std::string_view) {}

enum class Kernels { Same, LibTorch };

/// Returns the seconds of one epoch.
inline double hand_written(const TensorDataset& data, std::int64_t batch_size, MakeOptimizer make_optimizer, Kernels kernels, double& loss_mean, double& accuracy) {
    auto model = make_model();
    const Optimizer optimizer = make_optimizer(model->parameters());
    const auto begin = std::chrono::steady_clock::now();
    auto drawn = begin;
    model->train();
    const at::Tensor order = torch::randperm(data.size());
    double loss_sum = 0;
    std::int64_t correct = 0, seen = 0;
    for (std::int64_t at = 0; at < data.size(); at += batch_size) {
        const std::int64_t count = std::min(batch_size, data.size() - at);
        const at::Tensor index = order.narrow(0, at, count);
        const at::Tensor inputs = data.inputs().index_select(0, index), targets = data.targets().index_select(0, index);
        optimizer->zero_grad();
        const at::Tensor output = model->forward(inputs);
        const at::Tensor loss = cross_entropy(output, targets);
        loss.backward();
        optimizer->step();
        loss_sum += loss.item<double>() * static_cast<double>(count);
        correct += kernels == Kernels::Same ? count_correct(output.const_data_ptr<float>(), targets.const_data_ptr<std::int64_t>(), count, output.size(1)) : output.argmax(1).eq(targets).sum().item<std::int64_t>();
        seen += count;
        const auto now = std::chrono::steady_clock::now();
        if (now - drawn > std::chrono::milliseconds(100)) {
            drawn = now;
            char line[120];
            std::snprintf(line, sizeof line, "\r%lld/%lld loss %.4f accuracy %.4f", static_cast<long long>(seen), static_cast<long long>(data.size()),
                          loss_sum / static_cast<double>(seen), static_cast<double>(correct) / static_cast<double>(seen));
            discard(line);
        }
    }
    loss_mean = loss_sum / static_cast<double>(seen);
    accuracy = static_cast<double>(correct) / static_cast<double>(seen);
    return seconds_since(begin);
}

}  // namespace torchbus::bench
