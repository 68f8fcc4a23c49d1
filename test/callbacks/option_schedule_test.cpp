#include <nlohmann/json.hpp>

#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/option_schedule.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/group_options.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "../../callbacks/entries.hpp"
#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace torchbus {
std::unique_ptr<Callback> option_schedule_from_json(OptionReader& reader);
}

namespace {

std::unique_ptr<Callback> from(const json& options) {
    OptionReader reader(options, "run.json: callbacks[0]");
    auto made = option_schedule_from_json(reader);
    reader.finish();
    return made;
}

/// The values of an option at each update of a run of four.
std::vector<double> values(ComposedCallback callback, const std::shared_ptr<torch::optim::Optimizer>& optimizer, const torch::nn::Sequential& model,
                           const std::string& option) {
    std::vector<double> found;
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer,
                     .callbacks = {std::move(callback), callback_of("noting", [&](Attachment& run, Connections& connections) {
                         connections += run.bus.observe<OptimizerStepStart>(Stage::Observe, [&](const OptimizerStepStart& event) {
                             found.push_back(group_option(event.update.optimizer->param_groups()[0], option));
                         });
                     })}, .handle_signals = false});
    trainer.train(toy_data(16), {.batch_size = 4});
    return found;
}

}  // namespace

TEST_CASE("weight decay follows a schedule from what the optimizer came with", "[callbacks][option_schedule]") {
    const auto model = toy_model();
    const auto optimizer = make_adamw(model->parameters(), {.weight_decay = 0.4});
    CHECK(values(from({{"option", "weight_decay"}, {"schedule", {{"kind", "linear"}}}}), optimizer, model, "weight_decay") ==
          std::vector<double>{0.4, 0.4 * 0.75, 0.2, 0.1});
}

TEST_CASE("an option gets a base of its own where the optimizer has none", "[callbacks][option_schedule]") {
    const auto model = toy_model();
    const auto optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1});
    CHECK(values(from({{"option", "momentum"}, {"base", 0.8}, {"schedule", {{"kind", "linear"}, {"final_factor", 0.5}}}}), optimizer, model, "momentum") ==
          std::vector<double>{0.8, 0.8 * 0.875, 0.8 * 0.75, 0.8 * 0.625});
}

TEST_CASE("momentum is Adam's beta1", "[callbacks][option_schedule]") {
    const auto model = toy_model();
    const auto optimizer = make_adam(model->parameters(), {.beta1 = 0.9});
    CHECK(values(make_option_schedule({make_constant_schedule(0.5), "momentum"}), optimizer, model, "beta1").back() == 0.45);
    CHECK(group_option(optimizer->param_groups()[0], "beta2") == 0.999);
}

TEST_CASE("the momentum of a scheduled run is used by the optimizer: equal to a plain loop", "[callbacks][option_schedule]") {
    auto model = toy_model(), other = toy_model();
    const auto data = toy_data(16);
    const auto optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1, .momentum = 0.9});
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer,
                     .callbacks = {make_option_schedule({make_linear_schedule({}), "momentum"})}, .handle_signals = false});
    trainer.train(data, {.batch_size = 4, .shuffle = false});
    const auto plain = make_sgd(other->parameters(), {.learning_rate = 0.1, .momentum = 0.9});
    for (int step = 0; step < 4; ++step) {
        static_cast<torch::optim::SGDOptions&>(plain->param_groups()[0].options()).momentum(0.9 * (1 + (0.0 - 1) * (step / 4.0)));
        cross_entropy(other->forward(data->inputs().narrow(0, step * 4, 4)), data->targets().narrow(0, step * 4, 4)).backward();
        plain->step();
        plain->zero_grad();
    }
    CHECK(equal_bits(model->parameters(), other->parameters()));
}

TEST_CASE("options that an optimizer has not, and values that it would not take, are refused", "[callbacks][option_schedule]") {
    const auto model = toy_model();
    const auto sgd = make_sgd(model->parameters(), {});
    CHECK_THROWS_WITH(values(make_option_schedule({make_constant_schedule(), "beta1"}), sgd, model, "weight_decay"),
                      Catch::Matchers::EndsWith("option_schedule: option: the optimizer has no option 'beta1' (it has learning_rate, momentum, dampening, weight_decay)"));
    const auto adam = make_adam(model->parameters(), {});
    CHECK_THROWS_WITH(values(make_option_schedule({make_constant_schedule(2), "beta1"}), adam, model, "beta1"),
                      Catch::Matchers::EndsWith("option_schedule: the schedule sets beta1 to 1.8; expected a number in [0, 1)"));
    CHECK_THROWS_WITH(make_option_schedule({make_constant_schedule(), "learning_rate"}),
                      "option_schedule: option: the learning rate has a callback of its own; take learning_rate_schedule");
    CHECK_THROWS_WITH(from({{"option", "weight_decy"}}), Catch::Matchers::StartsWith("run.json: callbacks[0].option: 'weight_decy' is not known; did you mean 'weight_decay'?"));
    CHECK_THROWS_WITH(from({{"base", "big"}}), "run.json: callbacks[0].base: \"big\" is a string; expected a number");
    CHECK_THROWS_WITH(from({{"schedule", {{"kind", "steps"}}}}), Catch::Matchers::StartsWith("run.json: callbacks[0].schedule.kind: 'steps' is not known; did you mean 'step'?"));
}

TEST_CASE("a number of another callback follows a schedule", "[callbacks][option_schedule]") {
    auto model = toy_model();
    std::vector<double> norms;
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1}),
                     .callbacks = {make_gradient_clipping({.max_norm = 1e-3}), from({{"option", "gradient_clipping.max_norm"}, {"base", 1e-3}, {"schedule", {{"kind", "linear"}}}}),
                                   callback_of("noting", [&](Attachment& run, Connections& connections) {
                                       connections += run.bus.observe<OptimizerStepStart>(Stage::Observe, [&](const OptimizerStepStart& event) {
                                           double squares = 0;
                                           for (const at::Tensor& parameter : event.update.parameters()) squares += parameter.grad().pow(2).sum().item<double>();
                                           norms.push_back(std::sqrt(squares));
                                       });
                                   })}, .handle_signals = false});
    trainer.train(toy_data(16), {.batch_size = 4});
    REQUIRE(norms.size() == 4);
    for (std::size_t step = 0; step < 4; ++step) CHECK(norms[step] == Approx(1e-3 * (1 - static_cast<double>(step) / 4)).epsilon(1e-3));
    CHECK(trainer.blackboard().number("gradient_clipping.max_norm") == 1e-3 * (1 - 3.0 / 4));
}

TEST_CASE("an option that a schedule sets is not changed by who asks", "[callbacks][option_schedule]") {
    const auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1}),
                     .callbacks = {ComposedCallback("clip", make_gradient_clipping({})), ComposedCallback("ramp", make_option_schedule({.schedule = make_constant_schedule(), .option = "clip.max_norm", .base = 2}))}, .handle_signals = false});
    trainer.start_training(toy_data(16), {.batch_size = 4});
    auto refused = trainer.change_option("clip", "max_norm", 0.5, "dashboard");
    while (trainer.advance()) {}
    CHECK_THROWS_WITH(refused.get(), "'ramp' sets max_norm of 'clip' as the run goes on; detach it first");
}

TEST_CASE("a callback's option needs a base, a callback and an option that can be changed", "[callbacks][option_schedule]") {
    const auto model = toy_model();
    CHECK_THROWS_WITH(from({{"option", "gradient_clipping.max_norm"}}), "option_schedule: base: is missing; give the value of gradient_clipping.max_norm that the schedule's factor multiplies");
    CHECK_THROWS_WITH(values(from({{"option", "gradient_cliping.max_norm"}, {"base", 1}}), make_sgd(model->parameters(), {}), model, "momentum"), containing("no callback 'gradient_cliping' is attached"));
    CHECK_THROWS_WITH(values(from({{"option", "noting.max_norm"}, {"base", 1}}), make_sgd(model->parameters(), {}), model, "momentum"), containing("max_norm"));
}

TEST_CASE("a second run starts from the base again, and so does a resumed one", "[callbacks][option_schedule]") {
    const auto model = toy_model();
    const auto optimizer = make_adamw(model->parameters(), {.weight_decay = 0.4});
    std::shared_ptr<Callback> callback = make_option_schedule({make_linear_schedule({})});
    CHECK(values(ComposedCallback(callback), optimizer, model, "weight_decay").back() == 0.1);
    CHECK(values(ComposedCallback(callback), optimizer, model, "weight_decay").front() == 0.4);
    const SavedState state = callback->state();
    CHECK(state.values == json::parse(R"({"base_values": {"": [0.4]}})"));
    std::shared_ptr<Callback> fresh = make_option_schedule({make_linear_schedule({})});
    fresh->load_state(state);  // the optimizer is at 0.1 now
    CHECK(values(ComposedCallback(fresh), optimizer, model, "weight_decay").front() == 0.4);
}
