// The learning rate by a schedule; that the first update gets f(0) and a skipped one stands still is in behaviours_test.cpp.
#include <nlohmann/json.hpp>

#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "../../callbacks/entries.hpp"
#include "support/alone_on_bus.hpp"
#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

/// Two parameter groups, with rates of 0.4 and 0.1.
std::shared_ptr<torch::optim::Optimizer> two_groups(const torch::nn::Sequential& model) {
    const auto all = model->parameters();
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(std::vector<at::Tensor>{all[0], all[1]}, std::make_unique<torch::optim::SGDOptions>(0.4));
    groups.emplace_back(std::vector<at::Tensor>{all[2], all[3]}, std::make_unique<torch::optim::SGDOptions>(0.1));
    return std::make_shared<torch::optim::SGD>(std::move(groups), torch::optim::SGDOptions(0.4));
}

using Rates = std::vector<std::vector<double>>;

/// Notes the rates of every update, before what `callbacks` do at its end.
ComposedCallback noting(Rates& rates) {
    return callback_of("noting", [&rates](Attachment& run, Connections& connections) {
        connections += run.bus.observe<ForwardEnd>(Stage::Observe, [](const ForwardEnd&) {});
        connections += run.bus.observe<OptimizerStepStart>(Stage::Observe, [&rates](const OptimizerStepStart& event) {
            auto& now = rates.emplace_back();
            for (auto& group : event.update.optimizer->param_groups()) now.push_back(group.options().get_lr());
        });
    });
}

struct LearningRateScheduleSetup {
    torch::nn::Sequential model = toy_model();
    std::shared_ptr<torch::optim::Optimizer> optimizer = two_groups(model);
    Rates rates;
    Trainer trainer;
    explicit LearningRateScheduleSetup(std::vector<ComposedCallback> callbacks) : trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer,
                                                                       .callbacks = with_notes(std::move(callbacks)), .handle_signals = false}) {}
    std::vector<ComposedCallback> with_notes(std::vector<ComposedCallback> callbacks) {
        callbacks.push_back(noting(rates));
        return callbacks;
    }
};

std::unique_ptr<Callback> from(const json& options) {
    OptionReader reader(options, "run.json: callbacks[0]");
    auto made = learning_rate_schedule_from_json(reader);
    reader.finish();
    return made;
}

}  // namespace

TEST_CASE("every parameter group keeps its own base rate", "[callbacks][learning_rate_schedule]") {
    LearningRateScheduleSetup setup({make_learning_rate_schedule({make_linear_schedule({})})});
    setup.trainer.train(toy_data(16), {.batch_size = 4});
    CHECK(setup.rates == Rates{{0.4, 0.1}, {0.4 * 0.75, 0.1 * 0.75}, {0.2, 0.05}, {0.1, 0.025}});
    CHECK(setup.trainer.history().latest("learning_rate").value() == 0.1);  // of the first group
}

TEST_CASE("groups get factors of the schedule or schedules of their own", "[callbacks][learning_rate_schedule]") {
    LearningRateScheduleSetup setup({from({{"schedule", {{"kind", "linear"}}}, {"groups", {0.5, {{"kind", "step"}, {"every", 2}, {"factor", 0.1}}}}})});
    setup.trainer.train(toy_data(16), {.batch_size = 4});
    REQUIRE(setup.rates.size() == 4);
    CHECK(setup.rates[1] == std::vector<double>{0.4 * 0.375, 0.1});  // half of 0.75; still before the drop
    CHECK(setup.rates[2][0] == Approx(0.1));
    CHECK(setup.rates[2][1] == Approx(0.01));
}

TEST_CASE("as many groups as the optimizer has are wanted", "[callbacks][learning_rate_schedule]") {
    LearningRateScheduleSetup setup({from({{"groups", {0.5}}})});
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(4)), "learning_rate_schedule: "
                                                        "groups: 1 were given, and the optimizer has 2 parameter groups; give one each, or none");
    CHECK_THROWS_WITH(from({{"groups", {"half"}}}), "run.json: callbacks[0].groups[0]: \"half\" is neither a factor of at least 0 nor a schedule");
    CHECK_THROWS_WITH(from({{"groups", 2}}), "run.json: callbacks[0].groups: expected an array of factors or schedules, found a number");
    CHECK_THROWS_WITH(from({{"groups", {{{"kind", "cosin"}}}}}), Catch::Matchers::StartsWith("run.json: callbacks[0].groups[0].kind: 'cosin' is not known; did you mean 'cosine'?"));
}

TEST_CASE("a group that is added while a run is under way is scheduled from the rate that it brings", "[callbacks][learning_rate_schedule]") {
    const at::Tensor late = torch::ones({2}, torch::requires_grad());
    LearningRateScheduleSetup setup({make_learning_rate_schedule({make_linear_schedule({})}), callback_of("adding", [&](Attachment& run, Connections& connections) {
                     connections += run.bus.observe<TrainStepEnd>(Stage::Report, [&](const TrainStepEnd& event) {
                         if (event.position.step == 2)
                             event.update.optimizer->add_param_group({{late}, std::make_unique<torch::optim::SGDOptions>(8.0)});
                     });
                 })});
    setup.trainer.train(toy_data(16), {.batch_size = 4});
    CHECK(setup.rates.at(2) == std::vector<double>{0.2, 0.05, 4.0});
}

TEST_CASE("a resumed run goes on from the saved base and position, without replay", "[callbacks][learning_rate_schedule]") {
    const auto schedule = [] { return make_learning_rate_schedule({make_cosine_schedule({.warmup = 2, .minimum = 0.1})}); };
    LearningRateScheduleSetup whole({schedule()});
    whole.trainer.train(toy_data(32), {.batch_size = 4});
    // A fresh process: the optimizer comes with the rate at which it was saved, the position and the state are put back.
    LearningRateScheduleSetup resumed({});
    std::shared_ptr<Callback> callback = schedule();
    AloneOnBus alone(callback);
    Bus& bus = alone.bus();
    for (auto& group : resumed.optimizer->param_groups()) group.options().set_lr(0.007);
    std::vector<Update> updates = {{"", resumed.optimizer, {}, 1}};
    RunPlan plan;
    Model model(resumed.model);
    bus.emit(RunConfigured{{}, plan, model, updates});
    callback->load_state({json::parse(R"({"base_rates": {"": [0.4, 0.1]}})"), {}});
    bus.moment().length = {1, 8, 8};
    bus.moment().position.step = 5;
    Window window;
    bus.emit(TrainStepStart{bus.moment().position, updates[0], window});
    CHECK(resumed.optimizer->param_groups()[0].options().get_lr() == whole.rates.at(5)[0]);
    CHECK(resumed.optimizer->param_groups()[1].options().get_lr() == whole.rates.at(5)[1]);
}

TEST_CASE("a schedule that does not fit the run is refused or warned of before the first step", "[callbacks][learning_rate_schedule]") {
    LearningRateScheduleSetup setup({make_learning_rate_schedule({make_cosine_schedule({.warmup = 100})})});
    const auto report = setup.trainer.check(toy_data(16), nullptr, {.batch_size = 4});
    REQUIRE(report.findings.size() == 1);
    CHECK(report.findings[0].weight == Finding::Weight::Warning);
    CHECK(report.findings[0].text == "'learning_rate_schedule': the schedule's warmup (100step) take 100 steps, and it is 4 steps long; shorten them, or train for longer");
    const Outlook stream{{}, {}, {}, {}};
    const auto findings = from({{"schedule", {{"kind", "linear"}}}})->check(stream);
    REQUIRE(findings.size() == 1);
    CHECK(findings[0].weight == Finding::Weight::Error);
}

TEST_CASE("an update that is not there is refused", "[callbacks][learning_rate_schedule]") {
    LearningRateScheduleSetup setup({make_learning_rate_schedule({make_constant_schedule(), "critic"})});
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(4)), Catch::Matchers::EndsWith("learning_rate_schedule: update: there is no update 'critic'"));
    CHECK_THROWS_WITH(make_learning_rate_schedule({}), "learning_rate_schedule: there is no schedule; give a function of the run's moment");
}

TEST_CASE("there is nothing to save around where a schedule has no decay", "[callbacks][learning_rate_schedule]") {
    LearningRateScheduleSetup setup({std::shared_ptr<Callback>(from({{"schedule", {{"kind", "cosine"}}}, {"save_around_decay", true}}))});
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(4)), containing("save_around_decay: the schedule has no decay to save around; give one of kind warmup_stable_decay, or leave it out"));
    LearningRateScheduleSetup sequence({std::shared_ptr<Callback>(from({{"schedule", {{"kind", "sequence"}, {"parts", {{{"schedule", {{"kind", "constant"}}}, {"length", "2step"}}, {{"schedule", {{"kind", "warmup_stable_decay"}, {"warmup", 0}}}}}}}},
                                                    {"save_around_decay", true}}))});
    CHECK_NOTHROW(sequence.trainer.train(toy_data(40)));
}
