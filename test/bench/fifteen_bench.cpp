// A step of about 1 ms with fifteen typical callbacks on, against a hand-written LibTorch loop that computes the same
// numbers: loss, accuracy, the gradient norm before clipping, a cosine learning rate with warm-up and an average of the weights.
// Prints the ratio (rounds interleaved, medians), and by the bus's accounting what the callbacks took that compute nothing.
// Run: build/release/test/bench/fifteen_bench [rounds] [steps]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <numbers>
#include <set>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

#include "hand_written.hpp"

using namespace torchbus;
using namespace torchbus::bench;

namespace {

constexpr std::int64_t kBatch = 64;
constexpr double kRate = 0.05, kMaxNorm = 1.0, kDecay = 0.999, kWarmup = 0.1;

nn::Sequential wide_model() {
    torch::manual_seed(1);
    return nn::Sequential(nn::Linear(784, 256), nn::ReLU(), nn::Linear(256, 10));
}

/// 1 at the end of the warm-up, 0 at the end of the run.
double cosine(double done) { return done < kWarmup ? done / kWarmup : 0.5 * (1 + std::cos(std::numbers::pi * (done - kWarmup) / (1 - kWarmup))); }

struct Numbers {
    double loss = 0, accuracy = 0, norm = 0;
    at::Tensor average;  ///< of the first weight
};

double by_hand(const TensorDataset& data, Numbers& numbers) {
    auto model = wide_model();
    const Optimizer optimizer = fused_sgd(model->parameters());
    std::vector<at::Tensor> weights, averages;
    for (const at::Tensor& parameter : model->parameters()) {
        weights.push_back(parameter.detach());
        averages.push_back(parameter.detach().clone());
    }
    const std::int64_t steps = (data.size() + kBatch - 1) / kBatch;
    const auto begin = std::chrono::steady_clock::now();
    auto drawn = begin;
    model->train();
    const at::Tensor order = torch::randperm(data.size());
    double loss_sum = 0, seen = 0;
    std::int64_t correct = 0;
    for (std::int64_t step = 0; step < steps; ++step) {
        const std::int64_t at = step * kBatch, count = std::min(kBatch, data.size() - at);
        const at::Tensor index = order.narrow(0, at, count);
        const at::Tensor inputs = data.inputs().index_select(0, index), targets = data.targets().index_select(0, index);
        const double rate = kRate * cosine(static_cast<double>(step) / static_cast<double>(steps));
        for (auto& group : optimizer->param_groups()) group.options().set_lr(rate);
        optimizer->zero_grad();
        const at::Tensor output = model->forward(inputs);
        const at::Tensor loss = cross_entropy(output, targets);
        if (!std::isfinite(loss.item<double>())) std::abort();
        loss.backward();
        numbers.norm = nn::utils::clip_grad_norm_(model->parameters(), kMaxNorm);
        optimizer->step();
        {
            const at::NoGradGuard no_grad;
            if (step == 0) at::_foreach_copy_(averages, weights);
            else at::_foreach_lerp_(averages, weights, 1 - kDecay);
        }
        loss_sum += loss.item<double>() * static_cast<double>(count);
        correct += output.argmax(1).eq(targets).sum().item<std::int64_t>();
        seen += static_cast<double>(count);
        const auto now = std::chrono::steady_clock::now();
        if (now - drawn > std::chrono::milliseconds(100)) {
            drawn = now;
            char line[120];
            std::snprintf(line, sizeof line, "\r%.0f loss %.4f accuracy %.4f", seen, loss_sum / seen, static_cast<double>(correct) / seen);
            discard(line);
        }
    }
    const double seconds = seconds_since(begin);
    numbers.loss = loss_sum / seen;
    numbers.accuracy = static_cast<double>(correct) / seen;
    numbers.average = averages.front();
    return seconds;
}

/// These do arithmetic on tensors, which the hand-written loop does too.
const std::set<std::string> kComputing = {"metrics", "gradient_clipping", "model_ema"};

double with_callbacks(const std::shared_ptr<TensorDataset>& data, Numbers& numbers, double& overhead_us, double& all_us) {
    auto model = wide_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = fused_sgd(model->parameters()),
                     .callbacks = {make_device_placement(), make_save_best({.monitor = "train.loss", .folder = std::filesystem::temp_directory_path() / "torchbus-fifteen-bench"}), make_gradient_accumulation({.micro_batches = 1}),
                                   make_metrics({.accuracy = true}), make_terminate_on_nan(), make_gradient_clipping({.max_norm = kMaxNorm}),
                                   make_learning_rate_schedule({make_cosine_schedule({.warmup = "0.1run"})}), make_learning_rate_monitor(),
                                   make_model_ema({.decay = kDecay, .evaluate = false}), make_throughput_monitor(), make_time_limit({.limit = "1h"}),
                                   make_early_stopping({.monitor = "train.loss"}), make_progress_lines({.write = discard}),
                                   make_console_report({.write = discard}),
                                   make_progress_bar({.write = discard, .terminal = true, .columns = 100})},
                     .handle_signals = false});
    const auto begin = std::chrono::steady_clock::now();
    trainer.train(data, {.epochs = 1, .batch_size = kBatch});
    const double seconds = seconds_since(begin);
    numbers = {trainer.history().latest("train.loss").value(), trainer.history().latest("train.accuracy").value(), trainer.blackboard().number("grad_norm").value(), {}};
    overhead_us = all_us = 0;
    for (const AccountingRow& row : trainer.accounting()) {
        const double us = row.seconds * 1e6 / static_cast<double>(trainer.position().step);
        all_us += us;
        if (!kComputing.contains(row.subscriber)) overhead_us += us;
    }
    return seconds;
}

double median(std::vector<double> values) {
    std::ranges::sort(values);
    return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 9;
    const std::int64_t steps = argc > 2 ? std::atoll(argv[2]) : 800;
    torch::manual_seed(2);
    const auto data = std::make_shared<TensorDataset>(torch::rand({steps * kBatch, 784}), torch::randint(10, {steps * kBatch}));
    for (const int threads : {1, 2}) {
        torch::set_num_threads(threads);
        std::vector<double> ours, hand, ratios, overheads, all;
        Numbers mine, theirs;
        for (int round = -1; round < rounds; ++round) {  // the first one warms up
            double overhead = 0, all_fifteen = 0;
            const double a = with_callbacks(data, mine, overhead, all_fifteen), b = by_hand(*data, theirs);
            if (round < 0) continue;
            ours.push_back(a), hand.push_back(b), ratios.push_back(a / b), overheads.push_back(overhead), all.push_back(all_fifteen);
        }
        const double step_us = median(ours) * 1e6 / static_cast<double>(steps);
        std::printf("%d thread%s: a step takes %.0f us, by hand %.0f us; ratio %.3f (%.3f .. %.3f); the twelve callbacks that compute nothing %.1f us a step, %.2f %%; all fifteen, with the metrics, clipping and averages that the loop by hand computes too, %.1f us\n", threads,
                    threads == 1 ? "" : "s", step_us, median(hand) * 1e6 / static_cast<double>(steps), median(ratios), *std::ranges::min_element(ratios),
                    *std::ranges::max_element(ratios), median(overheads), median(overheads) / step_us * 100, median(all));
        std::printf("    loss %.4f %.4f, accuracy %.4f %.4f\n", mine.loss, theirs.loss, mine.accuracy, theirs.accuracy);
    }
}
