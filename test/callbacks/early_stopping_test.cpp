#include <torchbus/callbacks/early_stopping.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/scripted_metric.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct EarlyStoppingSetup {
    torch::nn::Sequential model = toy_model();
    std::shared_ptr<Callback> stopper;
    std::vector<std::vector<at::Tensor>> after_epoch;  ///< the weights, by epoch
    Trainer trainer;
    EarlyStoppingSetup(std::vector<double> scores, EarlyStoppingOptions options)
        : stopper(make_early_stopping([&] { options.monitor = "eval.score"; return options; }())),
          trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.5}),
                   .callbacks = {scripted_metric(std::move(scores)), ComposedCallback(stopper), callback_of("tap", [this](Attachment& run, Connections& connections) {
                       connections += run.bus.observe<TrainEpochEnd>(Stage::Persist, [this](const TrainEpochEnd&) { after_epoch.push_back(copies_of(model->parameters())); });
                   })}, .handle_signals = false}) {}
    RunResult train(std::int64_t epochs = 10) {
        after_epoch.clear();
        return trainer.train(toy_data(8), toy_data(4), {.epochs = epochs, .batch_size = 4});
    }
};

using Options = EarlyStoppingOptions;

}  // namespace

TEST_CASE("early stopping ends the run after patience checks without an improvement, with a reason", "[callbacks][early_stopping]") {
    EarlyStoppingSetup setup({3, 2, 2.5, 2, 1}, {.patience = 2});
    const RunResult result = setup.train();
    CHECK(result.outcome == Outcome::Stopped);
    CHECK(result.requester == "early_stopping");
    CHECK(result.reason == "eval.score has not improved for 2 checks: the best was 2 after epoch 2, now it is 2");  // a tie is no improvement
    CHECK(setup.trainer.position().epoch == 4);
}

TEST_CASE("an improvement starts the patience anew", "[callbacks][early_stopping]") {
    EarlyStoppingSetup setup({3, 4, 2, 4, 1, 4, 5}, {.patience = 2});
    CHECK(setup.train().reason == "eval.score has not improved for 2 checks: the best was 1 after epoch 5, now it is 5");
}

TEST_CASE("with mode max a larger metric is the better one", "[callbacks][early_stopping]") {
    EarlyStoppingSetup setup({0.5, 0.7, 0.6}, {.mode = Options::Mode::Max, .patience = 1});
    CHECK(setup.train().reason == "eval.score has not improved for 1 check: the best was 0.7 after epoch 2, now it is 0.6");
}

TEST_CASE("an improvement must exceed the threshold, absolute or relative to the size of the best", "[callbacks][early_stopping]") {
    // 10 → 9.5 is 0.5 better: not by more than 0.5, nor by more than 10 % of 10.
    for (const auto& [threshold, mode] : {std::pair{0.5, Options::ThresholdMode::Absolute}, std::pair{0.1, Options::ThresholdMode::Relative}}) {
        EarlyStoppingSetup stays({10, 9.5}, {.patience = 1, .threshold = threshold, .threshold_mode = mode});
        CHECK(stays.train().outcome == Outcome::Stopped);
        EarlyStoppingSetup improves({10, 8.9, 7.9, 7.0}, {.patience = 1, .threshold = threshold, .threshold_mode = mode});
        CHECK(improves.train(4).outcome == Outcome::Finished);
    }
    EarlyStoppingSetup negative({-10, -11.5}, {.patience = 1, .threshold = 0.1, .threshold_mode = Options::ThresholdMode::Relative});
    CHECK(negative.train(2).outcome == Outcome::Finished);  // a negative loss that falls by 15 % has improved
}

TEST_CASE("a bound that is reached stops the run at once", "[callbacks][early_stopping]") {
    EarlyStoppingSetup low({3, 2, 1, 0.5}, {.stop_at = 1});
    CHECK(low.train().reason == "eval.score is 1 after epoch 3, which reaches the bound of 1");
    EarlyStoppingSetup high({0.5, 0.99}, {.mode = Options::Mode::Max, .stop_at = 0.9});
    CHECK(high.train().reason == "eval.score is 0.99 after epoch 2, which reaches the bound of 0.9");
}

TEST_CASE("a NaN stops the run, or counts as no improvement", "[callbacks][early_stopping]") {
    EarlyStoppingSetup stops({3, kNan}, {});
    CHECK(stops.train().reason == "eval.score is nan after epoch 2");
    EarlyStoppingSetup waits({3, kNan, kNan}, {.patience = 2, .check_finite = false});
    CHECK(waits.train().reason == "eval.score has not improved for 2 checks: the best was 3 after epoch 1, now it is nan");
    EarlyStoppingSetup never({kNan, kNan}, {.patience = 2, .check_finite = false});
    CHECK(never.train().reason == "eval.score has not improved for 2 checks: it never was a finite number, now it is nan");
    EarlyStoppingSetup infinite({3, -std::numeric_limits<double>::infinity(), 2.5, 2.4}, {.patience = 2, .check_finite = false});
    CHECK(infinite.train(4).outcome == Outcome::Finished);  // an infinity is not taken for the best
}

TEST_CASE("the best weights are put back at the end, also when the run was not stopped by it", "[callbacks][early_stopping]") {
    EarlyStoppingSetup setup({3, 1, 2, 2}, {.patience = 2, .restore_best = true});
    CHECK(setup.train().outcome == Outcome::Stopped);
    CHECK(equal_bits(copies_of(setup.model->parameters()), setup.after_epoch[1]));
    CHECK_FALSE(equal_bits(copies_of(setup.model->parameters()), setup.after_epoch[3]));
    EarlyStoppingSetup finishes({3, 1, 2}, {.restore_best = true});
    CHECK(finishes.train(3).outcome == Outcome::Finished);
    CHECK(equal_bits(copies_of(finishes.model->parameters()), finishes.after_epoch[1]));
    EarlyStoppingSetup keeps({3, 1, 2}, {});
    keeps.train(3);
    CHECK(equal_bits(copies_of(keeps.model->parameters()), keeps.after_epoch[2]));
}

TEST_CASE("a second run begins without the best of the first, unless its state was put back", "[callbacks][early_stopping]") {
    EarlyStoppingSetup setup({3, 4}, {.patience = 1, .restore_best = true});
    setup.train();
    const SavedState state = setup.stopper->state();
    CHECK(state.values.dump() == R"({"best":3.0,"best_epoch":1,"waited":1})");
    CHECK(state.tensors.size() == 4);
    CHECK(setup.train().reason == "eval.score has not improved for 1 check: the best was 3 after epoch 1, now it is 4");

    EarlyStoppingSetup resumed({4}, {.patience = 2, .restore_best = true});
    resumed.stopper->load_state(state);
    CHECK(resumed.train().reason == "eval.score has not improved for 2 checks: the best was 3 after epoch 1, now it is 4");
    CHECK(resumed.trainer.position().epoch == 1);
    CHECK(resumed.model->parameters()[0].equal(state.tensors.at("0.weight")));  // those of the run before
}

TEST_CASE("early stopping refuses a metric that nobody publishes, and options out of range", "[callbacks][early_stopping]") {
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                     .callbacks = {make_metrics(), make_early_stopping({.monitor = "eval.los"})}, .handle_signals = false});
    CHECK_THROWS_WITH(trainer.train(toy_data(8), toy_data(4)), Catch::Matchers::StartsWith("'early_stopping' needs eval.los, which nobody publishes; did you mean 'eval.loss'?"));
    CHECK_THROWS_WITH(trainer.train(toy_data(8)), containing("the run has no evaluation data"));
    CHECK_THROWS_WITH(make_early_stopping({.patience = 0}), "early_stopping: patience: 0 is too few; give at least 1 check");
    CHECK_THROWS_WITH(make_early_stopping({.threshold = -1}), "early_stopping: threshold: -1 is out of range; give 0 or the smallest improvement that counts, e.g. 0.001");
    CHECK_THROWS_WITH(make_early_stopping({.stop_at = kNan}), "early_stopping: stop_at: nan is no bound; give a number, or leave it out");
    CHECK_THROWS_AS(make_early_stopping({.monitor = ""}), ConfigError);
}
