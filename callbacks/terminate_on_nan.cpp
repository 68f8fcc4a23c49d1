#include <torchbus/callbacks/terminate_on_nan.hpp>

#include <cmath>
#include <optional>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class TerminateOnNan final : public Callback {
public:
    explicit TerminateOnNan(TerminateOnNanOptions options) : options_(options) {}
    std::string kind() const override { return "terminate_on_nan"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "forward_end", "gradients_ready", "eval_epoch_end"}, .reads = {"loss"}, .writes = {"gradients.inspect", "gradients.decide"},
                .asks = {Decision::FailRun}};
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured&) { bad_ = eval_loss_ = at::Tensor(); });
        connections_ += run.bus.observe<ForwardEnd>(Stage::Observe, [this](const ForwardEnd& event) {
            if (event.loss.defined() && event.scope.mode != Mode::Predict) note(event.loss, event.scope.mode == Mode::Train ? bad_ : eval_loss_);
        });
        connections_ += run.bus.observe<EvalEpochEnd>(Stage::Observe, [this, &run](const EvalEpochEnd& event) {
            const at::Tensor sum = std::exchange(eval_loss_, at::Tensor());
            if (!sum.defined() || std::isfinite(sum.item<double>())) return;
            run.asker.ask(Decision::FailRun, fmt::format("the loss on '{}' is {} after step {}; look at the weights and at the batches of that split",
                                                         event.scope.split, sum.item<double>(), event.position.step));
        });
        connections_ += run.bus.intercept(Phase::Inspect, [this](GradientsReady& event) {
            place_.reset();
            if (is_due()) place_ = event.host_read.ask(std::exchange(bad_, at::Tensor()));
        });
        connections_ += run.bus.intercept(Phase::Decide, [this, &run](GradientsReady& event) {
            if (!place_) return;
            const double loss = event.host_read.value(*place_);
            if (std::isfinite(loss)) return;
            const auto& at = event.position;
            const std::string reason = fmt::format("the training loss is {} in epoch {} after step {}; lower the learning rate, clip the "
                                                   "gradients, or look at the batch", loss, at.epoch + 1, at.step);
            // The others may have seen no NaN: a rank does not skip alone, and all fail at the next decision.
            if (run.consensus.world_size() == 1) event.skip(run.bus.id(), reason);
            run.asker.ask(Decision::FailRun, reason);
        });
    }
    void detach() override {
        connections_.clear();
        bad_ = eval_loss_ = at::Tensor();
    }

private:
    /// Sums losses: a NaN or an infinity stays one.
    static void note(const at::Tensor& loss, at::Tensor& sum) { sum = sum.defined() ? sum + loss.detach() : loss.detach(); }
    bool is_due() { return bad_.defined() && (bad_.is_cpu() || ++updates_ % options_.check_every == 0); }

    TerminateOnNanOptions options_;
    at::Tensor bad_;
    at::Tensor eval_loss_;              ///< sum over the split that is evaluated
    std::optional<std::size_t> place_;  ///< of the losses' sum in the event's HostRead
    std::int64_t updates_ = 0;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_terminate_on_nan(TerminateOnNanOptions options) {
    if (options.check_every < 1) throw ConfigError(fmt::format("terminate_on_nan: check_every: {} is too few; give at least 1", options.check_every));
    return std::make_unique<TerminateOnNan>(options);
}

std::unique_ptr<Callback> terminate_on_nan_from_json(OptionReader& reader) {
    TerminateOnNanOptions options;
    reader.integer("check_every", options.check_every, "updates between two looks, where the loss lies on a device", Range::at_least(1));
    return make_terminate_on_nan(options);
}

}  // namespace torchbus
