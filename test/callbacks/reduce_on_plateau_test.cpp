#include <fstream>
#include <limits>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/reduce_on_plateau.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace torchbus {
std::unique_ptr<Callback> reduce_on_plateau_from_json(OptionReader& reader);
}

namespace {

/// Publishes a metric of each epoch, taken from a list.
class Scripted final : public Callback {
public:
    explicit Scripted(std::vector<double> values) : values_(std::move(values)) {}
    std::string kind() const override { return "scripted"; }
    Declaration declare() const override { return {.listens = {"train_epoch_end"}, .publishes = {{"train.score", "train_epoch_end"}}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.observe<TrainEpochEnd>(Stage::Observe, [this, &run](const TrainEpochEnd& event) {
            run.blackboard.publish("train.score", values_.at(static_cast<std::size_t>(event.position.epoch - 1)));
        });
    }
    void detach() override { connections_.clear(); }

private:
    std::vector<double> values_;
    Connections connections_;
};

/// One step an epoch; notes the rate that each is made with, and the one that the optimizer holds between two steps.
struct ReduceOnPlateauSetup {
    torch::nn::Sequential model = toy_model();
    std::shared_ptr<torch::optim::Optimizer> optimizer = make_sgd(model->parameters(), {.learning_rate = 0.4});
    std::vector<double> rates, between;
    std::unique_ptr<Trainer> trainer;
    std::size_t epochs;
    ReduceOnPlateauSetup(std::vector<double> metrics, std::vector<ComposedCallback> callbacks, Loss loss = cross_entropy) : epochs(metrics.size()) {
        callbacks.insert(callbacks.begin(), ComposedCallback(std::make_unique<Scripted>(std::move(metrics))));
        callbacks.push_back(callback_of("noting", [this](Attachment& run, Connections& connections) {
            connections += run.bus.observe<TrainStepEnd>(Stage::Report, [this](const TrainStepEnd&) { rates.push_back(rate()); });
            connections += run.bus.observe<TrainEpochEnd>(Stage::Report, [this](const TrainEpochEnd&) { between.push_back(rate()); });
        }));
        trainer = std::make_unique<Trainer>(TrainerOptions{.model = model, .loss = std::move(loss), .optimizer = optimizer, .callbacks = std::move(callbacks),
                                                           .handle_signals = false});
    }
    double rate() const { return optimizer->param_groups()[0].options().get_lr(); }
    RunResult run() { return trainer->train(toy_data(4), {.epochs = static_cast<std::int64_t>(epochs), .batch_size = 4}); }
};

ReduceOnPlateauOptions watching(ReduceOnPlateauOptions options) {
    options.monitor = "train.score";
    return options;
}

}  // namespace

TEST_CASE("the rates of whole runs equal those of torch's ReduceLROnPlateau", "[callbacks][reduce_on_plateau]") {
    const json reference = json::parse(std::ifstream(source_root() + "/test/references/schedules.json")).at("plateau");
    std::vector<double> metrics;
    for (const json& value : reference.at("metrics")) metrics.push_back(value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>());
    metrics.push_back(0);  // of one more epoch, to see the rate after the last
    for (const json& expected : reference.at("cases")) {
        INFO(expected.at("options").dump());
        json options = expected.at("options");
        options["monitor"] = "train.score";
        if (options.contains("min_lr")) options["minimum"] = options["min_lr"], options.erase("min_lr");
        if (options.contains("threshold_mode")) options["threshold_mode"] = "absolute";
        OptionReader reader(options, "");
        ReduceOnPlateauSetup setup(metrics, {reduce_on_plateau_from_json(reader)});
        reader.finish();
        CHECK(setup.run().outcome == Outcome::Finished);
        const std::vector<double> rates = expected.at("rates");
        REQUIRE(setup.rates.size() == rates.size() + 1);
        CHECK(setup.rates[0] == 0.4);
        for (std::size_t i = 0; i < rates.size(); ++i) {
            INFO("after epoch " << i);
            // torch leaves drops of less than 1e-8 out
            CHECK(setup.rates[i + 1] == Approx(rates[i]).epsilon(1e-9).margin(1e-8));
        }
    }
}

TEST_CASE("a drop multiplies what the schedule sets, in whatever order the two are given", "[callbacks][reduce_on_plateau]") {
    const std::vector<double> flat(4, 1.0);
    for (const bool first : {true, false}) {
        std::vector<ComposedCallback> callbacks;
        callbacks.emplace_back(make_learning_rate_schedule({make_step_schedule({.every = "2step", .factor = 0.1})}));
        callbacks.insert(first ? callbacks.begin() : callbacks.end(), make_reduce_on_plateau(watching({.factor = 0.1, .patience = 0})));
        ReduceOnPlateauSetup setup(flat, std::move(callbacks));
        setup.run();
        // Schedule: 0.4, 0.4, 0.04, 0.04. The first value is the best; the epochs after it drop. At the third step the
        // schedule sets just what the drop has made of the second: it is multiplied all the same.
        const std::vector<double> expected = {0.4, 0.4, 0.4 * 0.1 * 0.1, 0.4 * 0.1 * 0.01};
        REQUIRE(setup.rates.size() == 4);
        for (std::size_t i = 0; i < 4; ++i) CHECK(setup.rates[i] == Approx(expected[i]));
        CHECK(setup.between[3] == Approx(0.04));  // between two steps it is the schedule's
        CHECK(setup.trainer->blackboard().number("learning_rate_factor").value() == Approx(1e-3));
    }
}

TEST_CASE("the optimizer gets its rate back when a run ends, also within a step that fails", "[callbacks][reduce_on_plateau]") {
    int calls = 0;
    ReduceOnPlateauSetup setup(std::vector<double>(4, 1.0), {make_reduce_on_plateau(watching({.patience = 0}))}, [&](const at::Tensor& output, const at::Tensor& targets) {
        if (++calls == 4) throw std::runtime_error("no loss today");
        return cross_entropy(output, targets);
    });
    CHECK_THROWS_WITH(setup.run(), "no loss today");
    CHECK(setup.rates.back() == Approx(0.04));
    CHECK(setup.rate() == 0.4);
    setup.rates.clear();
    CHECK(setup.run().outcome == Outcome::Finished);
    CHECK(setup.rates[0] == 0.4);  // and a second run begins without drops
    CHECK(setup.rates[3] == Approx(0.004));
}

TEST_CASE("a resumed run goes on with the factor, the best value and the counters", "[callbacks][reduce_on_plateau]") {
    const auto made = [] { return std::shared_ptr<Callback>(make_reduce_on_plateau(watching({.factor = 0.5, .patience = 1, .cooldown = 1}))); };
    const std::vector<double> metrics = {1, 1, 1, 1, 1, 1, 0.9, 1, 1, 1, 1, 1};
    const auto whole = made();
    ReduceOnPlateauSetup uninterrupted(metrics, {ComposedCallback(whole)});
    uninterrupted.run();
    const auto before = made();
    ReduceOnPlateauSetup first({metrics.begin(), metrics.begin() + 5}, {ComposedCallback(before)});
    first.run();
    const json saved = json::parse(before->state().values.dump());
    CHECK(saved == json::parse(R"({"factor": 0.5, "best": 1.0, "bad_epochs": 1, "cooldown_left": 0})"));
    const auto after = made();
    after->load_state({saved, {}});
    CHECK(after->state().values == saved);  // also before it runs
    ReduceOnPlateauSetup second({metrics.begin() + 5, metrics.end()}, {ComposedCallback(after)});
    second.run();
    first.rates.insert(first.rates.end(), second.rates.begin(), second.rates.end());
    CHECK(first.rates == uninterrupted.rates);
    CHECK(after->state().values == whole->state().values);
}

TEST_CASE("what nobody publishes cannot be watched, and its defaults go with metrics", "[callbacks][reduce_on_plateau]") {
    ReduceOnPlateauSetup setup({1, 1}, {make_reduce_on_plateau({.monitor = "train.scor"})});
    CHECK_THROWS_WITH(setup.run(), Catch::Matchers::StartsWith("'reduce_on_plateau' needs train.scor, which nobody publishes; did you mean 'train.score'?"));
    ReduceOnPlateauSetup defaults({1, 1}, {make_metrics(), make_reduce_on_plateau()});
    CHECK(defaults.trainer->train(toy_data(4), toy_data(4), {.epochs = 2, .batch_size = 4}).outcome == Outcome::Finished);
    CHECK_THROWS_WITH(defaults.run(), Catch::Matchers::StartsWith("'reduce_on_plateau' needs eval.loss, and the run has no evaluation data"));
}

TEST_CASE("options out of range are refused", "[callbacks][reduce_on_plateau]") {
    CHECK_THROWS_WITH(make_reduce_on_plateau({.factor = 1}), "reduce_on_plateau: factor: 1 is out of range; give a number between 0 and 1, e.g. 0.1");
    CHECK_THROWS_WITH(make_reduce_on_plateau({.patience = -1}), "reduce_on_plateau: patience: -1 is out of range; give at least 0 epochs");
    CHECK_THROWS_WITH(make_reduce_on_plateau({.monitor = ""}), "reduce_on_plateau: monitor: it is empty; name a number, e.g. eval.loss");
    ReduceOnPlateauSetup setup({1}, {make_reduce_on_plateau(watching({.update = "critic"}))});
    CHECK_THROWS_WITH(setup.run(), Catch::Matchers::EndsWith("reduce_on_plateau: update: there is no update 'critic'"));
}
