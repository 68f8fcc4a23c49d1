#include <torchbus/callbacks/learning_rate_monitor.hpp>
#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

/// The values of one name at the end of every step.
ComposedCallback watch(std::string name, std::vector<double>& values) {
    return callback_of("watch", [name = std::move(name), &values](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Report, [&run, name, &values](const TrainStepEnd&) {
            values.push_back(run.blackboard.number(name).value_or(-1));
        });
    });
}

std::vector<std::string> names_with(const Blackboard& blackboard, std::string_view prefix) {
    std::vector<std::string> found;
    for (const std::string& name : blackboard.names())
        if (name.starts_with(prefix)) found.push_back(name);
    return found;
}

}  // namespace

TEST_CASE("the rate that is published is the one of the update under way, after the schedule", "[callbacks][learning_rate_monitor]") {
    std::vector<double> rates;
    auto model = toy_model();
    // Listed before the schedule: the monitor looks in a later stage all the same.
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.5}),
                     .callbacks = {make_learning_rate_monitor(), watch("rate.0", rates),
                                   make_learning_rate_schedule({[](const Moment& moment) { return 1.0 / static_cast<double>(1 + moment.position.step); }})},
                     .handle_signals = false});
    trainer.train(toy_data(12), {.batch_size = 4});
    CHECK(rates == std::vector<double>{0.5, 0.25, 0.5 / 3});
    CHECK(names_with(trainer.blackboard(), "rate") == std::vector<std::string>{"rate.0"});
    CHECK(names_with(trainer.blackboard(), "momentum").empty());
    rates.clear();
    trainer.train(toy_data(4), {.batch_size = 4});  // the blackboard was emptied: the same rate is published again
    CHECK(rates == std::vector<double>{0.5});
}

TEST_CASE("every group of every update has a name of its own", "[callbacks][learning_rate_monitor]") {
    auto model = toy_model();
    const auto first = model[0], last = model[2];
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(first->parameters(), std::make_unique<torch::optim::AdamOptions>(torch::optim::AdamOptions(0.01).betas({0.8, 0.99})));
    groups.emplace_back(last->parameters(), std::make_unique<torch::optim::AdamOptions>(0.02));
    auto body = std::make_shared<torch::optim::Adam>(std::move(groups), torch::optim::AdamOptions());
    auto head = std::make_shared<torch::optim::SGD>(last->parameters(), torch::optim::SGDOptions(0.1).momentum(0.7));
    const std::shared_ptr<Callback> monitor = make_learning_rate_monitor({.momentum = true});
    Trainer trainer({.model = model, .loss = cross_entropy, .updates = {{"body", body, {}, 1}, {"head", head, {}, 1}},
                     .callbacks = {monitor}, .handle_signals = false});
    trainer.train(toy_data(4), {.batch_size = 4});
    const Blackboard& numbers = trainer.blackboard();
    CHECK(names_with(numbers, "rate") == std::vector<std::string>{"rate.body.0", "rate.body.1", "rate.head.0"});
    CHECK(numbers.number("rate.body.0") == 0.01);
    CHECK(numbers.number("rate.body.1") == 0.02);
    CHECK(numbers.number("rate.head.0") == 0.1);
    CHECK(numbers.number("momentum.body.0") == 0.8);
    CHECK(numbers.number("momentum.body.1") == 0.9);
    CHECK(numbers.number("momentum.head.0") == 0.7);
    std::vector<std::string> declared;
    for (const Value& value : monitor->declare().publishes) declared.push_back(value.name);
    CHECK(declared == std::vector<std::string>{"rate.body.0", "momentum.body.0", "rate.body.1", "momentum.body.1", "rate.head.0", "momentum.head.0"});
}

TEST_CASE("a need of a rate that no update has is refused before the run", "[callbacks][learning_rate_monitor]") {
    struct Reader final : Callback {
        std::string kind() const override { return "reader"; }
        Declaration declare() const override { return {.needs = {{"rate.generator.0", "train_step_end"}}}; }
        void attach(Attachment&) override {}
        void detach() override {}
    };
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                     .callbacks = {make_learning_rate_monitor(), std::make_unique<Reader>()}, .handle_signals = false});
    CHECK_THROWS_WITH(trainer.train(toy_data(4)), containing("'reader' needs rate.generator.0, which nobody publishes") &&
                                                      containing("rate.0"));
}
