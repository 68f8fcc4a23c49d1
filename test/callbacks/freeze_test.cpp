#include <nlohmann/json.hpp>

#include <torchbus/callbacks/freeze.hpp>
#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/registry.hpp>
#include <torchbus/error.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

struct FreezeSetup {
    torch::nn::Sequential model;
    std::shared_ptr<torch::optim::SGD> optimizer;
    std::unique_ptr<Trainer> trainer;
    explicit FreezeSetup(std::vector<ComposedCallback> callbacks, torch::nn::Sequential its_model = toy_model())
        : model(std::move(its_model)), optimizer(std::make_shared<torch::optim::SGD>(model->parameters(), torch::optim::SGDOptions(0.5).momentum(0.9).weight_decay(0.1))),
          trainer(std::make_unique<Trainer>(TrainerOptions{.model = model, .loss = cross_entropy, .optimizer = optimizer, .callbacks = std::move(callbacks), .handle_signals = false})) {}
    at::Tensor weight(const char* name) const { return model->named_parameters()[name]; }
};

/// Epoch by epoch: whether a parameter moved; and what was announced.
struct Course {
    std::vector<bool> moved;
    std::vector<std::pair<std::int64_t, std::size_t>> announced;  ///< step, tensors added
};

Course train(FreezeSetup& setup, const char* name, std::int64_t epochs) {
    Course course;
    at::Tensor before = setup.weight(name).detach().clone();
    auto tap = setup.trainer->subscribe("tap");
    Connections connections;
    connections += tap.observe<TrainEpochEnd>(Stage::Observe, [&](const TrainEpochEnd&) {
        course.moved.push_back(!before.equal(setup.weight(name)));
        before = setup.weight(name).detach().clone();
    });
    connections += tap.observe<ParametersChanged>(Stage::Observe, [&](const ParametersChanged& event) { course.announced.emplace_back(event.position.step, event.added.size()); });
    setup.trainer->train(toy_data(8), toy_data(4), {.epochs = epochs, .batch_size = 4, .shuffle = false});
    return course;
}

torch::nn::Sequential model_with_batch_norm() {
    torch::manual_seed(1);
    return torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8), torch::nn::Linear(8, 3), torch::nn::BatchNorm1d(3));
}

}  // namespace

TEST_CASE("what is named stays as it is, weight decay and momentum notwithstanding, and is trainable again after a detach", "[callbacks][freeze]") {
    FreezeSetup setup({make_freeze({.names = {"0.*"}})});
    const at::Tensor bias = setup.weight("0.bias").detach().clone();
    CHECK(train(setup, "0.weight", 2).moved == std::vector<bool>{false, false});
    CHECK(setup.weight("0.bias").equal(bias));
    CHECK_FALSE(setup.weight("0.weight").requires_grad());
    CHECK(train(setup, "2.weight", 1).moved == std::vector<bool>{true});
    setup.trainer.reset();
    CHECK(setup.weight("0.weight").requires_grad());
}

TEST_CASE("groups are unfrozen and frozen where an epoch starts, which is announced; a second run begins anew", "[callbacks][freeze]") {
    FreezeSetup setup({make_freeze({.groups = {{.names = {"0.*"}, .unfreeze_at = "1epoch", .freeze_at = "2epoch"}}})});
    for (int run = 0; run < 2; ++run) {
        const Course course = train(setup, "0.weight", 3);
        CHECK(course.moved == std::vector<bool>{false, true, false});
        CHECK(course.announced == std::vector<std::pair<std::int64_t, std::size_t>>{{2, 2}, {4, 0}});  // weight and bias, at two steps an epoch
    }
}

TEST_CASE("a group without a start is trained until it is frozen", "[callbacks][freeze]") {
    FreezeSetup setup({make_freeze({.groups = {{.names = {"?.bias"}, .freeze_at = "0.5run"}}})});
    const Course course = train(setup, "2.bias", 4);
    CHECK(course.moved == std::vector<bool>{true, true, false, false});
    CHECK(course.announced == std::vector<std::pair<std::int64_t, std::size_t>>{{4, 0}});
}

TEST_CASE("a position in steps is reached by updates that were made", "[callbacks][freeze]") {
    std::vector<bool> trainable;
    FreezeSetup setup({make_freeze({.groups = {{.names = {"0.*"}, .unfreeze_at = "2step"}}}), callback_of("skipper", [&](Attachment& run, Connections& connections) {
        connections += run.bus.intercept(Phase::Decide, [&](GradientsReady& event) {
            trainable.push_back(event.gradients.parameters()[0].grad().defined());
            if (event.position.attempts == 1) event.skip("skipper", "test");
        });
    })});
    train(setup, "0.weight", 2);
    CHECK(trainable == std::vector<bool>{false, false, false, true});  // without the skip the third would be
}

TEST_CASE("a group learns at its own factor of the rate, under a schedule too, and the optimizer gets its groups back", "[callbacks][freeze]") {
    std::vector<std::vector<double>> rates;
    FreezeSetup setup({make_learning_rate_schedule({[](const Moment& moment) { return moment.position.step == 0 ? 1.0 : 0.5; }}),
                 make_freeze({.groups = {{.names = {"0.*"}, .unfreeze_at = "0step", .learning_rate_factor = 0.1}}}),
                 callback_of("rates", [&](Attachment& run, Connections& connections) {
                     connections += run.bus.observe<TrainStepEnd>(Stage::Report, [&](const TrainStepEnd& event) {
                         rates.emplace_back();
                         for (auto& group : event.update.optimizer->param_groups()) rates.back().push_back(group.options().get_lr());
                     });
                 })});
    for (int run = 0; run < 2; ++run) {
        rates.clear();
        train(setup, "0.weight", 1);
        REQUIRE(rates.size() == 2);
        CHECK(rates[0][0] == Approx(0.5));
        CHECK(rates[0][1] == Approx(0.05));
        CHECK(rates[1][0] == Approx(0.25));
        CHECK(rates[1][1] == Approx(0.025));
    }
    setup.trainer.reset();
    REQUIRE(setup.optimizer->param_groups().size() == 1);
    for (std::size_t i = 0; i < 4; ++i) CHECK(setup.optimizer->param_groups()[0].params()[i].is_same(setup.model->parameters()[i]));
}

TEST_CASE("a group that is all of the optimizer's keeps its place, and its rate comes back", "[callbacks][freeze]") {
    FreezeSetup setup({make_freeze({.groups = {{.names = {"*"}, .freeze_at = "1run", .learning_rate_factor = 0.5}}})});
    train(setup, "0.weight", 1);
    CHECK(setup.optimizer->param_groups().size() == 1);
    CHECK(setup.optimizer->param_groups()[0].options().get_lr() == 0.25);
    setup.trainer.reset();
    CHECK(setup.optimizer->param_groups()[0].options().get_lr() == 0.5);
}

TEST_CASE("running statistics of frozen layers stay as they are", "[callbacks][freeze]") {
    for (const bool kept : {true, false}) {
        FreezeSetup setup({make_freeze({.names = {"0.*", "1.*"}, .batch_norm = kept})}, model_with_batch_norm());
        const auto before = copies_of(setup.model->buffers());
        train(setup, "0.weight", 2);
        const auto after = setup.model->named_buffers();
        CHECK(before[0].equal(after["1.running_mean"]) == kept);
        CHECK((after["1.num_batches_tracked"].item<std::int64_t>() == 0) == kept);
        CHECK(after["3.num_batches_tracked"].item<std::int64_t>() == 4);
    }
}

TEST_CASE("frozen batch norm is in evaluation mode until it is unfrozen", "[callbacks][freeze]") {
    auto model = model_with_batch_norm();
    std::vector<std::pair<bool, bool>> training;
    FreezeSetup setup({make_metrics(), make_freeze({.groups = {{.names = {"0.*", "1.*"}, .unfreeze_at = "2epoch"}}}),
                 callback_of("modes", [&](Attachment& run, Connections& connections) {
                     connections += run.bus.observe<ForwardStart>(Stage::Report, [&](const ForwardStart&) {
                         training.emplace_back(model->ptr(1)->is_training(), model->ptr(3)->is_training());
                     }, in(Mode::Train));
                 })}, model);
    train(setup, "0.weight", 3);  // with an evaluation after each epoch, which ends in training mode for all
    CHECK(training == std::vector<std::pair<bool, bool>>{{false, true}, {false, true}, {false, true}, {false, true}, {true, true}, {true, true}});
    CHECK(model->named_buffers()["1.num_batches_tracked"].item<std::int64_t>() == 2);
}

TEST_CASE("freeze refuses names that are not there, and a run in which nothing trains", "[callbacks][freeze]") {
    const auto refusal = [](FreezeOptions options) -> std::string {
        FreezeSetup setup({make_freeze(std::move(options))});
        try {
            setup.trainer->train(toy_data(4));
        } catch (const ConfigError& error) {
            return error.what();
        }
        return {};
    };
    CHECK(refusal({.names = {"0.weigt"}}) == "freeze: '0.weigt' names no parameter of the model; did you mean '0.weight'?");
    CHECK(refusal({.names = {"*"}}) == "freeze: all parameters of the optimizer are frozen when the run begins; leave some out");
    CHECK_THROWS_WITH(make_freeze({.groups = {{.names = {"*"}, .unfreeze_at = "2step", .freeze_at = "1step"}}}),
                      "freeze: unfreeze_at 2step is not before freeze_at 1step; the group would never be trained");
    CHECK_THROWS_WITH(make_freeze({.groups = {{}}}), "freeze: groups: a group names nothing; give patterns of parameter names, e.g. backbone.*");
}

TEST_CASE("freeze reads its groups from JSON, and names the path of what is wrong", "[callbacks][freeze]") {
    const auto from = [](const char* text) {
        const auto options = nlohmann::json::parse(text);
        OptionReader reader(options, "run.json: callbacks[0]");
        auto callback = find_callback("freeze").from_json(reader);
        reader.finish();
        return callback;
    };
    FreezeSetup setup({std::shared_ptr<Callback>(from(R"({"groups": [{"names": ["0.*"], "unfreeze_at": "1epoch", "learning_rate_factor": 0.1}]})"))});
    CHECK(train(setup, "0.weight", 2).moved == std::vector<bool>{false, true});
    CHECK_THROWS_WITH(from(R"({"groups": [{"names": ["0.*"], "unfreeze_a": "1epoch"}]})"), containing("run.json: callbacks[0].groups[0].unfreeze_a: unknown key; did you mean 'unfreeze_at'?"));
    CHECK_THROWS_WITH(from(R"({"groups": {}})"), "run.json: callbacks[0].groups: {} is a object; expected an array of objects");
}
