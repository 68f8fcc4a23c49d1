#include <torchbus/error.hpp>
#include <torchbus/function_callback.hpp>

#include "support/alone_on_bus.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

struct Finished { int count; };  // an event of the user's own

TrainerOptions options_with(std::vector<ComposedCallback> callbacks) {
    auto model = toy_model();
    return {.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
            .callbacks = std::move(callbacks), .handle_signals = false};
}

}  // namespace

TEST_CASE("functions observe, intercept, wrap and ask, in one composition with others", "[callbacks][function]") {
    std::vector<std::string> heard;
    std::int64_t steps = 0, every_second = 0;
    Trainer trainer(options_with({
        FunctionCallback("doubler").intercept<BatchReady>([](BatchReady& event) { event.batch.inputs = event.batch.inputs * 2; }),
        FunctionCallback("watcher")
            .on<ForwardEnd>(Stage::Observe, [&](const ForwardEnd&) { heard.push_back("forward_end"); }, once(1))
            .on<TrainStepEnd>(Stage::Report, [&](const TrainStepEnd&) { ++every_second; }, every(2))
            .on<Finished>(Stage::Report, [&](const Finished& event) { heard.push_back("finished " + std::to_string(event.count)); })
            .around<Forward>([&](const Forward& span) { if (span.micro_batch.is_last() && steps == 0) heard.push_back("enter"); }, [&] { if (steps == 0) heard.push_back("leave"); }),
        FunctionCallback("stopper")
            .on<TrainStepEnd>(Stage::Report, [&](const TrainStepEnd& event, Attachment& run) {
                if (++steps < 4) return;
                run.bus.emit(Finished{static_cast<int>(event.position.step)});
                run.asker.ask(Decision::StopRun, "four are enough");
            })
            .declares({.asks = {Decision::StopRun}}),
    }));
    const RunResult result = trainer.train(toy_data(40), {.batch_size = 4});
    CHECK(result.requester == "stopper");
    CHECK(result.reason == "four are enough");
    CHECK(heard == std::vector<std::string>{"enter", "leave", "forward_end", "finished 4"});
    CHECK(every_second == 2);
    steps = 0;
    CHECK(trainer.train(toy_data(8), {.batch_size = 4}).outcome == Outcome::Finished);  // a second run
}

TEST_CASE("functions declare what they are connected to and what they write", "[callbacks][function]") {
    const ComposedCallback made = FunctionCallback("mine")
                                      .declares({.reads = {"loss"}, .publishes = {"mine.value"}})
                                      .on<TrainStepEnd>(Stage::Report, [](const TrainStepEnd&) {})
                                      .on<TrainStepEnd>(Stage::Persist, [](const TrainStepEnd&) {})
                                      .intercept<BatchReady>([](BatchReady&) {})
                                      .intercept<OutputReady>([](OutputReady&, Attachment&) {}, {}, "loss")
                                      .intercept(Phase::Change, [](GradientsReady&) {})
                                      .around<OptimizerStep>([](const OptimizerStep&) {}, [] {}, "parameters")
                                      .declares({.needs = {"train.loss"}, .subscriber = {.budget_us = 5}});
    CHECK(made.id == "mine");
    CHECK(made.callback->kind() == "function");
    const Declaration declared = made.callback->declare();
    CHECK(declared.listens == std::vector<std::string>{"train_step_end", "batch_ready", "output_ready", "gradients_ready", "optimizer_step"});
    CHECK(declared.writes == std::vector<std::string>{"batch", "loss", "gradients.change", "parameters"});
    CHECK(declared.reads == std::vector<std::string>{"loss"});
    REQUIRE(declared.publishes.size() == 1);
    CHECK(declared.publishes[0].name == "mine.value");
    REQUIRE(declared.needs.size() == 1);
    CHECK(declared.subscriber.budget_us == 5);
    AloneOnBus alone(made.callback);
    CHECK(alone.bus().slots().size() == 6);
    alone.callback().detach();
    CHECK(alone.bus().slots().empty());
    alone.attach();
    CHECK(alone.bus().slots().size() == 6);
}

TEST_CASE("two functions that write the same are a conflict, like other callbacks", "[callbacks][function]") {
    const auto writer = [](const char* id) { return FunctionCallback(id).intercept<BatchReady>([](BatchReady&) {}); };
    CHECK_THROWS_WITH(Trainer(options_with({writer("one"), writer("two")})), containing("'one' and 'two' both write batch"));
    ComposedCallback ordered = writer("two");
    ordered.after = {"one"};
    CHECK_NOTHROW(Trainer(options_with({writer("one"), ordered})));
    CHECK_THROWS_AS(Trainer(options_with({FunctionCallback("same"), FunctionCallback("same")})), ConfigError);
}
