// Shows mixup with an exponential moving average of the weights, which is evaluated beside the trained weights under a
// view of its own; the best average is kept in a file.
// Run: build/release/examples/07_mixup_ema [FOLDER]
// Last line: best eval.ema.loss … kept in …
#include <filesystem>
#include <iostream>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

/// Two interleaved spirals with noise.
std::shared_ptr<torchbus::TensorDataset> spirals(std::int64_t count) {
    const auto classes = torch::randint(2, {count});
    const auto angle = torch::rand({count}).sqrt() * 3 * M_PI;
    const auto turn = angle + classes.to(torch::kFloat) * M_PI;
    const auto at = torch::stack({turn.cos(), turn.sin()}, 1) * angle.unsqueeze(1) / 4;
    return std::make_shared<torchbus::TensorDataset>(at + 0.15 * torch::randn({count, 2}), classes);
}

int main(int argc, char** argv) {
    const std::filesystem::path folder = argc > 1 ? argv[1] : "checkpoints";
    torch::manual_seed(0);
    const auto train = spirals(2048), test = spirals(1024);
    torch::nn::Sequential model(torch::nn::Linear(2, 64), torch::nn::ReLU(), torch::nn::Linear(64, 64), torch::nn::ReLU(), torch::nn::Linear(64, 2));

    torchbus::Trainer trainer({
        .model = model,
        .loss = [](const auto& output, const auto& targets) { return torch::nn::functional::cross_entropy(output, targets); },
        .optimizer = torchbus::make_adamw(model->parameters(), {.learning_rate = 5e-3, .weight_decay = 0.01}),
        .callbacks = {torchbus::make_metrics({.accuracy = true}), torchbus::make_mixup({.alpha = 0.2}),
                      torchbus::make_model_ema({.decay = 0.98, .warmup = torchbus::ModelEmaOptions::Warmup::Power}),
                      torchbus::make_learning_rate_schedule({torchbus::make_cosine_schedule({.warmup = "0.1run"})}),
                      torchbus::make_save_best({.monitor = "eval.ema.loss", .folder = folder})},
        .seed = 0,
    });
    trainer.train(train, test, {.epochs = 30, .batch_size = 64});

    double best = 1e9;
    for (const auto& epoch : trainer.history().epochs()) best = std::min(best, epoch.metrics.at("eval.ema.loss"));
    std::cout << "accuracy of the trained weights " << trainer.history().latest("eval.accuracy").value() << ", of their average "
              << trainer.history().latest("eval.ema.accuracy").value() << '\n';
    std::cout << "best eval.ema.loss " << best << ", kept in " << (folder / "best.safetensors").string() << '\n';
}
