#pragma once
/// A trainer of the toy problem with the callbacks that a test composes, and a callback that declares what it is told to.

#include <torchbus/trainer.hpp>

#include "support/toy.hpp"

namespace torchbus::test {

/// A callback that declares what it is told to, and connects as it is told to.
class Declaring final : public Callback {
public:
    using Connect = std::function<void(Attachment&, Connections&)>;
    explicit Declaring(Declaration declared, Connect connect = [](Attachment&, Connections&) {}) : declared_(std::move(declared)), connect_(std::move(connect)) {}
    std::string kind() const override { return "declaring"; }
    Declaration declare() const override { return declared_; }
    void attach(Attachment& run) override { connect_(run, connections_); }
    void detach() override { connections_.clear(); }
    std::vector<Finding> check(const Outlook& run) const override { return checks ? checks(run) : std::vector<Finding>{}; }
    std::function<std::vector<Finding>(const Outlook&)> checks;

private:
    Declaration declared_;
    Connect connect_;
    Connections connections_;
};

inline ComposedCallback declaring(std::string id, Declaration declared, Declaring::Connect connect = [](Attachment&, Connections&) {}) {
    return {std::move(id), std::make_shared<Declaring>(std::move(declared), std::move(connect))};
}

struct Toy {
    torch::nn::Sequential model = toy_model();
    std::unique_ptr<Trainer> trainer;
    explicit Toy(std::vector<ComposedCallback> callbacks) {
        trainer = std::make_unique<Trainer>(TrainerOptions{.model = model, .loss = cross_entropy,
                                                           .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                                                           .callbacks = std::move(callbacks), .handle_signals = false});
    }
    RunResult train(std::int64_t epochs = 1) { return trainer->train(toy_data(16), toy_data(8), {.epochs = epochs, .batch_size = 4}); }
    void start(std::int64_t epochs = 1) { trainer->start_training(toy_data(16), toy_data(8), {.epochs = epochs, .batch_size = 4}); }
    void finish() {
        while (trainer->advance()) {}
    }
};

}  // namespace torchbus::test
