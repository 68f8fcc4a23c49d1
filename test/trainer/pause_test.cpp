// What steers a run from outside: pause, resume, and changes of options, as decisions of all ranks.
#include <mutex>
#include <thread>

#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/fake_world.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

/// What was decided and changed, as text.
struct Log {
    std::vector<std::string> lines;
    std::int64_t steps = 0, saves = 0, evaluations = 0;
};

/// Notes into `log`, and asks as `act` says at the end of each step.
ComposedCallback steering(Log& log, std::function<void(Attachment&, const Position&)> act = [](Attachment&, const Position&) {}) {
    return callback_of("steering", [&log, act](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&run, &log, act](const TrainStepEnd& event) {
            ++log.steps;
            act(run, event.position);
        });
        connections += run.bus.observe<DecisionTaken>(Stage::Observe, [&log](const DecisionTaken& event) {
            log.lines.push_back(std::to_string(event.position.step) + " " + std::string(name_of(event.decision)) + " " + event.request.requester);
        });
        connections += run.bus.observe<OptionChanged>(Stage::Observe, [&log](const OptionChanged& event) {
            log.lines.push_back(std::to_string(event.position.step) + " " + event.subscriber + "." + event.option + " " + event.from + "→" + event.to + " " + event.requester + (event.error.empty() ? "" : " refused"));
        });
        connections += run.bus.observe<StepCheckpoint>(Stage::Observe, [&log](const StepCheckpoint&) { ++log.saves; });
        connections += run.bus.observe<EvalEpochEnd>(Stage::Observe, [&log](const EvalEpochEnd&) { ++log.evaluations; });
    });
}

struct Steered {
    Log log;
    torch::nn::Sequential model = toy_model();
    Trainer trainer;
    explicit Steered(std::function<void(Attachment&, const Position&)> act)
        : trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1}),
                   .callbacks = {ComposedCallback("clip", make_gradient_clipping({.max_norm = 1.0})), steering(log, std::move(act))}, .handle_signals = false}) {
        trainer.start_training(toy_data(32), toy_data(8), {.epochs = 1, .batch_size = 4});
    }
    void advance_to(State state) {
        for (int i = 0; i < 1000 && trainer.state() != state; ++i) trainer.advance();
        REQUIRE(trainer.state() == state);
    }
    void finish() {
        while (trainer.advance()) {}
    }
};

const auto kPauseAfterThree = [](Attachment& run, const Position& at) {
    if (at.step == 3) run.asker.ask(Decision::Pause, "a look at it");
};

}  // namespace

TEST_CASE("a paused run waits before its next step, takes decisions meanwhile, and goes on as if nothing had been", "[trainer][pause]") {
    Steered plain([](Attachment&, const Position&) {});
    plain.finish();

    Steered run(kPauseAfterThree);
    run.advance_to(State::Paused);
    CHECK(run.trainer.position().step == 3);
    for (int i = 0; i < 3; ++i) run.trainer.advance();
    CHECK(run.trainer.state() == State::Paused);
    CHECK(run.log.steps == 3);

    run.trainer.ask(Decision::SaveNow, "operator", "to look at it elsewhere");
    run.trainer.ask(Decision::EvaluateNow, "operator", "how is it");
    run.trainer.advance();
    CHECK(run.trainer.state() == State::Deciding);
    run.advance_to(State::Paused);
    CHECK(run.log.saves == 1);
    CHECK(run.log.evaluations == 1);
    CHECK(run.log.steps == 3);

    run.trainer.ask(Decision::Pause, "operator", "twice");  // has no effect, and is said
    run.trainer.ask(Decision::Resume, "operator", "seen enough");
    run.finish();
    CHECK(run.trainer.result().outcome == Outcome::Finished);
    CHECK(run.log.steps == 8);
    const std::vector<std::string> expected = {"3 pause steering", "3 evaluate_now operator", "3 save_now operator", "3 resume operator"};
    CHECK(run.log.lines == expected);
    CHECK(equal_bits(run.model->parameters(), plain.model->parameters()));
}

TEST_CASE("a paused run is stopped as any other", "[trainer][pause]") {
    Steered run(kPauseAfterThree);
    run.advance_to(State::Paused);
    run.trainer.ask(Decision::StopRun, "operator", "enough");
    run.finish();
    CHECK(run.trainer.result().outcome == Outcome::Stopped);
    CHECK(run.trainer.result().requester == "operator");
    CHECK(run.log.steps == 3);
}

TEST_CASE("a pause that is asked for within an evaluation comes before the next step, and a run without steps has none", "[trainer][pause]") {
    Steered run([](Attachment& its, const Position& at) {
        if (at.step == 2) its.asker.ask(Decision::EvaluateNow, "now");
    });
    run.advance_to(State::EvaluatingInEpoch);
    run.trainer.ask(Decision::Pause, "operator", "a look");
    run.advance_to(State::Paused);
    CHECK(run.log.evaluations == 1);
    CHECK(run.log.steps == 2);
    run.trainer.ask(Decision::Resume, "operator", "go on");
    run.finish();
    CHECK(run.log.steps == 8);

    run.trainer.ask(Decision::Pause, "operator", "a look");
    CHECK_NOTHROW(run.trainer.evaluate(toy_data(8)));
    CHECK(std::ranges::count(run.log.lines, "8 pause operator") == 0);
}

TEST_CASE("options that are asked to change do so in order at the next decision point, and what is refused is told", "[trainer][pause]") {
    Steered run([](Attachment& its, const Position& at) {
        if (at.step != 2) return;
        its.asker.ask_to_change("clip", "max_norm", "0.5", "calmer");
        its.asker.for_somebody("me at home").ask_to_change("clip", "max_norm", "0.25", "calmer still");
        its.asker.ask_to_change("clip", "max_norm", "-1", "wrong");
        its.asker.ask_to_change("nobody", "max_norm", "1", "wrong");
        its.asker.ask_to_change("optimizer", "learning_rate", "0.01", "slower");
    });
    run.finish();
    CHECK(run.trainer.result().outcome == Outcome::Finished);
    const std::vector<std::string> expected = {"2 change_option steering", "2 clip.max_norm 1→0.5 steering", "2 clip.max_norm 0.5→0.25 steering: me at home",
                                                    "2 clip.max_norm →-1 steering refused", "2 nobody.max_norm →1 steering refused", "2 optimizer.learning_rate 0.1→0.01 steering"};
    CHECK(run.log.lines == expected);
}

TEST_CASE("two ranks pause, change and go on at one step, whichever of them was asked", "[trainer][pause][thread]") {
    FakeWorld world(2);
    std::vector<Log> logs(2);
    std::vector<std::vector<at::Tensor>> parameters(2);
    std::mutex seeding;
    const auto run_rank = [&](int rank) {
        std::unique_lock lock(seeding);
        auto model = toy_model();
        lock.unlock();
        const auto place = static_cast<std::size_t>(rank);
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1}),
                         .callbacks = {ComposedCallback(world.reducer(rank)), ComposedCallback("clip", make_gradient_clipping({.max_norm = 1.0})), steering(logs[place], [rank](Attachment& run, const Position& at) {
                             if (rank == 1 && at.step == 3) run.asker.ask(Decision::Pause, "a look at it");
                         })},
                         .consensus = world.consensus(rank), .handle_signals = false});
        trainer.start_training(toy_data(32), {.epochs = 1, .batch_size = 4});
        int paused = 0;
        while (trainer.advance()) {
            if (trainer.state() != State::Paused || ++paused != 3 || rank != 0) continue;
            trainer.ask(Decision::Resume, "operator", "go on");
            trainer.ask(Decision::SaveNow, "operator", "as it is");
        }
        parameters[place] = copies_of(model->parameters());
    };
    std::thread other([&] { run_rank(1); });
    run_rank(0);
    other.join();
    const std::vector<std::string> expected = {"3 pause steering", "3 save_now operator", "3 resume operator"};
    for (const Log& log : logs) {
        CHECK(log.lines == expected);
        CHECK(log.steps == 8);
        CHECK(log.saves == 1);
    }
    CHECK(equal_bits(parameters[0], parameters[1]));
}
