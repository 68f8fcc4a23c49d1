// Shows a loop of one's own: the run goes one transition a call, between which the program does what it likes, here
// a pause in mid-epoch, a look at where the run is, and a stop that is asked for.
// Run: build/release/examples/12_own_loop
// Last line: stopped after … steps by the main loop: enough seen
#include <iostream>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

int main() {
    torch::manual_seed(0);
    const auto inputs = torch::randn({1024, 4});
    const auto data = std::make_shared<torchbus::TensorDataset>(inputs, inputs.sum(1, true));
    torch::nn::Linear model(4, 1);
    torchbus::Trainer trainer({
        .model = model,
        .loss = [](const auto& output, const auto& targets) { return torch::mse_loss(output, targets); },
        .optimizer = torchbus::make_sgd(model->parameters(), {.learning_rate = 0.05}),
        .callbacks = {torchbus::make_metrics()},
        .seed = 0,
    });

    trainer.start_training(data, {.epochs = 100, .batch_size = 32});
    std::int64_t transitions = 0;
    while (trainer.advance()) {
        ++transitions;
        const auto& position = trainer.position();
        if (trainer.state() != torchbus::State::Deciding || position.in_epoch.step != 16) continue;
        // In the middle of an epoch nothing of the run is on the stack: other work may be done here, for as long as it takes.
        const double loss = trainer.blackboard().number("train.loss").value();
        std::cout << "epoch " << position.epoch + 1 << ", step " << position.step << ", transition " << transitions << ": loss " << loss << '\n';
        if (loss < 1e-3) trainer.ask(torchbus::Decision::StopRun, "the main loop", "enough seen");
    }
    const auto& result = trainer.result();
    std::cout << "stopped after " << trainer.position().step << " steps by " << result.requester << ": " << result.reason << '\n';
}
