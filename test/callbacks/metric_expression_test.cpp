#include <nlohmann/json.hpp>

#include <torchbus/callbacks/metric_expression.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/error.hpp>

#include "support/alone_on_bus.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

struct MetricExpressionSetup {
    torch::nn::Sequential model = toy_model();
    Trainer trainer;
    explicit MetricExpressionSetup(std::vector<ComposedCallback> callbacks)
        : trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                   .callbacks = std::move(callbacks), .handle_signals = false}) {}
};

ComposedCallback expression(std::string id, std::string name, std::string text) {
    return {std::move(id), make_metric_expression({std::move(name), std::move(text)})};
}

}  // namespace

TEST_CASE("an expression follows its numbers every epoch, wherever it stands in the list", "[callbacks][metric-expression]") {
    // The second reads the first, and both stand before what they read.
    MetricExpressionSetup setup({expression("twice", "eval.twice", "2 * eval.gap"), expression("gap", "eval.gap", "eval.loss - train.loss"),
                 expression("perplexity", "train.exp_loss", "exp(train.loss)"), make_metrics()});
    for (int run = 0; run < 2; ++run) {
        setup.trainer.train(toy_data(20), toy_data(8, 3), {.epochs = 3, .batch_size = 4});
        CHECK(setup.trainer.history().epochs().size() == 3);
        for (const EpochRecord& record : setup.trainer.history().epochs()) {
            CHECK(record.metrics.at("eval.gap") == record.metrics.at("eval.loss") - record.metrics.at("train.loss"));
            CHECK(record.metrics.at("eval.twice") == 2 * record.metrics.at("eval.gap"));
            CHECK(record.metrics.at("train.exp_loss") == std::exp(record.metrics.at("train.loss")));
        }
    }
}

TEST_CASE("an expression of what nobody publishes is refused before the run", "[callbacks][metric-expression]") {
    MetricExpressionSetup setup({make_metrics(), expression("gap", "eval.gap", "eval.los - train.loss")});
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(8), toy_data(8), {.batch_size = 4}), containing("'gap' needs eval.los, which nobody publishes; did you mean 'eval.loss'?"));
    MetricExpressionSetup without({make_metrics(), make_metric_expression()});
    CHECK_THROWS_WITH(without.trainer.train(toy_data(8), {.batch_size = 4}), containing("needs eval.loss, and the run has no evaluation data"));
}

TEST_CASE("nothing is published as long as a number is missing, and nothing stays after a detach", "[callbacks][metric-expression]") {
    AloneOnBus alone(make_metric_expression({"train.ratio", "a / b"}));
    const auto end_epoch = [&] { alone.bus().emit(TrainEpochEnd{{}, {}, true}); return alone.blackboard().number("train.ratio"); };
    alone.blackboard().publish("a", 1);
    CHECK_FALSE(end_epoch());
    alone.blackboard().publish("b", 4);
    CHECK(end_epoch() == 0.25);
    alone.blackboard().withdraw("b");
    CHECK_FALSE(end_epoch());
    alone.blackboard().publish("b", 0);
    CHECK(std::isinf(end_epoch().value()));
    alone.callback().detach();
    CHECK_FALSE(alone.blackboard().number("train.ratio"));
    CHECK(alone.bus().slots().empty());
    alone.attach();
    CHECK(end_epoch());
}

TEST_CASE("an expression listens to evaluations only where it reads one", "[callbacks][metric-expression]") {
    CHECK(make_metric_expression()->declare().listens == std::vector<std::string>{"eval_epoch_end"});
    CHECK(make_metric_expression({"x", "train.loss + 1"})->declare().listens == std::vector<std::string>{"train_epoch_end"});
    AloneOnBus alone(make_metric_expression());
    REQUIRE(alone.bus().slots().size() == 1);
    CHECK(alone.bus().slots()[0].event == "eval_epoch_end");
}

TEST_CASE("wrong names and expressions are refused", "[callbacks][metric-expression]") {
    CHECK_THROWS_WITH(make_metric_expression({"eval harmonic", "1"}), "metric_expression: name: 'eval harmonic' is not a name; give letters, digits, _ and dots, e.g. eval.harmonic");
    CHECK_THROWS_WITH(make_metric_expression({"eval.loss", "eval.loss * 2"}), "metric_expression: name: 'eval.loss' is what the expression reads; give the result another name");
    CHECK_THROWS_WITH(make_metric_expression({"x", "1 +"}), "metric_expression: expression: column 4: expected a number, a name or '(', found the end, in '1 +'");
}
