#include <torchbus/callbacks/sharpness_aware.hpp>

#include <algorithm>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/chosen_update.hpp"

namespace torchbus {
namespace {

void require_valid(const SharpnessAwareOptions& options) {
    if (!(options.rho > 0)) throw ConfigError(fmt::format("sharpness_aware: rho: {} is not positive; give the length of the climb, e.g. 0.05", options.rho));
}

class SharpnessAware final : public Callback {
public:
    explicit SharpnessAware(SharpnessAwareOptions options) : options_(std::move(options)) {}
    std::string kind() const override { return "sharpness_aware"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "gradients_ready", "run_failed"}, .reads = {"gradients"},
                .writes = {"gradients.inspect", "gradients.decide", "parameters"}, .after = {"mixed_precision", "terminate_on_nan"}, .collectives = true};  // where the update is divided over ranks
    }
    std::vector<Finding> check(const Outlook& run) const override {
        return check_chosen_update(kind(), options_.update, run.updates);
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) {
            model_ = &event.model;
            event.plan.max_passes = std::max<std::int64_t>(event.plan.max_passes, 2);
        });
        connections_ += run.bus.intercept(Phase::Inspect, [this](GradientsReady& event) {
            if (is_mine(event)) climbed() ? come_back() : compute_climb(event);
        });
        // Last, where it is known whether the update is skipped.
        connections_ += run.bus.intercept(Phase::Decide, [this](GradientsReady& event) {
            const auto climb = std::exchange(climb_, {});
            if (climb.empty() || !event.skip_requester.empty()) return;
            make(climb);
            event.again();
        });
        connections_ += run.bus.observe<RunFailed>(Stage::Observe, [this](const RunFailed&) { come_back(); });
    }
    void detach() override {
        connections_.clear();
        come_back();
        climb_.clear();
        model_ = nullptr;
    }

    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        return change_number(options_, {{"rho", &SharpnessAwareOptions::rho}}, kind(), option, value,
                             [](const SharpnessAwareOptions& changed) { require_valid(changed); });
    }

private:
    bool is_mine(const GradientsReady& event) const { return is_chosen(options_.update, event.update); }
    bool climbed() const { return !weights_aside_.empty(); }

    /// rho · g / ‖g‖, or rho · w² g / ‖|w| g‖. Nothing is climbed where that is not finite; a device is not waited for.
    void compute_climb(const GradientsReady& event) {
        const at::NoGradGuard no_grad;
        std::vector<at::Tensor> gradients;
        weights_.clear();
        for (const at::Tensor& parameter : event.gradients.parameters()) {
            if (!parameter.grad().defined()) continue;
            weights_.push_back(parameter.detach());
            gradients.push_back(parameter.grad());
        }
        if (gradients.empty()) return;
        const auto measured = options_.adaptive ? at::_foreach_mul(at::_foreach_abs(weights_), gradients) : gradients;
        const at::Tensor norm = event.gradients.norms_of(measured).square().sum().sqrt();
        climb_ = at::_foreach_mul(gradients, options_.rho / (norm + 1e-12));
        if (options_.adaptive) at::_foreach_mul_(climb_, at::_foreach_mul(weights_, weights_));
        const at::Tensor finite = norm.isfinite();
        for (at::Tensor& step : climb_) step = at::where(finite, step, at::zeros({}, step.options()));
    }
    void make(const std::vector<at::Tensor>& climb) {
        const at::NoGradGuard no_grad;
        for (const at::Tensor& weight : weights_) weights_aside_.push_back(weight.clone());
        if (model_)
            for (const auto& [name, buffer] : (*model_)->named_buffers()) {
                if (!buffer.defined()) continue;
                buffers_.push_back(buffer.detach());
                buffers_aside_.push_back(buffer.detach().clone());
            }
        at::_foreach_add_(weights_, climb);
    }
    void come_back() {
        const at::NoGradGuard no_grad;
        if (!weights_aside_.empty()) at::_foreach_copy_(weights_, weights_aside_);
        if (!buffers_aside_.empty()) at::_foreach_copy_(buffers_, buffers_aside_);
        for (auto* list : {&weights_, &weights_aside_, &buffers_, &buffers_aside_}) list->clear();
    }

    SharpnessAwareOptions options_;
    Model* model_ = nullptr;                               ///< the run's
    std::vector<at::Tensor> climb_;                        ///< computed and not made
    std::vector<at::Tensor> weights_, weights_aside_;      ///< aside: while the window goes through again
    std::vector<at::Tensor> buffers_, buffers_aside_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_sharpness_aware(SharpnessAwareOptions options) {
    require_valid(options);
    return std::make_unique<SharpnessAware>(std::move(options));
}

std::unique_ptr<Callback> sharpness_aware_from_json(OptionReader& reader) {
    SharpnessAwareOptions options;
    reader.number("rho", options.rho, "length of the climb; > 0", Range::positive()).changeable()
        .boolean("adaptive", options.adaptive, "whether large weights climb further (ASAM)")
        .text("update", options.update, "name of the update; empty: each");
    return make_sharpness_aware(std::move(options));
}

}  // namespace torchbus
