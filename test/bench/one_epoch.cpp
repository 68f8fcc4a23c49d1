// One epoch of MNIST on the 784-128-10 MLP, through the trainer or by hand, for comparison with other programs.
// Prints JSON. Run: build/release/test/bench/one_epoch --batch 32 --threads 2 --optimizer sgd
#include <cstdio>

#include <CLI/CLI.hpp>
#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

#include "hand_written.hpp"

using namespace torchbus;
using namespace torchbus::bench;

int main(int argc, char** argv) {
    std::int64_t batch_size = 32, limit = 0;
    int threads = 2, workers = 0;
    std::string optimizer = "sgd", loop = "torchbus";
    CLI::App app{"one epoch of MNIST on an MLP"};
    app.add_option("--batch", batch_size, "samples of a batch");
    app.add_option("--threads", threads, "threads of LibTorch");
    app.add_option("--optimizer", optimizer, "sgd or adamw")->check(CLI::IsMember({"sgd", "adamw"}));
    app.add_option("--loop", loop, "torchbus or hand_written")->check(CLI::IsMember({"torchbus", "hand_written"}));
    app.add_option("--workers", workers, "threads that gather batches ahead; 0: in place");
    app.add_option("--limit", limit, "only the first samples; 0: all");
    CLI11_PARSE(app, argc, argv);
    torch::set_num_threads(threads);
    auto data = load_mnist(default_mnist_folder(), MnistPart::Train, {.flatten = true});
    if (limit > 0) data = std::make_shared<TensorDataset>(data->inputs().narrow(0, 0, limit), data->targets().narrow(0, 0, limit));
    const MakeOptimizer make_optimizer = optimizer == "sgd" ? fused_sgd : fused_adamw;
    double loss = 0, accuracy = 0, seconds = 0;
    if (loop == "hand_written") {
        seconds = hand_written(*data, batch_size, make_optimizer, Kernels::Same, loss, accuracy);
    } else {
        auto model = make_model();
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_optimizer(model->parameters()),
                         .callbacks = {make_metrics({.accuracy = true}), make_progress_bar({.terminal = true, .columns = 100})}, .seed = 1});
        const auto begin = std::chrono::steady_clock::now();
        trainer.train(data, {.epochs = 1, .batch_size = batch_size, .workers = workers});
        seconds = seconds_since(begin);
        loss = trainer.history().latest("train.loss").value();
        accuracy = trainer.history().latest("train.accuracy").value();
    }
    std::printf("{\"seconds\": %.4f, \"loss\": %.5f, \"accuracy\": %.5f}\n", seconds, loss, accuracy);
}
