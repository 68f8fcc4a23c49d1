#include <sys/resource.h>

#include <torchbus/callbacks/throughput_monitor.hpp>
#include <torchbus/error.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

/// A clock that goes on only when a test says so.
struct Hands {
    double now = 1000;
};

/// Takes time: 3 s a forward in training, 1 s between a step's end and the next one, 50 s an evaluation batch, 20 s a save.
/// Attached after the monitor: the second after a step's end passes once the monitor has looked.
ComposedCallback takes_time(Hands& hands) {
    return callback_of("takes_time", [&hands](Attachment& run, Connections& connections) {
        connections += run.bus.observe<ForwardEnd>(Stage::Observe, [&hands](const ForwardEnd& event) { hands.now += event.scope.mode == Mode::Train ? 3 : 50; });
        connections += run.bus.observe<TrainStepEnd>(Stage::Persist, [&hands](const TrainStepEnd&) { hands.now += 1; });
        connections += run.bus.observe<StepCheckpoint>(Stage::Persist, [&hands](const StepCheckpoint&) { hands.now += 20; });
        connections += run.bus.observe<TrainEpochEnd>(Stage::Persist, [&hands](const TrainEpochEnd&) { hands.now += 30; });
    });
}

struct ThroughputMonitorSetup {
    Hands hands;
    std::string printed;
    torch::nn::Sequential model = toy_model();
    Trainer trainer;
    explicit ThroughputMonitorSetup(std::int64_t window, std::vector<ComposedCallback> more = {}) : trainer(options(window, std::move(more))) {}
    TrainerOptions options(std::int64_t window, std::vector<ComposedCallback> more) {
        std::vector<ComposedCallback> callbacks = {
            make_throughput_monitor({.window = window, .print = true, .write = [this](std::string_view text) { printed += text; }, .clock = [this] { return hands.now; }}),
            takes_time(hands)};
        for (auto& callback : more) callbacks.push_back(std::move(callback));
        return {.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                .callbacks = std::move(callbacks), .handle_signals = false};
    }
    double number(const char* name) { return trainer.blackboard().number(name).value_or(-1); }
};

}  // namespace

TEST_CASE("throughput counts steps and waits of every window but the first", "[callbacks][throughput_monitor]") {
    ThroughputMonitorSetup setup(2);
    setup.trainer.train(toy_data(16), {.batch_size = 4});
    // The second window: two steps of 3 s with a wait of 1 s before each; 8 samples.
    CHECK(setup.number("throughput.samples_per_second") == 1.0);
    CHECK(setup.number("throughput.steps_per_second") == 0.25);
    CHECK(setup.number("throughput.data_wait") == 0.25);
    CHECK_FALSE(setup.trainer.blackboard().has("throughput.tokens_per_second"));  // the data declares none
    CHECK(setup.printed.starts_with("step 4: 1 samples/s, 0.25 steps/s, 25.0 % waiting for data, memory "));
    CHECK(std::ranges::count(setup.printed, '\n') == 1);
}

TEST_CASE("a run within the first window tells nothing", "[callbacks][throughput_monitor]") {
    ThroughputMonitorSetup setup(4);
    setup.trainer.train(toy_data(16), {.batch_size = 4});
    CHECK(setup.trainer.blackboard().names().empty());
    setup.trainer.train(toy_data(16), {.batch_size = 4});  // the next run warms up anew
    CHECK(setup.printed.empty());
}

TEST_CASE("evaluations, saves and the time between epochs are not counted", "[callbacks][throughput_monitor]") {
    ThroughputMonitorSetup setup(3, {callback_of("asker", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Report, [&run](const TrainStepEnd& event) {
            if (event.position.step == 4) run.asker.ask(Decision::EvaluateNow, "test");
            if (event.position.step == 5) run.asker.ask(Decision::SaveNow, "test");
        });
    })});
    setup.trainer.train(toy_data(12), toy_data(8, 3), {.epochs = 3, .batch_size = 4});
    // Steps 7 to 9 begin an epoch, whose first wait takes no time here, and have two waits of 1 s; 12 samples in 11 s.
    CHECK(setup.number("throughput.samples_per_second") == Approx(12.0 / 11));
    CHECK(setup.number("throughput.data_wait") == Approx(2.0 / 11));
    // Steps 4 to 6 are told as well: their waits before 5 (an evaluation) and 6 (a save) are not counted, 12 samples in 9 s.
    CHECK(setup.printed.find("step 6: 1 samples/s, 0.3333 steps/s, 0.0 % waiting") == 0);
}

TEST_CASE("a skipped update counts as a step: it took its time", "[callbacks][throughput_monitor]") {
    ThroughputMonitorSetup setup(2, {callback_of("skipper", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept(Phase::Decide, [](GradientsReady& event) { event.skip("skipper", "test"); });
    })});
    setup.trainer.train(toy_data(16), {.batch_size = 4});
    CHECK(setup.trainer.position().step == 0);
    CHECK(setup.number("throughput.steps_per_second") == 0.25);
    CHECK(setup.number("throughput.samples_per_second") == 1.0);
}

TEST_CASE("memory is that of this process, now and at its peak", "[callbacks][throughput_monitor]") {
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                     .callbacks = {make_throughput_monitor({.window = 1})}, .handle_signals = false});
    trainer.train(toy_data(16), {.batch_size = 4});
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const double resident = trainer.blackboard().number("memory.resident_bytes").value(), peak = trainer.blackboard().number("memory.peak_bytes").value();
    CHECK(resident > 20e6);  // LibTorch alone takes more
    CHECK(peak >= resident * 0.99);
    CHECK(peak <= 1024.0 * static_cast<double>(usage.ru_maxrss) * 1.05);
    CHECK(trainer.blackboard().number("throughput.samples_per_second").value() > 0);  // by the real clock
}

TEST_CASE("a window of no steps is refused", "[callbacks][throughput_monitor]") {
    CHECK_THROWS_WITH(make_throughput_monitor({.window = 0}), "throughput_monitor: window: 0 is too few; give at least 1 step, e.g. 50");
}
