// One epoch of MNIST on the 784-128-10 MLP through the trainer, for comparison with other libraries. Prints JSON.
// Run: build/release/test/bench/one_epoch --batch 32 --threads 2 --optimizer sgd [--limit SAMPLES]
#include <chrono>
#include <cstdio>
#include <filesystem>

#include <CLI/CLI.hpp>
#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

using namespace torchbus;

int main(int argc, char** argv) {
    std::int64_t batch_size = 32, limit = 0;
    int threads = 2;
    std::string optimizer_name = "sgd";
    CLI::App app{"one epoch of MNIST on an MLP"};
    app.add_option("--batch", batch_size, "samples of a batch");
    app.add_option("--threads", threads, "threads of LibTorch");
    app.add_option("--optimizer", optimizer_name, "sgd or adamw")->check(CLI::IsMember({"sgd", "adamw"}));
    app.add_option("--limit", limit, "only the first samples; 0: all");
    CLI11_PARSE(app, argc, argv);
    torch::set_num_threads(threads);
    auto data = load_mnist(default_mnist_folder(), MnistPart::Train, {.flatten = true});
    if (limit > 0) data = std::make_shared<TensorDataset>(data->inputs().narrow(0, 0, limit), data->targets().narrow(0, 0, limit));
    torch::manual_seed(1);
    torch::nn::Sequential model(torch::nn::Linear(784, 128), torch::nn::ReLU(), torch::nn::Linear(128, 10));
    const auto optimizer = optimizer_name == "sgd" ? make_sgd(model->parameters(), {.learning_rate = 0.05, .momentum = 0.9})
                                                   : make_adamw(model->parameters(), {.weight_decay = 0.01});
    Trainer trainer({.model = model,
                     .loss = [](const at::Tensor& output, const at::Tensor& targets) { return torch::nn::functional::cross_entropy(output, targets); },
                     .optimizer = optimizer, .callbacks = {make_metrics({.accuracy = true}), make_progress_bar()}, .seed = 1});
    const auto begin = std::chrono::steady_clock::now();
    trainer.train(data, {.epochs = 1, .batch_size = batch_size});
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("{\"seconds\": %.4f, \"loss\": %.5f, \"accuracy\": %.5f}\n", seconds, *trainer.history().latest("train.loss"),
                *trainer.history().latest("train.accuracy"));
}
