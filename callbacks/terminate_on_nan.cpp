#include <torchbus/callbacks/terminate_on_nan.hpp>

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
        return {.listens = {"run_configured", "forward_end", "gradients_ready"}, .reads = {"loss"}, .writes = {"gradients.decide"},
                .asks = {Decision::FailRun}};
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured&) { bad_ = at::Tensor(); });
        connections_ += run.bus.observe<ForwardEnd>(Stage::Observe, [this](const ForwardEnd& event) { note(event.loss); }, in(Mode::Train));
        connections_ += run.bus.intercept(Phase::Decide, [this, &run](GradientsReady& event) {
            if (!is_due()) return;
            const double loss = std::exchange(bad_, at::Tensor()).item<double>();
            if (std::isfinite(loss)) return;
            const auto& at = event.position;
            const std::string reason = fmt::format("the training loss is {} in epoch {} after step {}; lower the learning rate, clip the "
                                                   "gradients, or look at the batch", loss, at.epoch + 1, at.step);
            event.skip(run.bus.id(), reason);
            run.asker.ask(Decision::FailRun, reason);
        });
    }
    void detach() override {
        connections_.clear();
        bad_ = at::Tensor();
    }

private:
    /// Sums losses: a NaN or an infinity stays one.
    void note(const at::Tensor& loss) { bad_ = bad_.defined() ? bad_ + loss.detach() : loss.detach(); }
    bool is_due() { return bad_.defined() && (bad_.is_cpu() || ++updates_ % options_.check_every == 0); }

    TerminateOnNanOptions options_;
    at::Tensor bad_;
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
