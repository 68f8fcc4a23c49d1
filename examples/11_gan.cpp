// Shows a run with two updates: a GAN that learns a ring of points. Each update is a named pair of optimizer and step
// function; the critic makes its update on every window, the generator on every second one.
// Run: build/release/examples/11_gan
// Last line: mean radius of the generated points … (the data's is 2)
#include <cmath>
#include <iostream>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

namespace nn = torch::nn;

at::Tensor ring(std::int64_t points) {
    const auto angle = torch::rand({points}) * 2 * M_PI;
    return 2 * torch::stack({angle.cos(), angle.sin()}, 1) + 0.05 * torch::randn({points, 2});
}

at::Tensor score(const at::Tensor& logits, double label) {
    return torch::binary_cross_entropy_with_logits(logits, torch::full_like(logits, label));
}

int main() {
    torch::manual_seed(1);
    nn::Sequential generator(nn::Linear(8, 64), nn::LeakyReLU(), nn::Linear(64, 64), nn::LeakyReLU(), nn::Linear(64, 2));
    nn::Sequential critic(nn::Linear(2, 64), nn::LeakyReLU(), nn::Linear(64, 64), nn::LeakyReLU(), nn::Linear(64, 1));

    auto generate = [generator](std::int64_t count) mutable { return generator->forward(torch::randn({count, 8})); };
    auto criticize = [=](const torchbus::Batch& batch) mutable -> torchbus::StepOutput {
        const auto real = critic->forward(batch.inputs), fake = critic->forward(generate(batch.samples).detach());
        return {real, score(real, 0.9) + score(fake, 0)};  // 0.9: a critic that is never quite sure
    };
    auto deceive = [=](const torchbus::Batch& batch) mutable -> torchbus::StepOutput {
        const auto verdict = critic->forward(generate(batch.samples));
        return {verdict, score(verdict, 1)};
    };
    torchbus::Trainer trainer({
        .model = generator,
        .updates = {{"critic", torchbus::make_adam(critic->parameters(), {.learning_rate = 1e-3, .beta1 = 0.5}), criticize},
                    {"generator", torchbus::make_adam(generator->parameters(), {.learning_rate = 1e-3, .beta1 = 0.5}), deceive, /*every=*/2}},
        .callbacks = {torchbus::make_metrics()},
        .seed = 1,
    });
    trainer.train(std::make_shared<torchbus::TensorDataset>(ring(4096)), {.epochs = 30, .batch_size = 64});

    for (const char* name : {"train.critic.loss", "train.generator.loss"}) std::cout << name << ' ' << trainer.blackboard().number(name).value() << '\n';
    const torch::NoGradGuard no_grad;
    std::cout << "mean radius of the generated points " << generate(1000).norm(2, 1).mean().item<double>() << " (the data's is 2)\n";
}
