// A golden file for each way a run can end.
#include <csignal>

#include "support/callback_of.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/event_trace.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

struct EndingsSetup {
    torch::nn::Sequential model = toy_model();
    std::shared_ptr<EventTrace> recording = std::make_shared<EventTrace>();
    std::unique_ptr<Trainer> trainer;

    explicit EndingsSetup(std::vector<ComposedCallback> callbacks = {}, bool handle_signals = false) {
        callbacks.emplace_back(recording);
        trainer = std::make_unique<Trainer>(TrainerOptions{
            .model = model, .loss = cross_entropy,
            .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
            .callbacks = std::move(callbacks), .handle_signals = handle_signals});
    }
    /// Two epochs of two steps, with an evaluation of one batch.
    RunResult train(TrainOptions options = {}) {
        options.epochs = 2;
        options.batch_size = 4;
        options.shuffle = false;
        return trainer->train(toy_data(8), toy_data(eval_samples, 3), options);
    }
    std::int64_t eval_samples = 4;
    std::string golden(const std::string& name) const { return compare_with_golden(name, recording->lines()); }
};

/// Asks for a decision at the end of step `step`.
ComposedCallback asks_at(std::int64_t step, Decision decision, std::string reason) {
    return callback_of("asker", [=](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [=, &run](const TrainStepEnd& event) {
            if (event.position.step == step) run.asker.ask(decision, reason);
        });
    });
}

/// Asks for a decision at the end of an evaluation's first step, or fails there.
ComposedCallback at_first_evaluation_step(std::function<void(const Asker&)> act) {
    return callback_of("asker", [=](Attachment& run, Connections& connections) {
        connections += run.bus.observe<EvalStepEnd>(Stage::Observe, [=, &run](const EvalStepEnd& event) {
            if (event.step == 0) act(run.asker);
        });
    });
}
ComposedCallback stops_evaluation() {
    return at_first_evaluation_step([](const Asker& asker) { asker.ask(Decision::StopRun, "enough"); });
}
constexpr std::int64_t kNineSteps = 36;  // a decision is taken after the eighth

}  // namespace

TEST_CASE("a run that finishes", "[trainer][golden]") {
    EndingsSetup setup;
    const RunResult result = setup.train();
    CHECK(result.outcome == Outcome::Finished);
    CHECK(result.exit_code == 0);
    CHECK(setup.golden("end_finished") == "");
}

TEST_CASE("a run that a decision stops ends its epoch without evaluation", "[trainer][golden]") {
    EndingsSetup setup({asks_at(1, Decision::StopRun, "enough")});
    const RunResult result = setup.train();
    CHECK(result.outcome == Outcome::Stopped);
    CHECK(result.requester == "asker");
    CHECK(result.reason == "enough");
    CHECK(setup.golden("end_stopped") == "");
}

TEST_CASE("an epoch that a decision stops is evaluated, and the next one begins", "[trainer][golden]") {
    EndingsSetup setup({asks_at(1, Decision::StopEpoch, "next, please")});
    CHECK(setup.train().outcome == Outcome::Finished);
    CHECK(setup.golden("end_epoch_stopped") == "");
}

TEST_CASE("a stop asked for after the evaluation lets the epoch be completed and saved", "[trainer][golden]") {
    EndingsSetup setup({callback_of("early_stopping", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<EvalEpochEnd>(Stage::Observe, [&run](const EvalEpochEnd&) { run.asker.ask(Decision::StopRun, "no better"); });
    })});
    CHECK(setup.train().outcome == Outcome::Stopped);
    CHECK(setup.golden("end_stopped_after_evaluation") == "");
}

TEST_CASE("a stop within the epoch's evaluation ends it there, and the epoch is not completed", "[trainer][golden]") {
    EndingsSetup setup({stops_evaluation()});
    setup.eval_samples = kNineSteps;
    CHECK(setup.train().outcome == Outcome::Stopped);
    CHECK(setup.golden("end_stopped_in_evaluation") == "");
}

TEST_CASE("a stop within an evaluation in mid-epoch ends it and the epoch", "[trainer][golden]") {
    EndingsSetup setup({asks_at(1, Decision::EvaluateNow, "curious"), ComposedCallback("stopper", stops_evaluation().callback)});
    setup.eval_samples = kNineSteps;
    CHECK(setup.train().outcome == Outcome::Stopped);
    CHECK(setup.golden("end_stopped_in_evaluation_in_epoch") == "");
}

TEST_CASE("a run ends when its updates are made, in mid-epoch with an evaluation and a save", "[trainer][golden]") {
    EndingsSetup setup;
    CHECK(setup.train({.max_steps = 3}).outcome == Outcome::Finished);
    CHECK(setup.trainer->position().step == 3);
    CHECK(setup.golden("end_max_steps") == "");
}

TEST_CASE("a run that fails before its start tells of it and closes", "[trainer][golden]") {
    EndingsSetup setup({callback_of("broken", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept<RunConfigured>([](RunConfigured&) { throw std::runtime_error("no such device"); });
    })});
    CHECK_THROWS_WITH(setup.train(), "subscriber 'broken' failed at run_configured (epoch 0, step 0): no such device");
    CHECK(setup.trainer->result().outcome == Outcome::Failed);
    CHECK(setup.golden("end_failed_before_start") == "");
}

TEST_CASE("a run that a subscriber fails tells of it and closes", "[trainer][golden]") {
    EndingsSetup setup({callback_of("broken", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<BackwardEnd>(Stage::Observe, [](const BackwardEnd& event) {
            if (event.position.step == 1) throw std::runtime_error("disk on fire");
        });
    })});
    CHECK_THROWS_WITH(setup.train(), "subscriber 'broken' failed at backward_end (epoch 0, step 1): disk on fire");
    CHECK(setup.trainer->result().outcome == Outcome::Failed);
    CHECK(setup.golden("end_failed") == "");
}

TEST_CASE("a run that a decision fails", "[trainer][golden]") {
    EndingsSetup setup({asks_at(2, Decision::FailRun, "the loss is nan")});
    CHECK_THROWS_WITH(setup.train(), "asker: the loss is nan");
    CHECK(setup.golden("end_failed_by_decision") == "");
}

TEST_CASE("SIGINT finishes the step, saves and stops with 130", "[trainer][golden][signal]") {
    struct sigaction before = {};
    sigaction(SIGINT, nullptr, &before);
    EndingsSetup setup({callback_of("user", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<ForwardEnd>(Stage::Observe, [](const ForwardEnd& event) {
            if (event.position.step == 1) std::raise(SIGINT);
        });
    })}, true);
    const RunResult result = setup.train();
    CHECK(result.outcome == Outcome::Signalled);
    CHECK(result.exit_code == 130);
    CHECK(setup.golden("end_signalled") == "");
    struct sigaction after = {};
    sigaction(SIGINT, nullptr, &after);
    CHECK(reinterpret_cast<void*>(after.sa_handler) == reinterpret_cast<void*>(before.sa_handler));  // put back
}

TEST_CASE("SIGUSR2 finishes the step, saves and stops with 0", "[trainer][golden][signal]") {
    EndingsSetup setup({callback_of("batch_system", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<ForwardEnd>(Stage::Observe, [](const ForwardEnd& event) {
            if (event.position.step == 1) std::raise(SIGUSR2);
        });
    })}, true);
    const RunResult result = setup.train();
    CHECK(result.outcome == Outcome::Signalled);
    CHECK(result.exit_code == 0);
    CHECK(setup.golden("end_signalled_for_later") == "");
}

TEST_CASE("SIGUSR1 saves and goes on; SIGUSR2 saves and stops with 0", "[trainer][signal]") {
    for (const int number : {SIGUSR1, SIGUSR2}) {
        int saves = 0;
        EndingsSetup setup({callback_of("saver", [&](Attachment& run, Connections& connections) {
            connections += run.bus.observe<StepCheckpoint>(Stage::Persist, [&](const StepCheckpoint&) { ++saves; });
            connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [=](const TrainStepEnd& event) {
                if (event.position.step == 1) std::raise(number);
            });
        })}, true);
        const RunResult result = setup.train();
        CHECK(saves == 1);
        CHECK(result.exit_code == 0);
        CHECK(setup.trainer->position().step == (number == SIGUSR1 ? 4 : 1));
        CHECK(result.outcome == (number == SIGUSR1 ? Outcome::Finished : Outcome::Signalled));
    }
}

TEST_CASE("a signal after the last look at them ends no process for a save, and finds the handler of before for an end", "[trainer][signal]") {
    const auto at_close = [](int number) {
        return callback_of("late", [=](Attachment& run, Connections& connections) {
            connections += run.bus.observe<RunClosed>(Stage::Observe, [=](const RunClosed&) { std::raise(number); });
        });
    };
    for (const int number : {SIGUSR1, SIGUSR2}) {
        CapturedStderr captured;
        CHECK(EndingsSetup({at_close(number)}, true).train().outcome == Outcome::Finished);
        CHECK_THAT(captured.text(), containing("was received when the run was over; there is nothing more to save"));
    }
    static volatile std::sig_atomic_t seen = 0;
    const auto former = std::signal(SIGTERM, [](int number) { seen = number; });
    CHECK(EndingsSetup({at_close(SIGTERM)}, true).train().outcome == Outcome::Finished);
    std::signal(SIGTERM, former);
    CHECK(seen == SIGTERM);
}

TEST_CASE("a save, then an evaluation in mid-epoch, then the epoch goes on", "[trainer][golden]") {
    EndingsSetup setup({asks_at(1, Decision::EvaluateNow, "curious"), callback_of("saver", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&run](const TrainStepEnd& event) {
            if (event.position.step == 1) run.asker.ask(Decision::SaveNow, "every step");
        });
    })});
    setup.train();
    CHECK(setup.golden("evaluation_in_epoch") == "");
}

TEST_CASE("an evaluation run and a prediction run", "[trainer][golden]") {
    EndingsSetup setup;
    setup.trainer->evaluate(toy_data(6), {.batch_size = 4});
    CHECK(setup.golden("evaluation_run") == "");
    EndingsSetup other;
    const at::Tensor outputs = other.trainer->predict(toy_data(6), {.batch_size = 4});
    CHECK(other.golden("prediction_run") == "");
    CHECK(outputs.sizes() == at::IntArrayRef{6, 3});
}

TEST_CASE("an evaluation run that is stopped, and one that fails", "[trainer][golden]") {
    EndingsSetup stopped({stops_evaluation()});
    stopped.trainer->evaluate(toy_data(kNineSteps), {.batch_size = 4});
    CHECK(stopped.trainer->result().outcome == Outcome::Stopped);
    CHECK(stopped.trainer->result().reason == "enough");
    CHECK(stopped.golden("evaluation_run_stopped") == "");
    EndingsSetup failed({at_first_evaluation_step([](const Asker&) { throw std::runtime_error("disk on fire"); })});
    CHECK_THROWS_WITH(failed.trainer->evaluate(toy_data(8), {.batch_size = 4}), "subscriber 'asker' failed at eval_step_end (epoch 0, step 0): disk on fire");
    CHECK(failed.trainer->result().outcome == Outcome::Failed);
    CHECK(failed.golden("evaluation_run_failed") == "");
}

TEST_CASE("a prediction run that is stopped returns no part of the outputs", "[trainer][golden]") {
    EndingsSetup setup({callback_of("asker", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<PredictStepEnd>(Stage::Observe, [&run](const PredictStepEnd& event) {
            if (event.step == 0) run.asker.ask(Decision::StopRun, "enough");
        });
    })});
    CHECK_THROWS_WITH(setup.trainer->predict(toy_data(kNineSteps), {.batch_size = 4}), "the prediction was stopped by asker (enough); its outputs are not complete");
    CHECK(setup.golden("prediction_run_stopped") == "");
}
