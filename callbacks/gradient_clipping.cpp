#include <torchbus/callbacks/gradient_clipping.hpp>

#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

using By = GradientClippingOptions::By;

/// Norm per unit: per row of what has rows, of the whole for vectors and scalars.
at::Tensor unitwise_norm(const at::Tensor& tensor) {
    if (tensor.dim() <= 1) return tensor.norm();
    std::vector<std::int64_t> dims;
    for (std::int64_t dim = 1; dim < tensor.dim(); ++dim) dims.push_back(dim);
    return at::linalg_vector_norm(tensor, 2, dims, /*keepdim=*/true);
}

class GradientClipping final : public Callback {
public:
    explicit GradientClipping(GradientClippingOptions options) : options_(options) {}
    std::string kind() const override { return "gradient_clipping"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"gradients_ready"}, .reads = {"gradients"}, .writes = {"gradients.change"}};
        if (options_.by != By::Value) {
            declared.publishes = {{"grad_norm", "gradients_ready", Stage::Transform}};
            declared.collectives = true;  // where the update is divided over ranks
        }
        return declared;
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept(Phase::Change, [this, &run](GradientsReady& event) {
            const at::NoGradGuard no_grad;
            const auto gradients = event.gradients.held();
            if (gradients.empty()) return;
            switch (options_.by) {
                case By::Norm: clip_norm(event, gradients, run.blackboard); break;
                case By::Value:
                    for (const at::Tensor& gradient : gradients) gradient.clamp_(-options_.max_value, options_.max_value);
                    break;
                case By::Adaptive: clip_adaptively(event, gradients, run.blackboard); break;
            }
        });
    }
    void detach() override { connections_.clear(); }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override;

private:
    /// The p-norm over all gradients of all owners; `held`: those that lie here. Shapes: [].
    static at::Tensor total_norm(const GradientsView& gradients, const std::vector<at::Tensor>& held, double p) {
        const at::Tensor norms = gradients.norms_of(held, p);
        return std::isinf(p) ? norms.max() : norms.pow(p).sum().pow(1.0 / p);
    }
    void publish(const at::Tensor& norm, Blackboard& blackboard) {
        blackboard.publish_lazy("grad_norm", [norm] { return norm.item<double>(); });
    }
    void clip_norm(const GradientsReady& event, const std::vector<at::Tensor>& gradients, Blackboard& blackboard) {
        const at::Tensor norm = total_norm(event.gradients, gradients, options_.norm_type);
        publish(norm, blackboard);
        const at::Tensor factor = (options_.max_norm / (norm + 1e-6)).clamp_max(1.0);
        // On the CPU the factor is at hand, and small gradients are left alone; a device is not waited for.
        if (factor.is_cpu() && factor.item<double>() == 1.0) return;
        at::_foreach_mul_(gradients, factor);
    }
    void clip_adaptively(const GradientsReady& event, const std::vector<at::Tensor>& gradients, Blackboard& blackboard) {
        publish(total_norm(event.gradients, gradients, 2.0), blackboard);
        for (const at::Tensor& parameter : event.gradients.parameters()) {
            const at::Tensor gradient = parameter.grad();
            if (!gradient.defined()) continue;
            const at::Tensor largest = unitwise_norm(parameter.detach()).clamp_min(options_.epsilon) * options_.ratio;
            const at::Tensor norm = unitwise_norm(gradient);
            gradient.mul_((largest / norm.clamp_min(1e-6)).clamp_max(1.0));
        }
    }

    GradientClippingOptions options_;
    Connections connections_;
};

void require_positive(double value, const char* name, const char* meaning) {
    if (!(value > 0)) throw ConfigError(fmt::format("gradient_clipping: {}: {} is not positive; give {}", name, value, meaning));
}

void require_valid(const GradientClippingOptions& options) {
    require_positive(options.max_norm, "max_norm", "the largest allowed gradient norm, e.g. 1.0");
    require_positive(options.norm_type, "norm_type", "the p of the p-norm, e.g. 2.0");
    require_positive(options.max_value, "max_value", "the largest allowed gradient, e.g. 1.0");
    require_positive(options.ratio, "ratio", "the largest allowed share of the weights' norm, e.g. 0.01");
    require_positive(options.epsilon, "epsilon", "the smallest weight norm, e.g. 0.001");
}

nlohmann::json GradientClipping::change_option(std::string_view option, const nlohmann::json& value) {
    using Options = GradientClippingOptions;
    return change_number(options_, {{"max_norm", &Options::max_norm}, {"max_value", &Options::max_value}, {"ratio", &Options::ratio}}, kind(), option, value,
                         [](const Options& changed) { require_valid(changed); });
}

}  // namespace

std::unique_ptr<Callback> make_gradient_clipping(GradientClippingOptions options) {
    require_valid(options);
    return std::make_unique<GradientClipping>(options);
}

std::unique_ptr<Callback> gradient_clipping_from_json(OptionReader& reader) {
    GradientClippingOptions options;
    std::string by = "norm";
    reader.choice("by", by, {"norm", "value", "adaptive"}, "what is bounded")
        .number("max_norm", options.max_norm, "largest total norm, after unscaling; > 0", Range::positive()).changeable()
        .number("norm_type", options.norm_type, "p of the p-norm; > 0", Range::positive())
        .number("max_value", options.max_value, "largest absolute value of an element, with by = value; > 0", Range::positive()).changeable()
        .number("ratio", options.ratio, "largest share of the weights' norm, with by = adaptive; > 0", Range::positive()).changeable()
        .number("epsilon", options.epsilon, "smallest weight norm, with by = adaptive; > 0", Range::positive());
    options.by = by == "norm" ? By::Norm : by == "value" ? By::Value : By::Adaptive;
    return make_gradient_clipping(options);
}

}  // namespace torchbus
