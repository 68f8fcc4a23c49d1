#include <torchbus/callbacks/mixed_precision.hpp>

#include <ATen/autocast_mode.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

/// Autocast is thread-local: what is found on entering is put back on leaving.
class Autocast {
public:
    explicit Autocast(at::ScalarType type) : type_(type) {}
    void enter(c10::DeviceType device) {
        device_ = device;
        former_enabled_ = at::autocast::is_autocast_enabled(device);
        former_type_ = at::autocast::get_autocast_dtype(device);
        at::autocast::set_autocast_dtype(device, type_);
        at::autocast::set_autocast_enabled(device, true);
        at::autocast::increment_nesting();
    }
    void leave() {
        if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
        at::autocast::set_autocast_dtype(device_, former_type_);
        at::autocast::set_autocast_enabled(device_, former_enabled_);
    }

private:
    at::ScalarType type_;
    c10::DeviceType device_ = c10::kCPU;
    bool former_enabled_ = false;
    at::ScalarType former_type_ = at::kFloat;
};

class MixedPrecision final : public Callback {
public:
    explicit MixedPrecision(MixedPrecisionOptions options)
        : options_(options), fp16_(options.precision == MixedPrecisionOptions::Precision::Fp16),
          scales_(options.scale_loss.value_or(fp16_)), autocast_(fp16_ ? at::kHalf : at::kBFloat16),
          saved_scale_(options.initial_scale) {}
    std::string kind() const override { return "mixed_precision"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"run_configured", "forward"}, .writes = {"precision"}};
        if (scales_) {
            declared.listens = {"run_configured", "forward", "backward_start", "gradients_ready", "optimizer_step_end", "optimizer_step_skipped"};
            declared.reads = {"gradients"};
            declared.writes = {"precision", "root", "gradients.finalize", "gradients.decide"};
            declared.publishes = {{"loss_scale", "run_configured", Stage::Transform}};
            declared.collectives = true;  // where the update is divided over ranks
        }
        return declared;
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this, &run](RunConfigured& event) {
            const auto parameters = event.model->named_parameters();
            device_ = parameters.empty() ? c10::Device(c10::kCPU) : parameters.front().second.device();
            scale_ = torch::full({}, saved_scale_, at::TensorOptions(device_));
            growth_tracker_ = torch::full({}, saved_growth_, at::TensorOptions(device_).dtype(at::kInt));
            if (scales_) run.blackboard.publish_lazy("loss_scale", [this] { return scale_.item<double>(); });
        });
        connections_ += run.bus.around<Forward>([this](const Forward&) { autocast_.enter(device_.type()); },
                                                [this] { autocast_.leave(); });
        if (scales_) attach_scaler(run);
    }
    void detach() override { connections_.clear(); }
    SavedState state() const override {
        const double scale = scale_.defined() ? scale_.item<double>() : saved_scale_;
        const int growth = growth_tracker_.defined() ? growth_tracker_.item<int>() : saved_growth_;
        return {{{"scale", scale}, {"growth_tracker", growth}}};
    }
    void load_state(const SavedState& state) override {
        saved_scale_ = state.values.at("scale");
        saved_growth_ = state.values.at("growth_tracker");
        if (scale_.defined()) scale_.fill_(saved_scale_);
        if (growth_tracker_.defined()) growth_tracker_.fill_(saved_growth_);
    }

private:
    void attach_scaler(Attachment& run) {
        connections_ += run.bus.intercept<BackwardStart>([this](BackwardStart& event) { event.root = event.root * scale_; });
        connections_ += run.bus.intercept(Phase::Finalize, [this](GradientsReady& event) {
            const at::NoGradGuard no_grad;
            found_inf_ = torch::zeros({}, scale_.options());
            const auto gradients = event.gradients.held();
            if (!gradients.empty()) at::_amp_foreach_non_finite_check_and_unscale_(gradients, found_inf_, scale_.reciprocal());
            found_inf_ = event.gradients.sum_over_owners(found_inf_);
            found_inf_place_ = event.host_read.ask(found_inf_);
            scale_place_ = event.host_read.ask(scale_);
        });
        connections_ += run.bus.intercept(Phase::Decide, [this, id = run.bus.id()](GradientsReady& event) {
            if (event.host_read.value(found_inf_place_) > 0)
                event.skip(id, fmt::format("the gradients are not finite at loss scale {}", event.host_read.value(scale_place_)));
        });
        const auto new_scale = [this](const auto&) {
            const at::NoGradGuard no_grad;
            at::_amp_update_scale_(scale_, growth_tracker_, found_inf_, options_.growth_factor, options_.backoff_factor, options_.growth_interval);
        };
        connections_ += run.bus.observe<OptimizerStepEnd>(Stage::Observe, new_scale);
        connections_ += run.bus.observe<OptimizerStepSkipped>(Stage::Observe, new_scale);
    }

    MixedPrecisionOptions options_;
    bool fp16_;
    bool scales_;
    Autocast autocast_;
    c10::Device device_{c10::kCPU};
    double saved_scale_;
    int saved_growth_ = 0;
    at::Tensor scale_, growth_tracker_, found_inf_;  // scalars on the model's device
    std::size_t found_inf_place_ = 0, scale_place_ = 0;  ///< in the event's HostRead
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_mixed_precision(MixedPrecisionOptions options) {
    const auto refuse = [](const char* name, double value, const char* what) {
        throw ConfigError(fmt::format("mixed_precision: {}: {} is out of range; give {}", name, value, what));
    };
    if (!(options.initial_scale > 0)) refuse("initial_scale", options.initial_scale, "a positive number, e.g. 65536");
    if (!(options.growth_factor >= 1)) refuse("growth_factor", options.growth_factor, "a number above 1, e.g. 2, or 1 for a scale that does not grow");
    if (!(options.backoff_factor > 0 && options.backoff_factor <= 1)) refuse("backoff_factor", options.backoff_factor, "a number between 0 and 1, e.g. 0.5, or 1 for a scale that does not fall");
    if (options.growth_interval < 1) refuse("growth_interval", static_cast<double>(options.growth_interval), "at least 1 update, e.g. 2000");
    return std::make_unique<MixedPrecision>(options);
}

std::unique_ptr<Callback> mixed_precision_from_json(OptionReader& reader) {
    MixedPrecisionOptions options;
    std::string precision = "bf16";
    reader.choice("precision", precision, {"bf16", "fp16"}, "type of matrix products and convolutions in forward")
        .number("initial_scale", options.initial_scale, "first loss scale; > 0", Range::positive())
        .number("growth_factor", options.growth_factor, "factor when the scale grows; >= 1", Range::at_least(1))
        .number("backoff_factor", options.backoff_factor, "factor after a skipped update; in (0, 1]", Range::between(0, 1))
        .integer("growth_interval", options.growth_interval, "updates without a skip until the scale grows", Range::at_least(1));
    options.precision = precision == "bf16" ? MixedPrecisionOptions::Precision::Bf16 : MixedPrecisionOptions::Precision::Fp16;
    bool scale_loss = precision == "fp16";
    reader.boolean("scale_loss", scale_loss, "whether the loss is scaled; default: with fp16");
    options.scale_loss = scale_loss;
    return make_mixed_precision(options);
}

}  // namespace torchbus
