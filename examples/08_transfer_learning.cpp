// Shows transfer learning: of a TorchScript ResNet-18 the backbone is frozen, its batch norm included, while a new head
// is trained; at half the run the backbone is unfrozen, with a lower learning rate than the head's.
// Run: build/release/examples/08_transfer_learning [MODEL.pt]
//      MODEL.pt comes from 08_export_resnet.py, with weights trained on ImageNet if it is asked for them. Without it
//      examples/models/resnet18.pt serves, a skeleton whose weights are drawn here: then features are random at first.
// Last line: accuracy 0.… with the backbone frozen, 0.… after it was unfrozen
#include <iostream>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

#include "models/initialise.hpp"

/// A disc, a square, a cross or a ring of some colour, place and size. Shapes: inputs [N, 3, 32, 32].
std::shared_ptr<torchbus::TensorDataset> shapes(std::int64_t count) {
    const auto kinds = torch::randint(4, {count});
    const auto axis = torch::linspace(-1, 1, 32), size = 0.4 + 0.3 * torch::rand({count, 1, 1});
    const auto across = (axis.view({1, 1, 32}) - 0.6 * (torch::rand({count, 1, 1}) - 0.5)).abs();
    const auto down = (axis.view({1, 32, 1}) - 0.6 * (torch::rand({count, 1, 1}) - 0.5)).abs();
    const auto radius = (across.square() + down.square()).sqrt(), largest = torch::maximum(across, down);
    const auto forms = torch::stack({radius, 1.1 * largest, 3 * torch::minimum(across, down) + 0.2 * largest, 3.5 * (radius - 0.8 * size).abs()});
    const auto inside = (forms.index({kinds, torch::arange(count)}) < size).to(torch::kFloat).unsqueeze(1);
    const auto images = inside * (1 + torch::rand({count, 3, 1, 1})) - 0.5 + 0.1 * torch::randn({count, 3, 32, 32});
    return std::make_shared<torchbus::TensorDataset>(images, kinds);
}

int main(int argc, char** argv) {
    torch::manual_seed(0);
    const auto train = shapes(384), test = shapes(384);
    const torchbus::Model model = torchbus::load_torchscript(argc > 1 ? argv[1] : "examples/models/resnet18.pt");
    const bool random = initialise(model);

    const torchbus::FreezeGroup backbone{.names = {"conv1.*", "bn1.*", "layer*"}, .unfreeze_at = "0.5run", .learning_rate_factor = random ? 0.3 : 0.03};
    torchbus::Trainer trainer({
        .model = model,
        .loss = [](const auto& output, const auto& targets) { return torch::nn::functional::cross_entropy(output, targets); },
        .optimizer = torchbus::make_adamw(parameters_of(model), {.learning_rate = 5e-3, .weight_decay = 0.01}),
        .callbacks = {torchbus::make_metrics({.accuracy = true}), torchbus::make_freeze({.groups = {backbone}}),
                      torchbus::make_learning_rate_schedule({torchbus::make_linear_schedule({})}), torchbus::make_progress_lines()},
        .seed = 0,
    });
    trainer.train(train, test, {.epochs = 6, .batch_size = 32});

    const auto& epochs = trainer.history().epochs();
    std::cout << "accuracy " << epochs.at(2).metrics.at("eval.accuracy") << " with the backbone frozen, "
              << epochs.back().metrics.at("eval.accuracy") << " after it was unfrozen\n";
}
