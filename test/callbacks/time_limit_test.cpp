#include <thread>

#include <torchbus/callbacks/time_limit.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

struct TimeLimitSetup {
    torch::nn::Sequential model = toy_model();
    std::vector<std::string> saves;
    Trainer trainer;
    /// Every batch in `slow` mode takes 10 ms.
    TimeLimitSetup(TimeLimitOptions options, Mode slow)
        : trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}), .callbacks = {make_time_limit(options), callback_of("slow", [this, slow](Attachment& run, Connections& connections) {
                       connections += run.bus.observe<ForwardEnd>(Stage::Observe, [](const ForwardEnd&) { std::this_thread::sleep_for(std::chrono::milliseconds(10)); }, in(slow));
                       connections += run.bus.observe<StepCheckpoint>(Stage::Persist, [this](const StepCheckpoint& event) { saves.push_back(std::string(event.requester) + ": " + std::string(event.reason)); });
                   })}, .handle_signals = false}) {}
    RunResult train() { return trainer.train(toy_data(200), toy_data(2000), {.batch_size = 2}); }
};

}  // namespace

TEST_CASE("a run that takes too long is stopped with a reason, after a save", "[callbacks][time_limit]") {
    TimeLimitSetup setup({.limit = "0.05s"}, Mode::Train);
    const RunResult result = setup.train();
    CHECK(result.outcome == Outcome::Stopped);
    CHECK(result.requester == "time_limit");
    CHECK_THAT(result.reason, Catch::Matchers::StartsWith("the run has taken 0.") && Catch::Matchers::EndsWith(" s, its limit is 0.05 s"));
    CHECK(setup.trainer.position().step >= 4);
    CHECK(setup.trainer.position().step < 100);
    REQUIRE(setup.saves.size() == 1);
    CHECK_THAT(setup.saves[0], Catch::Matchers::StartsWith("time_limit: the run has taken"));
    CHECK(setup.train().outcome == Outcome::Stopped);  // the next run has all of the time again
    CHECK(setup.trainer.position().step >= 4);
}

TEST_CASE("the limit changes while a run is under way", "[callbacks][time_limit]") {
    TimeLimitSetup setup({.limit = "1h"}, Mode::Train);
    setup.trainer.start_training(toy_data(200), {.batch_size = 2});
    auto shortened = setup.trainer.change_option("time_limit", "limit", "0.05s", "operator");
    auto refused = setup.trainer.change_option("time_limit", "limit", "3epoch", "operator");
    while (setup.trainer.advance()) {}
    shortened.get();
    CHECK_THROWS_WITH(refused.get(), containing("time_limit: limit: 3epoch is not a duration"));
    CHECK_THAT(setup.trainer.result().reason, Catch::Matchers::EndsWith("its limit is 0.05 s"));
}

TEST_CASE("a run is stopped within an evaluation too, and without a save where none is wanted", "[callbacks][time_limit]") {
    TimeLimitSetup setup({.limit = "1s", .save = false}, Mode::Eval);
    const RunResult result = setup.train();
    CHECK(result.outcome == Outcome::Stopped);
    CHECK(setup.saves.empty());
    CHECK(setup.trainer.position().step == 100);
}

TEST_CASE("a run within its limit is left alone", "[callbacks][time_limit]") {
    TimeLimitSetup setup({}, Mode::Predict);
    CHECK(setup.train().outcome == Outcome::Finished);
}

TEST_CASE("only durations are limits of time", "[callbacks][time_limit]") {
    CHECK_THROWS_WITH(make_time_limit({.limit = "100step"}), "time_limit: limit: 100step is not a duration; give one in s, min or h, e.g. \"2h\"");
    CHECK_THROWS_AS(make_time_limit({.limit = "0s"}), ConfigError);
    CHECK_NOTHROW(make_time_limit({.limit = "90min"}));
}
