// Shows a callback of one's own: it watches the loss and stops the run by a decision, with a reason.
// Run: build/release/examples/02_custom_callback
// Last line: stopped by good_enough: the training loss is below 0.1
#include <iostream>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

/// Stops the run when an epoch's mean training loss is below `target`.
class GoodEnough final : public torchbus::Callback {
public:
    explicit GoodEnough(double target) : target_(target) {}
    std::string kind() const override { return "good_enough"; }
    torchbus::Declaration declare() const override { return {.listens = {"training_run_epoch_end"}, .needs = {"train.loss"}}; }
    void attach(torchbus::Attachment& run) override {
        connections_ += run.bus.observe<torchbus::TrainingRunEpochEnd>(torchbus::Stage::Report, [this, &run](const auto& event) {
            const double loss = run.blackboard.number("train.loss").value();
            std::cout << "epoch " << event.position.epoch << ": loss " << loss << '\n';
            if (loss < target_) run.asker.ask(torchbus::Decision::StopRun, "the training loss is below 0.1");
        });
    }
    void detach() override { connections_.clear(); }

private:
    double target_;
    torchbus::Connections connections_;  // last, so that they go first
};

int main() {
    torch::manual_seed(0);
    const auto inputs = torch::randn({512, 8});
    const auto data = std::make_shared<torchbus::TensorDataset>(inputs, inputs.sum(1).gt(0).to(torch::kLong));
    torch::nn::Sequential model(torch::nn::Linear(8, 32), torch::nn::ReLU(), torch::nn::Linear(32, 2));

    torchbus::Trainer trainer({
        .model = model,
        .loss = [](const auto& output, const auto& targets) { return torch::nn::functional::cross_entropy(output, targets); },
        .optimizer = torchbus::make_adamw(model->parameters(), {.learning_rate = 1e-2}),
        .callbacks = {torchbus::make_metrics(), std::make_unique<GoodEnough>(0.1)},
        .seed = 0,
    });
    const auto result = trainer.train(data, {.epochs = 50, .batch_size = 32});
    std::cout << name_of(result.outcome) << " by " << result.requester << ": " << result.reason << '\n';
}
