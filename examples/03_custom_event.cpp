// Shows an event of one's own: a callback emits it from within training, another observes it, and a tap that knows
// nothing of it streams it as JSON, because it has a to_json.
// Run: build/release/examples/03_custom_event
// Last line: {"worst_batch":{"loss":…,"step":…}} for the last epoch
#include <iostream>

#include <nlohmann/json.hpp>
#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

struct WorstBatch {
    std::int64_t step = 0;
    double loss = 0;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(WorstBatch, step, loss)

/// Emits WorstBatch once an epoch: the step with the largest loss.
class WorstBatchFinder final : public torchbus::Callback {
public:
    std::string kind() const override { return "worst_batch_finder"; }
    torchbus::Declaration declare() const override { return {.listens = {"train_step_end", "train_epoch_end"}, .reads = {"loss"}}; }
    void attach(torchbus::Attachment& run) override {
        connections_ += run.bus.observe<torchbus::TrainStepEnd>(torchbus::Stage::Observe, [this](const torchbus::TrainStepEnd& event) {
            const double loss = event.loss.item<double>();
            if (loss > worst_.loss) worst_ = {event.position.step, loss};
        });
        connections_ += run.bus.observe<torchbus::TrainEpochEnd>(torchbus::Stage::Observe, [this, &run](const auto&) {
            run.bus.emit(std::exchange(worst_, {}));
        });
    }
    void detach() override { connections_.clear(); }

private:
    WorstBatch worst_;
    torchbus::Connections connections_;
};

int main() {
    torch::manual_seed(0);
    const auto inputs = torch::randn({256, 4});
    const auto data = std::make_shared<torchbus::TensorDataset>(inputs, inputs.sum(1, true));
    torch::nn::Linear model(4, 1);

    torchbus::Trainer trainer({
        .model = model,
        .loss = [](const auto& output, const auto& targets) { return torch::mse_loss(output, targets); },
        .optimizer = torchbus::make_sgd(model->parameters(), {.learning_rate = 0.05}),
        .callbacks = {std::make_unique<WorstBatchFinder>()},
        .seed = 0,
    });
    auto stream = trainer.subscribe("stream");
    const auto tap = stream.observe_all(torchbus::Stage::Persist, [](const torchbus::AnyEvent& event) {
        if (event.as<WorstBatch>() == nullptr) return;  // without this line every event of the run would be printed
        nlohmann::json data;
        event.write_json(data);
        std::cout << nlohmann::json{{event.name(), data}}.dump() << '\n';
    });
    trainer.train(data, {.epochs = 3, .batch_size = 32});
}
