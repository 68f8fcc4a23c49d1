// Shows MNIST in code: a model of one's own, a loss, an optimizer, callbacks, and train().
// Run: build/release/src/cli/torchbus data fetch mnist && build/release/examples/04_mnist
//      (a folder with the four files may be given as its argument)
// Last line: test accuracy 98.… %
#include <filesystem>
#include <iostream>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

struct Net : torch::nn::Module {
    torch::nn::Linear hidden = register_module("hidden", torch::nn::Linear(784, 128));
    torch::nn::Linear output = register_module("output", torch::nn::Linear(128, 10));
    at::Tensor forward(const at::Tensor& images) { return output(torch::relu(hidden(images.flatten(1)))); }
};

int main(int argc, char** argv) {
    const std::filesystem::path folder = argc > 1 ? argv[1] : torchbus::default_mnist_folder();
    const auto train = torchbus::load_mnist(folder, torchbus::MnistPart::Train);
    const auto test = torchbus::load_mnist(folder, torchbus::MnistPart::Test);

    torch::manual_seed(42);  // the weights are drawn here
    auto net = std::make_shared<Net>();
    torchbus::Trainer trainer({
        .model = net,
        .loss = [](const auto& output, const auto& targets) { return torch::nn::functional::cross_entropy(output, targets); },
        .optimizer = torchbus::make_adamw(net->parameters(), {.learning_rate = 1e-3, .weight_decay = 0.01}),
        .callbacks = {torchbus::make_metrics({.accuracy = true}), torchbus::make_gradient_clipping({.max_norm = 5.0}),
                      torchbus::make_learning_rate_schedule({torchbus::make_cosine_schedule({.warmup = 100})}),
                      torchbus::make_terminate_on_nan(), torchbus::make_progress_bar()},
        .seed = 42,
    });
    trainer.train(train, test, {.epochs = 3, .batch_size = 64, .eval_batch_size = 512});
    std::cout << "test accuracy " << 100 * trainer.history().latest("eval.accuracy").value() << " %\n";
}
