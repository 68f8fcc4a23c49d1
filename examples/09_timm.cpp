// Shows the usual recipe of timm on a vision transformer exported from it: AdamW without weight decay on biases, norms
// and embeddings, a cosine schedule with warm-up, cooldown and k-decay, smoothed labels, clipped gradients, and an
// exponential moving average of the weights.
// Run: build/release/examples/09_timm [MODEL.pt]
//      MODEL.pt comes from 09_export_timm.py, with weights trained on ImageNet if it is asked for them. Without it
//      examples/models/vit.pt serves, a skeleton whose weights are drawn here.
// Last line: accuracy 0.… of the averaged weights, 0.… of the trained ones
#include <iostream>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

#include "models/initialise.hpp"

constexpr std::int64_t kClasses = 6;

/// Stripes in noise; their direction is the class. Shapes: inputs [N, 3, 32, 32].
std::shared_ptr<torchbus::TensorDataset> stripes(std::int64_t count) {
    const auto classes = torch::randint(kClasses, {count});
    const auto angle = (classes * (M_PI / kClasses)).view({count, 1, 1});
    const auto axis = torch::linspace(-1, 1, 32);
    const auto along = axis.view({1, 1, 32}) * angle.cos() + axis.view({1, 32, 1}) * angle.sin();
    const auto waves = torch::sin((4 + 8 * torch::rand({count, 1, 1})) * along + 2 * M_PI * torch::rand({count, 1, 1}));
    const auto images = waves.unsqueeze(1) * torch::randn({count, 3, 1, 1}) + 0.5 * torch::randn({count, 3, 32, 32});
    return std::make_shared<torchbus::TensorDataset>(images, classes);
}

int main(int argc, char** argv) {
    torch::manual_seed(0);
    const auto train = stripes(1024), test = stripes(512);
    const torchbus::Model model = torchbus::load_torchscript(argc > 1 ? argv[1] : "examples/models/vit.pt");
    initialise(model, 0.02);

    const auto optimizer = torchbus::make_adamw(parameters_of(model), {.learning_rate = 2e-3, .weight_decay = 0.05});
    torchbus::group_parameters(*optimizer, model->named_parameters(),
                               {.groups = {{.patterns = {"cls_token", "pos_embed"}, .weight_decay = 0.0}}, .decay_biases_and_norms = false});
    const auto schedule = torchbus::make_cosine_schedule({.warmup = "1epoch", .warmup_start = 0.01, .cooldown = "1epoch", .minimum = 0.01, .k_decay = 1.5});
    torchbus::Trainer trainer({
        .model = model,
        .loss = [](const auto& output, const auto& targets) { return torch::nn::functional::cross_entropy(output, targets); },
        .optimizer = optimizer,
        .callbacks = {torchbus::make_metrics({.accuracy = true}), torchbus::make_label_smoothing({.smoothing = 0.1}),
                      torchbus::make_gradient_clipping({.max_norm = 1.0}), torchbus::make_learning_rate_schedule({schedule}),
                      torchbus::make_model_ema({.decay = 0.98, .warmup = torchbus::ModelEmaOptions::Warmup::Power}), torchbus::make_progress_lines()},
        .seed = 0,
    });
    trainer.train(train, test, {.epochs = 9, .batch_size = 32});

    std::cout << "accuracy " << trainer.history().latest("eval.ema.accuracy").value() << " of the averaged weights, "
              << trainer.history().latest("eval.accuracy").value() << " of the trained ones\n";
}
