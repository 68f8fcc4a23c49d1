// Shows metrics in two ways: as callbacks, published for every epoch and every evaluation split and combined by an
// expression, and in the program's own loop over predictions. Both come to the same accuracy.
// Run: build/release/examples/06_metrics
// Last line: accuracy of the loop minus that of the callback: 0
#include <iostream>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

std::shared_ptr<torchbus::TensorDataset> points(std::int64_t count, double noise) {
    const auto inputs = torch::randn({count, 2});
    const auto classes = (inputs + noise * torch::randn({count, 2})).gt(0).to(torch::kLong);  // one of four quadrants
    return std::make_shared<torchbus::TensorDataset>(inputs, classes.select(1, 0) * 2 + classes.select(1, 1));
}

int main() {
    torch::manual_seed(0);
    const auto train = points(4096, 0), clean = points(1024, 0), noisy = points(1024, 0.5);
    torch::nn::Sequential model(torch::nn::Linear(2, 32), torch::nn::ReLU(), torch::nn::Linear(32, 4));

    torchbus::Trainer trainer({
        .model = model,
        .loss = [](const auto& output, const auto& targets) { return torch::nn::functional::cross_entropy(output, targets); },
        .optimizer = torchbus::make_adam(model->parameters(), {.learning_rate = 3e-3}),
        .callbacks = {torchbus::make_metrics({.accuracy = true}),
                      torchbus::make_classification_metrics({.metrics = {"precision", "recall", "auroc"}}),
                      torchbus::make_metric_expression({.name = "eval.noisy.harmonic",
                                                        .expression = "2 * eval.noisy.precision * eval.noisy.recall / (eval.noisy.precision + eval.noisy.recall)"})},
        .seed = 0,
    });
    trainer.train(train, clean, {.epochs = 5, .batch_size = 64, .eval_splits = {{"noisy", noisy}}});
    for (const auto& [name, value] : trainer.history().epochs().back().metrics) std::cout << name << ' ' << value << '\n';

    const auto predicted = trainer.predict(clean).argmax(1);
    const double accuracy = predicted.eq(clean->targets()).to(torch::kDouble).mean().item<double>();
    std::cout << "accuracy of the loop minus that of the callback: " << accuracy - trainer.history().latest("eval.accuracy").value() << '\n';
}
