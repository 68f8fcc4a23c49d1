// A plug-in for scripts/recordings_test.py: flips the lowest bit of one element of one gradient, in one update.
#include <bit>
#include <cstdint>

#include <ATen/core/Tensor.h>

#include <torchbus/error.hpp>
#include <torchbus/model.hpp>
#include <torchbus/plugin.hpp>

using namespace torchbus;

namespace {

class BitFlip final : public Callback {
public:
    BitFlip(std::int64_t step, std::string parameter) : step_(step), parameter_(std::move(parameter)) {}
    std::string kind() const override { return "flip_bit"; }
    Declaration declare() const override { return {.listens = {"run_configured", "gradients_ready"}, .writes = {"gradients"}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { model_ = event.model; });
        connections_ += run.bus.intercept(Phase::Decide, [this](GradientsReady& event) {
            if (event.position.step == step_) flip();
        });
    }
    void detach() override {
        connections_.clear();
        model_ = {};
    }

private:
    void flip() {
        for (const auto& [name, parameter] : model_->named_parameters()) {
            if (name != parameter_) continue;
            float& element = parameter.grad().mutable_data_ptr<float>()[0];
            element = std::bit_cast<float>(std::bit_cast<std::uint32_t>(element) ^ 1U);
            return;
        }
        throw ConfigError("flip_bit: there is no parameter '" + parameter_ + "'");
    }
    std::int64_t step_;
    std::string parameter_;
    Model model_;
    Connections connections_;
};

std::unique_ptr<Callback> flip_bit_from_json(OptionReader& reader) {
    std::int64_t step = 0;
    std::string parameter;
    reader.integer("step", step, "updates made before; in none where it is below 0", Range::at_least(-1)).text("parameter", parameter, "its name");
    return std::make_unique<BitFlip>(step, parameter);
}

void register_flip(PluginRegistry& registry) { registry.callback("flip_bit", "Flips a bit of a gradient.", flip_bit_from_json); }

}  // namespace

TORCHBUS_PLUGIN("flip_bit", register_flip)
