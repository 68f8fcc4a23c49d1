#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/gradient_statistics.hpp>
#include <torchbus/error.hpp>

#include "support/alone_on_bus.hpp"
#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using When = GradientStatisticsOptions::When;

namespace {

/// One callback, and the events of updates of given parameters.
struct Updates {
    AloneOnBus alone;
    std::vector<at::Tensor> parameters;
    Update update;
    Updates(GradientStatisticsOptions options, std::vector<at::Tensor> weights, const std::vector<at::Tensor>& gradients, std::string name = "")
        : alone(make_gradient_statistics(options)), parameters(std::move(weights)) {
        for (std::size_t i = 0; i < parameters.size(); ++i) {
            parameters[i].requires_grad_();
            parameters[i].mutable_grad() = gradients[i];
        }
        update.name = std::move(name);
    }
    void make(int pass = 0) {
        alone.bus().emit(GradientsReady{alone.bus().moment().position, update, Window{}, GradientsView(parameters), pass});
    }
    void finish() {
        const at::NoGradGuard no_grad;
        ++alone.bus().moment().position.step;
        for (const at::Tensor& parameter : parameters) at::Tensor(parameter).sub_(parameter.grad(), 0.1);
        alone.bus().emit(OptimizerStepEnd{alone.bus().moment().position, update});
    }
    /// The first update is never due; after it every one is.
    Updates& started() {
        make();
        finish();
        return *this;
    }
    double number(const std::string& name) { return alone.blackboard().number(name).value_or(-99); }
};

}  // namespace

TEST_CASE("gradient statistics of a vector are those computed by hand", "[callbacks][gradient_statistics]") {
    // All gradients are 3, -4, 0, 0, 12: norm 13, mean 11/5, largest 12, two of five are zero.
    Updates updates({.every = 1, .per_parameter = true}, {torch::full({2}, 2.0f), torch::full({3}, 2.0f)},
                    {torch::tensor({3.0f, -4.0f}), torch::tensor({0.0f, 0.0f, 12.0f})});
    updates.make();
    CHECK(updates.alone.blackboard().names().empty());  // an interval has not gone by yet
    updates.finish();
    const double norm_before = torch::cat(updates.parameters).norm().item<double>(), first_before = updates.parameters[0].norm().item<double>();
    updates.make();
    CHECK(updates.number("gradients.norm") == Approx(13));
    CHECK(updates.number("gradients.mean") == Approx(11.0 / 5));
    CHECK(updates.number("gradients.max_abs") == 12);
    CHECK(updates.number("gradients.zeros") == Approx(0.4));
    CHECK(updates.number("gradients.parameter_0.norm") == Approx(5));
    CHECK(updates.number("gradients.parameter_0.mean") == Approx(-0.5));
    CHECK(updates.number("gradients.parameter_0.zeros") == 0);
    CHECK(updates.number("gradients.parameter_1.max_abs") == 12);
    CHECK(updates.number("gradients.parameter_1.zeros") == Approx(2.0 / 3));
    CHECK(updates.number("weights.norm") == Approx(norm_before));
    CHECK(updates.number("update_ratio") == -99);
    updates.parameters[1].mutable_grad() = torch::zeros(3);  // what was measured does not change with the gradients
    CHECK(updates.number("gradients.norm") == Approx(13));
    updates.parameters[1].mutable_grad() = torch::tensor({0.0f, 0.0f, 12.0f});
    updates.finish();
    CHECK(updates.number("update_ratio") == Approx(1.3 / norm_before));  // 0.1 times a gradient of norm 13
    CHECK(updates.number("update_ratio.parameter_0") == Approx(0.5 / first_before));
}

TEST_CASE("half-precision, sparse, empty and missing gradients are measured", "[callbacks][gradient_statistics]") {
    // 70000 ones: their count and sum do not fit into fp16.
    Updates half({.every = 1}, {torch::ones({70000}, at::kHalf)}, {torch::ones({70000}, at::kHalf)});
    half.started().make();
    CHECK(half.number("gradients.norm") == Approx(std::sqrt(70000.0)));
    CHECK(half.number("gradients.mean") == Approx(1.0));
    const at::Tensor sparse = torch::sparse_coo_tensor(torch::tensor({{1, 1}}), torch::tensor({2.0f, 1.0f}), {4});
    Updates others({.every = 1, .update_ratio = false}, {torch::ones({4}), torch::ones({0}), torch::ones({2})}, {sparse, torch::zeros({0}), {}});
    ++others.alone.bus().moment().position.step;
    others.make();
    ++others.alone.bus().moment().position.step;
    others.make();
    CHECK(others.number("gradients.norm") == Approx(3));  // two entries at one place
    CHECK(others.number("gradients.zeros") == Approx(0.75));
    CHECK(others.number("gradients.mean") == Approx(0.75));
    CHECK(others.number("weights.norm") == Approx(std::sqrt(6.0)));
}

TEST_CASE("non-finite gradients are told as they are, and a skipped update has no ratio", "[callbacks][gradient_statistics]") {
    Updates updates({.every = 1}, {torch::ones({2})}, {torch::zeros({2})});
    updates.started();
    updates.parameters[0].mutable_grad() = torch::tensor({1.0f, std::numeric_limits<float>::infinity()});
    updates.make();
    updates.alone.bus().emit(OptimizerStepSkipped{{}, updates.update, "test", "test"});
    CHECK(std::isinf(updates.number("gradients.norm")));
    CHECK(std::isinf(updates.number("gradients.max_abs")));
    CHECK(updates.number("update_ratio") == -99);
    updates.alone.bus().emit(OptimizerStepEnd{{}, updates.update});  // not that of the update before
    CHECK(updates.number("update_ratio") == -99);
}

TEST_CASE("of repeated passes the last one's gradients and the first one's weights count", "[callbacks][gradient_statistics]") {
    Updates updates({.every = 1}, {torch::ones({1})}, {torch::zeros({1})});
    updates.started();
    updates.parameters[0].mutable_grad() = torch::tensor({5.0f});
    updates.make(0);
    {
        const at::NoGradGuard no_grad;
        updates.parameters[0].add_(1);  // as SAM climbs
    }
    updates.parameters[0].mutable_grad() = torch::tensor({7.0f});
    updates.make(1);
    CHECK(updates.number("gradients.norm") == 7);
    CHECK(updates.number("weights.norm") == 1);
    {
        const at::NoGradGuard no_grad;
        updates.parameters[0].sub_(1);
    }
    updates.finish();
    CHECK(updates.number("update_ratio") == Approx(0.7));
}

TEST_CASE("the option `when` chooses gradients before or after clipping", "[callbacks][gradient_statistics]") {
    for (const When when : {When::BeforeClipping, When::AfterClipping}) {
        auto model = toy_model();
        std::vector<double> measured, before;
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                         // Clipping stands first in the list; phases decide.
                         .callbacks = {make_gradient_clipping({.max_norm = 0.01}), make_gradient_statistics({.every = 1, .when = when, .per_parameter = true}),
                                       callback_of("reader", [&](Attachment& run, Connections& connections) {
                                           connections += run.bus.observe<TrainStepEnd>(Stage::Report, [&](const TrainStepEnd& event) {
                                               if (event.position.step < 2) return;
                                               measured.push_back(run.blackboard.number("gradients.norm").value());
                                               before.push_back(run.blackboard.number("grad_norm").value());
                                               CHECK(run.blackboard.number("update_ratio").value() ==
                                                     Approx(0.1 * 0.01 / run.blackboard.number("weights.norm").value()).epsilon(1e-2));
                                               CHECK(run.blackboard.number("gradients.0.weight.norm").has_value());
                                           });
                                       })},
                         .handle_signals = false});
        trainer.train(toy_data(12), {.batch_size = 4});
        REQUIRE(measured.size() == 2);
        for (std::size_t i = 0; i < 2; ++i) CHECK(measured[i] == Approx(when == When::BeforeClipping ? before[i] : 0.01).epsilon(1e-3));
        const Blackboard& numbers = trainer.blackboard();
        for (const char* name : {"gradients.0.weight.norm", "weights.2.bias.max_abs", "update_ratio.2.weight"}) CHECK(numbers.number(name).has_value());
    }
}

TEST_CASE("statistics change no bit of the run", "[callbacks][gradient_statistics]") {
    std::vector<std::vector<at::Tensor>> ends;
    for (const bool measured : {false, true}) {
        auto model = toy_model();
        std::vector<ComposedCallback> callbacks;
        if (measured) callbacks.emplace_back(make_gradient_statistics({.every = 1, .per_parameter = true}));
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::Adam>(model->parameters(), 0.01),
                         .callbacks = std::move(callbacks), .seed = 5, .handle_signals = false});
        trainer.train(toy_data(40), {.epochs = 2, .batch_size = 4});
        ends.push_back(copies_of(model->parameters()));
    }
    CHECK(equal_bits(ends[0], ends[1]));
}

TEST_CASE("updates that take turns are both measured, under their names", "[callbacks][gradient_statistics]") {
    auto model = toy_model();
    const auto sgd = [&](std::size_t layer) { return std::make_shared<torch::optim::SGD>(model[layer]->parameters(), 0.1); };
    std::map<std::string, int> values;
    std::map<std::string, double> last;
    Trainer trainer({.model = model, .loss = cross_entropy, .updates = {{"body", sgd(0), {}, 1}, {"head", sgd(2), {}, 1}},
                     .callbacks = {make_gradient_statistics({.every = 4}), callback_of("reader", [&](Attachment& run, Connections& connections) {
                         connections += run.bus.observe<TrainStepEnd>(Stage::Report, [&](const TrainStepEnd&) {
                             for (const char* name : {"update_ratio.body", "update_ratio.head"})
                                 if (const auto value = run.blackboard.number(name); value && last[name] != *value) ++values[name], last[name] = *value;
                         });
                     })},
                     .handle_signals = false});
    trainer.train(toy_data(36), {.batch_size = 4});  // 18 steps, in turns
    CHECK(values["update_ratio.body"] == 4);         // at steps 4, 8, 12, 16
    CHECK(values["update_ratio.head"] == 4);         // at steps 5, 9, 13, 17
}

TEST_CASE("gradient statistics of nothing, or never, are refused", "[callbacks][gradient_statistics]") {
    CHECK_THROWS_WITH(make_gradient_statistics({.every = 0}), containing("gradient_statistics: every: ") && containing("is not positive"));
    CHECK_THROWS_AS(make_gradient_statistics({.gradients = false, .weights = false, .update_ratio = false}), ConfigError);
}
