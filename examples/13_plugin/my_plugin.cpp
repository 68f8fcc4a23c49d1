// Shows a plug-in: a callback and a model of one's own, in a shared object that run files name.
// Run: cd examples/13_plugin && meson setup build && ninja -C build && torchbus train run.json
//      (with an installed torchbus, and PKG_CONFIG_PATH where its torchbus.pc lies), or without meson
//      c++ -O2 -shared -fPIC $(pkg-config --cflags torchbus) my_plugin.cpp -o build/my_plugin.so
// Last line of `torchbus callbacks stop_at_loss --plugin build/my_plugin.so`: runs       critical: the run fails with it
#include <torch/torch.h>

#include <torchbus/plugin.hpp>

namespace {

/// Ends the run when the training loss of an epoch is low enough.
class StopAtLoss final : public torchbus::Callback {
public:
    explicit StopAtLoss(double below) : below_(below) {}
    std::string kind() const override { return "stop_at_loss"; }
    torchbus::Declaration declare() const override {
        return {.listens = {"training_run_epoch_end"}, .needs = {"train.loss"}, .asks = {torchbus::Decision::StopRun}};
    }
    void attach(torchbus::Attachment& run) override {
        connections_ += run.bus.observe<torchbus::TrainingRunEpochEnd>(torchbus::Stage::Report, [this, &run](const auto&) {
            if (run.blackboard.number("train.loss").value() < below_)
                run.asker.ask(torchbus::Decision::StopRun, "the training loss is below " + std::to_string(below_));
        });
    }
    void detach() override { connections_.clear(); }

private:
    double below_;
    torchbus::Connections connections_;  // last, so that they go first
};

// Reads the options, each with its default, meaning and range; what reads them also describes them.
std::unique_ptr<torchbus::Callback> stop_at_loss(torchbus::OptionReader& options) {
    double below = 0.1;
    options.number("below", below, "training loss at which the run ends", torchbus::Range::positive());
    return std::make_unique<StopAtLoss>(below);
}

// Only reads; the weights are drawn by what it returns.
torchbus::ModelMaker wide_and_deep(torchbus::OptionReader& options) {
    std::int64_t inputs = 16, width = 32, classes = 4;
    options.integer("inputs", inputs, "elements of a sample", torchbus::Range::at_least(1))
        .integer("width", width, "of the hidden layer", torchbus::Range::at_least(1))
        .integer("classes", classes, "width of the output", torchbus::Range::at_least(1));
    struct Net : torch::nn::Module {
        Net(std::int64_t in, std::int64_t hidden, std::int64_t out)
            : wide(register_module("wide", torch::nn::Linear(in, out))), deep(register_module("deep", torch::nn::Linear(in, hidden))),
              head(register_module("head", torch::nn::Linear(hidden, out))) {}
        at::Tensor forward(const at::Tensor& x) { return wide(x) + head(torch::relu(deep(x))); }
        torch::nn::Linear wide, deep, head;
    };
    return [=] { return torchbus::Model(std::make_shared<Net>(inputs, width, classes)); };
}

void register_all(torchbus::PluginRegistry& registry) {
    registry.callback("stop_at_loss", "Ends the run when the training loss is low enough.", stop_at_loss)
        .model("wide_and_deep", "A linear model and one hidden layer, side by side.", wide_and_deep);
}

}  // namespace

TORCHBUS_PLUGIN("my_plugin", register_all)
