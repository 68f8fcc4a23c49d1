#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/error.hpp>

#include "support/alone_on_bus.hpp"
#include "support/catch.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

/// Sends GradientsReady with these gradients through one callback. Returns what it published.
std::optional<double> send_gradients(std::shared_ptr<Callback> callback, const std::vector<at::Tensor>& parameters) {
    AloneOnBus alone(std::move(callback));
    const Update update;
    const Window window;
    alone.bus().emit(GradientsReady{{}, update, window, GradientsView(parameters)});
    return alone.blackboard().number("grad_norm");
}

/// Parameters of ones with these gradients.
std::vector<at::Tensor> with_gradients(const std::vector<at::Tensor>& gradients) {
    std::vector<at::Tensor> parameters;
    for (const at::Tensor& gradient : gradients) {
        parameters.push_back(torch::ones_like(gradient).requires_grad_());
        parameters.back().mutable_grad() = gradient.clone();
    }
    return parameters;
}

}  // namespace

TEST_CASE("clipping by norm scales all gradients alike, and publishes the norm before", "[callbacks][gradient-clipping]") {
    const auto parameters = with_gradients({torch::tensor({3.0f}), torch::tensor({0.0f, 4.0f})});  // norm 5
    const std::shared_ptr<Callback> callback = make_gradient_clipping({.max_norm = 1.0});
    CHECK(send_gradients(callback, parameters) == 5.0);
    CHECK(parameters[0].grad().item<float>() == Approx(0.6));
    CHECK(parameters[1].grad()[1].item<float>() == Approx(0.8));
}

TEST_CASE("clipping by norm equals torch's clip_grad_norm_", "[callbacks][gradient-clipping]") {
    for (const double p : {2.0, 1.0, std::numeric_limits<double>::infinity()}) {
        torch::manual_seed(3);
        const std::vector<at::Tensor> gradients = {torch::randn({7, 5}), torch::randn({11})};
        const auto ours = with_gradients(gradients), theirs = with_gradients(gradients);
        send_gradients(make_gradient_clipping({.max_norm = 0.5, .norm_type = p}), ours);
        torch::nn::utils::clip_grad_norm_(theirs, 0.5, p);
        for (std::size_t i = 0; i < ours.size(); ++i) CHECK(torch::allclose(ours[i].grad(), theirs[i].grad(), 1e-6, 0));
    }
}

TEST_CASE("gradient clipping leaves small gradients untouched", "[callbacks][gradient-clipping]") {
    const auto parameters = with_gradients({torch::tensor({0.3f, 0.1f})});
    send_gradients(make_gradient_clipping({.max_norm = 1.0}), parameters);
    CHECK(parameters[0].grad().equal(torch::tensor({0.3f, 0.1f})));
}

TEST_CASE("clipping by value clamps each element and publishes no norm", "[callbacks][gradient-clipping]") {
    const auto parameters = with_gradients({torch::tensor({-3.0f, 0.5f, 2.0f})});
    CHECK_FALSE(send_gradients(make_gradient_clipping({.by = GradientClippingOptions::By::Value, .max_value = 1.0}), parameters).has_value());
    CHECK(parameters[0].grad().equal(torch::tensor({-1.0f, 0.5f, 1.0f})));
}

TEST_CASE("adaptive clipping bounds each unit by its own weights", "[callbacks][gradient-clipping]") {
    // Rows of two ones have norm sqrt 2; with ratio 0.1 a row's gradient may have norm 0.1414.
    const auto parameters = with_gradients({torch::tensor({{3.0f, 4.0f}, {0.03f, 0.04f}})});
    send_gradients(make_gradient_clipping({.by = GradientClippingOptions::By::Adaptive, .ratio = 0.1}), parameters);
    CHECK(parameters[0].grad()[0].norm().item<float>() == Approx(0.1 * std::sqrt(2.0)));
    CHECK(parameters[0].grad()[1].norm().item<float>() == Approx(0.05));  // small already
}

TEST_CASE("clipping by norm, value and adaptively equals torch's and timm's", "[callbacks][gradient-clipping]") {
    const json reference = json::parse(std::ifstream(source_root() + "/test/references/clipping.json"));
    const auto tensors_of = [](const json& list) {
        std::vector<at::Tensor> tensors;
        for (const json& one : list)
            tensors.push_back(torch::tensor(one["values"].get<std::vector<double>>(), torch::kFloat).reshape(one["shape"].get<std::vector<std::int64_t>>()));
        return tensors;
    };
    for (const json& one : reference["cases"]) {
        const auto clipped_by = [&](const GradientClippingOptions& options, std::optional<double>* norm = nullptr) {
            auto parameters = with_gradients(tensors_of(one["gradients"]));
            const auto weights = tensors_of(one["weights"]);
            const at::NoGradGuard no_grad;
            for (std::size_t i = 0; i < weights.size(); ++i) parameters[i].copy_(weights[i]);
            const auto sent = send_gradients(make_gradient_clipping(options), parameters);
            if (norm) *norm = sent;
            std::vector<at::Tensor> gradients;
            for (const at::Tensor& parameter : parameters) gradients.push_back(parameter.grad());
            return gradients;
        };
        for (const json& by_norm : one["norms"]) {
            const double p = by_norm["p"] == "inf" ? std::numeric_limits<double>::infinity() : by_norm["p"].get<double>();
            std::optional<double> norm;
            CHECK(relative_difference(clipped_by({.max_norm = reference["max_norm"], .norm_type = p}, &norm), tensors_of(by_norm["clipped"])) < 1e-6);
            CHECK(norm.value() == Approx(by_norm["norm"].get<double>()).epsilon(1e-6));
        }
        CHECK(equal_bits(clipped_by({.by = GradientClippingOptions::By::Value, .max_value = reference["max_value"]}), tensors_of(one["value"])));
        CHECK(relative_difference(clipped_by({.by = GradientClippingOptions::By::Adaptive, .ratio = reference["ratio"], .epsilon = reference["epsilon"]}),
                                  tensors_of(one["adaptive"])) < 1e-6);
    }
}

TEST_CASE("clipping refuses bounds that are not positive", "[callbacks][gradient-clipping]") {
    CHECK_THROWS_WITH(make_gradient_clipping({.max_norm = -1}), "gradient_clipping: max_norm: -1 is not positive; give the largest allowed gradient norm, e.g. 1.0");
    CHECK_THROWS_AS(make_gradient_clipping({.ratio = 0}), ConfigError);
}
