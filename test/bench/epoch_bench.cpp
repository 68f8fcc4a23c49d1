// An epoch of MNIST on the 784-128-10 MLP, ours against a hand-written LibTorch loop that computes the same numbers:
// progress, mean loss and accuracy. Rounds are interleaved; prints median ratios with their spread.
// Run: build/release/test/bench/epoch_bench [rounds] [mnist folder]
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

#include "hand_written.hpp"

using namespace torchbus;
using namespace torchbus::bench;

namespace {

double with_torchbus(std::shared_ptr<TensorDataset> data, std::int64_t batch_size, MakeOptimizer make_optimizer, double& loss_mean) {
    auto model = make_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_optimizer(model->parameters()),
                     .callbacks = {make_metrics({.accuracy = true}), make_progress_bar({.write = discard, .terminal = true, .columns = 100})}});
    const auto begin = std::chrono::steady_clock::now();
    trainer.train(std::move(data), {.epochs = 1, .batch_size = batch_size});
    loss_mean = trainer.history().latest("train.loss").value();
    return seconds_since(begin);
}

struct Spread {
    double low, median, high;
};
Spread spread_of(std::vector<double> values) {
    std::ranges::sort(values);
    return {values.front(), values[values.size() / 2], values.back()};
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 9;
    const std::filesystem::path folder = argc > 2 ? argv[2] : default_mnist_folder();
    const auto data = load_mnist(folder, MnistPart::Train, {.flatten = true});
    struct Case {
        const char* name;
        MakeOptimizer fused, plain;
    };
    std::printf("%-6s %6s %8s | %10s %10s %10s | %26s | %26s\n", "", "batch", "threads", "torchbus s", "fused s", "optim s",
                "ratio to the same kernels", "ratio to torch::optim");
    for (const Case& one : {Case{"SGD", fused_sgd, plain_sgd}, Case{"AdamW", fused_adamw, plain_adamw}})
        for (const std::int64_t batch_size : {32, 256})
            for (const int threads : {1, 2}) {
                torch::set_num_threads(threads);
                std::vector<double> ours, fused, plain, to_fused, to_plain;
                double loss_ours = 0, loss_theirs = 0, accuracy = 0;
                for (int round = -1; round < rounds; ++round) {  // the first one warms up
                    std::array<double, 3> seconds{};
                    for (int turn = 0; turn < 3; ++turn) {  // each is first, second and last in turn: the machine drifts
                        const int which = (turn + round + 3) % 3;
                        seconds[which] = which == 0   ? with_torchbus(data, batch_size, one.fused, loss_ours)
                                         : which == 1 ? hand_written(*data, batch_size, one.fused, Kernels::Same, loss_theirs, accuracy)
                                                      : hand_written(*data, batch_size, one.plain, Kernels::LibTorch, loss_theirs, accuracy);
                    }
                    if (round < 0) continue;
                    ours.push_back(seconds[0]), fused.push_back(seconds[1]), plain.push_back(seconds[2]);
                    to_fused.push_back(seconds[0] / seconds[1]), to_plain.push_back(seconds[0] / seconds[2]);
                }
                const Spread f = spread_of(to_fused), p = spread_of(to_plain);
                std::printf("%-6s %6lld %8d | %10.3f %10.3f %10.3f | %8.3f (%.3f .. %.3f)  | %8.3f (%.3f .. %.3f)   loss %.3f %.3f\n", one.name,
                            static_cast<long long>(batch_size), threads, spread_of(ours).median, spread_of(fused).median, spread_of(plain).median,
                            f.median, f.low, f.high, p.median, p.low, p.high, loss_ours, loss_theirs);
                std::fflush(stdout);
            }
}
