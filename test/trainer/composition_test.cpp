// What a trainer does with its composition: sorts, refuses, and changes it while a run is under way.
#include <atomic>
#include <future>
#include <random>
#include <thread>

#include <torchbus/arrangement.hpp>
#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixed_precision.hpp>
#include <torchbus/callbacks/step_evaluation.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/trainer.hpp>

#include "support/catch.hpp"
#include "support/composed.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

bool is_attached(Trainer& trainer, const std::string& id) {
    return std::ranges::any_of(trainer.check(toy_data(16), toy_data(8)).slots, [&](const ConnectedSlot& slot) { return slot.subscriber == id; });
}

/// Publishes `x` at the end of every step.
ComposedCallback provider(SubscriberOptions options = {}) {
    return declaring("provider", {.listens = {"train_step_end"}, .publishes = {{"x", "train_step_end"}}, .subscriber = options}, [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&run](const TrainStepEnd&) { run.blackboard.publish("x", 1); });
    });
}
ComposedCallback reader(Fault fault) {
    return declaring("reader", {.needs = {{"x", "train_step_end", Stage::Report}}, .subscriber = {.fault = fault}}, [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Report, [](const TrainStepEnd&) {});
    });
}

}  // namespace

TEST_CASE("a trainer refuses a composition that does not go together, with all that stands against it", "[trainer][composition]") {
    const Declaration clips{.writes = {"gradients.change"}}, holds{.views = {"ema"}};
    CHECK_THROWS_WITH(Toy({declaring("a", clips), declaring("b", clips)}),
                      "'a' and 'b' both write gradients.change (GradientsReady, phase change: clips), and neither says who goes first; leave one out, "
                      "or give 'b' \"after\": [\"a\"] in the composition");
    CHECK_THROWS_WITH(Toy({declaring("a", clips), declaring("b", clips), declaring("c", holds), declaring("d", holds)}), Catch::Matchers::StartsWith("2 things stand against this composition:\n  - 'a' and 'b'"));
}

TEST_CASE("callbacks run in the order of declarations, not of the list", "[trainer][composition]") {
    std::vector<std::string> order;
    const auto note = [&order](std::string id) {
        return [&order, id](Attachment& run, Connections& connections) {
            connections += run.bus.intercept<TrainStepStart>([&order, id](TrainStepStart&) { order.push_back(id); });
        };
    };
    Toy toy({declaring("late", {.after = {"declaring"}}, note("late")), declaring("early", {}, note("early"))});
    toy.train();
    REQUIRE(order.size() == 8);
    CHECK(order[0] == "early");
    CHECK(order[1] == "late");
}

TEST_CASE("a run whose numbers nobody publishes is refused before its first batch", "[trainer][composition]") {
    int batches = 0;
    Toy toy({declaring("saver", {.needs = {{"eval.loss", "epoch_checkpoint"}}}, [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<BatchReady>(Stage::Observe, [&](const BatchReady&) { ++batches; });
    })});
    CHECK_THROWS_AS(toy.train(), ConfigError);
    CHECK(batches == 0);
    CHECK(toy.trainer->result().outcome == Outcome::Failed);
}

TEST_CASE("a callback's own findings are heard: errors refuse the run, warnings do not", "[trainer][composition]") {
    auto callback = std::make_shared<Declaring>(Declaration{});
    Finding::Weight weight = Finding::Weight::Error;
    callback->checks = [&](const Outlook& run) -> std::vector<Finding> {
        CHECK(run.plan.epochs == 1);
        CHECK(run.length.steps == 4);
        CHECK(run.plan.has(Mode::Eval));
        return {{weight, "this will not do"}};
    };
    Toy toy({ComposedCallback("choosy", callback)});
    CHECK_THROWS_WITH(toy.train(), "this will not do");
    weight = Finding::Weight::Warning;
    CHECK(toy.train().outcome == Outcome::Finished);
}

TEST_CASE("check() tells what would run, without running it", "[trainer][composition]") {
    Toy toy({make_metrics(), ComposedCallback("clip", make_gradient_clipping({})), declaring("saver", {.needs = {{"eval.f1", "epoch_checkpoint"}}})});
    const auto before = copies_of(toy.model->parameters());
    const CompositionReport report = toy.trainer->check(toy_data(16), toy_data(8), {.batch_size = 4});
    CHECK(report.plan.splits.size() == 2);
    CHECK(report.plan.splits[0].batches == 4);
    REQUIRE(report.findings.size() == 1);
    CHECK_THAT(report.findings[0].text, Catch::Matchers::StartsWith("'saver' needs eval.f1, which nobody publishes"));
    const bool clips = std::ranges::any_of(report.slots, [](const ConnectedSlot& slot) { return slot.event == "gradients_ready" && slot.subscriber == "clip" && slot.phase == Phase::Change; });
    CHECK(clips);
    CHECK(equal_bits(copies_of(toy.model->parameters()), before));
}

TEST_CASE("one callback serves one trainer at a time", "[trainer][composition]") {
    std::shared_ptr<Callback> shared = make_gradient_clipping({});
    {
        Toy first({ComposedCallback(shared)});
        CHECK_THROWS_WITH(Toy({ComposedCallback("again", shared)}), "the callback 'again' serves another trainer already, or stands twice in this one; make one for each");
    }
    Toy later({ComposedCallback(shared)});
    CHECK(later.train().outcome == Outcome::Finished);
}

TEST_CASE("an observer joins at the next poll point of a run, and the event says who asked", "[trainer][composition]") {
    std::vector<std::string> told;
    int steps = 0;
    Toy toy({declaring("listener", {}, [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<SubscriberAttached>(Stage::Observe, [&](const SubscriberAttached& event) { if (!event.requester.empty()) told.push_back(event.id + " by " + event.requester); });
        connections += run.bus.observe<SubscriberDetached>(Stage::Observe, [&](const SubscriberDetached& event) { told.push_back(event.id + " gone by " + event.requester); });
    })});
    toy.start();
    toy.trainer->advance();
    auto joined = toy.trainer->attach(declaring("guest", {}, [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd&) { ++steps; });
    }), "dashboard");
    CHECK(joined.wait_for(std::chrono::seconds(0)) == std::future_status::timeout);
    while (steps < 2) toy.trainer->advance();
    joined.get();
    auto left = toy.trainer->detach("guest", "dashboard");
    toy.finish();
    left.get();
    CHECK(steps == 2);
    CHECK(told == std::vector<std::string>{"guest by dashboard", "guest gone by dashboard"});
}

TEST_CASE("what changes events joins at a decision point, in its place, and is checked like before a run", "[trainer][composition]") {
    Toy toy({ComposedCallback("clip", make_gradient_clipping({.max_norm = 1.0}))});
    toy.start();
    toy.trainer->advance();
    auto refused = toy.trainer->attach(ComposedCallback("clip_too", make_gradient_clipping({})), "operator");
    auto accepted = toy.trainer->attach(ComposedCallback("clip_first", make_gradient_clipping({}), {"clip"}), "operator");
    toy.finish();
    CHECK_THROWS_WITH(refused.get(), Catch::Matchers::StartsWith("'clip' and 'clip_too' both write gradients.change"));
    accepted.get();
    CHECK(toy.trainer->result().outcome == Outcome::Finished);
    std::vector<std::string> order;
    for (const ConnectedSlot& slot : toy.trainer->check(toy_data(16)).slots)
        if (slot.event == "gradients_ready") order.push_back(slot.subscriber);
    CHECK(order == std::vector<std::string>{"clip_first", "clip"});
}

TEST_CASE("an option changes at a decision point, with an event that says who changed it", "[trainer][composition]") {
    std::vector<std::string> told;
    Toy toy({ComposedCallback("clip", make_gradient_clipping({.max_norm = 1.0})), declaring("listener", {}, [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<OptionChanged>(Stage::Observe, [&](const OptionChanged& event) {
            told.push_back(event.subscriber + "." + event.option + " " + event.from + " -> " + event.to + " by " + event.requester);
        });
    })});
    toy.start();
    toy.trainer->advance();
    auto changed = toy.trainer->change_option("clip", "max_norm", 0.25, "dashboard");
    auto unknown = toy.trainer->change_option("clip", "max_nrom", 0.25, "dashboard");
    auto wrong = toy.trainer->change_option("clip", "max_norm", -1, "dashboard");
    auto nobody = toy.trainer->change_option("clipp", "max_norm", 1, "dashboard");
    toy.finish();
    changed.get();
    CHECK(told == std::vector<std::string>{"clip.max_norm 1 -> 0.25 by dashboard"});
    CHECK_THROWS_WITH(unknown.get(), "gradient_clipping: the option 'max_nrom' cannot be changed while a run is under way (those that can: max_norm, max_value, ratio)");
    CHECK_THROWS_WITH(wrong.get(), "gradient_clipping: max_norm: -1 is not positive; give the largest allowed gradient norm, e.g. 1.0");
    CHECK_THROWS_WITH(nobody.get(), "no callback 'clipp' is attached; did you mean 'clip'?");
    CHECK(toy.trainer->result().outcome == Outcome::Finished);
}

TEST_CASE("who joins a run under way is told what the others heard at its start", "[trainer][composition]") {
    std::vector<std::string> heard;
    const auto listener = [&](std::string id) {
        return declaring(id, {.writes = {"plan.limits"}}, [&heard, id](Attachment& run, Connections& connections) {
            connections += run.bus.intercept<RunConfigured>([&heard, id](RunConfigured&) { heard.push_back(id + " run_configured"); });
            connections += run.bus.observe<TrainingRunStart>(Stage::Observe, [&heard, id](const TrainingRunStart&) { heard.push_back(id + " training_run_start"); });
        });
    };
    Toy toy({listener("early")});
    toy.start();
    for (int i = 0; i < 3; ++i) toy.trainer->advance();
    heard.clear();
    auto joined = toy.trainer->attach(listener("late"), "operator");
    toy.finish();
    joined.get();
    CHECK(heard == std::vector<std::string>{"late run_configured", "late training_run_start"});
}

TEST_CASE("a newcomer may change the plan from its decision point on", "[trainer][composition]") {
    std::vector<std::int64_t> windows;
    Toy toy({declaring("tap", {}, [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepStart>(Stage::Observe, [&](const TrainStepStart& event) { windows.push_back(event.window.count()); });
    })});
    toy.start();
    while (windows.empty()) toy.trainer->advance();
    auto joined = toy.trainer->attach(ComposedCallback("accumulate", make_gradient_accumulation({.micro_batches = 2})), "operator");
    toy.finish();
    joined.get();
    REQUIRE(windows.size() > 1);
    CHECK(windows[0] == 1);
    CHECK(windows[1] == 2);
}

TEST_CASE("a newcomer that the run stands against is refused, and the run goes on as it was", "[trainer][composition]") {
    Toy toy(std::vector<ComposedCallback>{});
    toy.start();
    toy.trainer->advance();
    auto wrong_plan = toy.trainer->attach(declaring("spoiler", {.writes = {"plan.window"}}, [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept<RunConfigured>([](RunConfigured& event) { event.plan.micro_batches_per_step = 0; });
    }), "operator");
    auto missing = toy.trainer->attach(declaring("reader", {.writes = {"parameters"}, .needs = {"eval.los"}}, [](Attachment&, Connections&) {}), "operator");
    toy.finish();
    CHECK_THROWS_WITH(wrong_plan.get(), "the plan, after RunConfigured: micro_batches_per_step must be at least 1");
    CHECK_THROWS_WITH(missing.get(), Catch::Matchers::StartsWith("'reader' needs eval.los, which nobody publishes"));
    CHECK_FALSE(is_attached(*toy.trainer, "spoiler"));
    CHECK_FALSE(is_attached(*toy.trainer, "reader"));
    CHECK(toy.trainer->result().outcome == Outcome::Finished);
}

TEST_CASE("the learning rate changes in a running trainer, unless a callback sets it", "[trainer][composition]") {
    std::vector<double> rates;
    std::vector<std::string> told;
    const auto tap = [&] {
        return declaring("tap", {}, [&](Attachment& run, Connections& connections) {
            connections += run.bus.observe<OptimizerStepEnd>(Stage::Observe, [&](const OptimizerStepEnd& event) { rates.push_back(event.update.optimizer->param_groups().front().options().get_lr()); });
            connections += run.bus.observe<OptionChanged>(Stage::Observe, [&](const OptionChanged& event) { told.push_back(event.subscriber + "." + event.option + " -> " + event.to + " by " + event.requester); });
        });
    };
    Toy constant({tap()});
    constant.start();
    while (rates.empty()) constant.trainer->advance();
    auto changed = constant.trainer->change_option("optimizer", "learning_rate", 0.125, "dashboard");
    auto unknown = constant.trainer->change_option("optimizer", "learning_rat", 0.125, "dashboard");
    auto wrong = constant.trainer->change_option("optimizer", "learning_rate", "fast", "dashboard");
    constant.finish();
    changed.get();
    CHECK(rates[0] != 0.125);
    CHECK(rates[1] == 0.125);
    CHECK(told == std::vector<std::string>{"optimizer.learning_rate -> 0.125 by dashboard"});
    CHECK_THROWS_WITH(unknown.get(), Catch::Matchers::StartsWith("the optimizer has no option 'learning_rat'; did you mean 'learning_rate'?"));
    CHECK_THROWS_WITH(wrong.get(), "optimizer: learning_rate: \"fast\" is not a number of at least 0");

    rates.clear();
    Toy scheduled({ComposedCallback("schedule", make_learning_rate_schedule({.schedule = make_constant_schedule()})), tap()});
    scheduled.start();
    while (rates.empty()) scheduled.trainer->advance();
    auto refused = scheduled.trainer->change_option("optimizer", "learning_rate", 0.125, "dashboard");
    auto scaled = scheduled.trainer->change_option("schedule", "factor", 0.5, "dashboard");
    scheduled.finish();
    CHECK_THROWS_WITH(refused.get(), "'schedule' sets learning_rate of the optimizer as the run goes on; change an option of 'schedule', or detach it first");
    scaled.get();
    CHECK(rates[1] == rates[0] * 0.5);
}

TEST_CASE("a decay of Adam's means changes in a running trainer to what it may be at its start", "[trainer][composition]") {
    auto model = toy_model();
    auto optimizer = make_adamw(model->parameters(), {});
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer, .handle_signals = false});
    trainer.start_training(toy_data(16), toy_data(8), {.batch_size = 4});
    trainer.advance();
    auto taken = trainer.change_option("optimizer", "beta1", 0.5, "dashboard");
    std::vector<std::future<void>> refused;
    for (const char* option : {"beta1", "beta2", "momentum"}) refused.push_back(trainer.change_option("optimizer", option, 1.0, "dashboard"));
    while (trainer.advance()) {}
    taken.get();
    CHECK(std::get<0>(static_cast<torch::optim::AdamWOptions&>(optimizer->param_groups().front().options()).betas()) == 0.5);
    for (auto& answer : refused) CHECK_THROWS_WITH(answer.get(), Catch::Matchers::EndsWith(": 1.0 is out of range; give a number in [0, 1), e.g. 0.9"));
}

TEST_CASE("intervals change in a running trainer, and count from there", "[trainer][composition]") {
    std::vector<std::int64_t> evaluated;
    Toy toy({ComposedCallback("evaluation", make_step_evaluation({.every = "5step"})), declaring("tap", {}, [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<EvalEpochStart>(Stage::Observe, [&](const EvalEpochStart& event) { evaluated.push_back(event.position.step); });
    })});
    toy.trainer->start_training(toy_data(32), toy_data(4, 3), {.batch_size = 2});
    std::future<void> changed, wrong;
    while (toy.trainer->advance())
        if (evaluated.size() == 1 && !changed.valid()) {
            changed = toy.trainer->change_option("evaluation", "every", "3step", "dashboard");
            wrong = toy.trainer->change_option("evaluation", "every", "3stp", "dashboard");
        }
    changed.get();
    CHECK_THROWS_WITH(wrong.get(), containing("3stp"));
    CHECK(evaluated == std::vector<std::int64_t>{5, 6, 9, 12, 15, 16});
}

TEST_CASE("ten thousand changes at random, asked for by several threads while a run goes on", "[trainer][composition][thread]") {
    std::int64_t heard = 0;
    Toy toy({ComposedCallback("clip", make_gradient_clipping({.max_norm = 1.0})), ComposedCallback("evaluation", make_step_evaluation({.every = "50step"})),
             declaring("tap", {}, [&](Attachment& run, Connections& connections) {
                 connections += run.bus.observe<OptionChanged>(Stage::Observe, [&](const OptionChanged&) { ++heard; });
             })});
    std::atomic<std::int64_t> asked{0}, made{0}, changed{0}, threads{3}, taken{0};
    // Looks inline, or on a thread of its own, and joins at a poll point; or writes, and waits for a decision point.
    const auto guest = [&](const std::string& id, unsigned way) {
        Declaration declared;
        if (way == 1) declared.writes = {"plan.limits"};
        declared.on_thread = way == 2;
        return declaring(id, declared, [&taken, way](Attachment& run, Connections& connections) {
            if (way == 0) connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [](const TrainStepEnd&) {});
            if (way == 1) connections += run.bus.intercept<BackwardStart>([](BackwardStart& event) { event.root = event.root * 1; });
            if (way == 2)
                connections += run.bus.observe_on_thread<TrainStepEnd>(Stage::Observe, [](const TrainStepEnd& event) { return event.position.step; }, [&taken](std::int64_t step) { taken += step >= 0; });
        });
    };
    const auto ask = [&](unsigned seed) {
        std::mt19937 random(seed);
        const std::string id = "guest_" + std::to_string(seed);
        bool is_there = false;
        while (asked++ < 10'000) {
            std::future<void> done;
            const auto kind = random() % 5;
            if (kind == 2) {
                done = toy.trainer->change_option("clip", "max_norm", 0.5 + static_cast<double>(random() % 100), id);
            } else if (kind == 3) {
                done = toy.trainer->change_option("optimizer", "learning_rate", 1e-3 * static_cast<double>(1 + random() % 100), id);
            } else if (kind == 4) {
                done = toy.trainer->change_option("evaluation", "every", std::to_string(20 + random() % 100) + "step", id);
            } else if (is_there) {
                done = toy.trainer->detach(id, "test");
            } else {
                done = toy.trainer->attach(guest(id, random() % 3), "test");
            }
            try {
                done.get();
            } catch (const std::exception&) {
                continue;  // `made` tells
            }
            if (kind >= 2) ++changed; else is_there = !is_there;
            ++made;
        }
        if (--threads == 0) toy.trainer->ask(Decision::StopRun, "test", "all is asked");
    };
    toy.trainer->start_training(toy_data(16), toy_data(8), {.epochs = 1'000'000, .batch_size = 4});
    std::vector<std::thread> askers;
    for (unsigned seed = 1; seed <= 3; ++seed) askers.emplace_back(ask, seed);
    toy.finish();
    for (std::thread& asker : askers) asker.join();
    CHECK(toy.trainer->result().outcome == Outcome::Stopped);
    CHECK(made == 10'000);
    CHECK(heard == changed);
    CHECK(taken > 0);
}

TEST_CASE("a change that is asked for too late for the run is made when it is over", "[trainer][composition]") {
    std::future<void> done;
    std::unique_ptr<Toy> toy;
    toy = std::make_unique<Toy>(std::vector<ComposedCallback>{declaring("tap", {}, [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<RunClosed>(Stage::Observe, [&](const RunClosed&) { done = toy->trainer->attach(ComposedCallback(make_gradient_clipping({})), "test"); });
    })});
    toy->train();
    REQUIRE(done.valid());
    done.get();
    CHECK(is_attached(*toy->trainer, "gradient_clipping"));
}

TEST_CASE("a provider that others need is not detached, unless they are optional and go with it", "[trainer][composition]") {
    Toy critical({provider(), reader(Fault::Critical)});
    CHECK_THROWS_WITH(critical.trainer->detach("provider", "operator").get(), "'provider' cannot be detached: 'reader' needs x, which only it publishes; detach 'reader' first");
    Toy optional({provider(), reader(Fault::Optional)});
    optional.start();
    optional.trainer->advance();
    auto left = optional.trainer->detach("provider", "operator");
    optional.finish();
    left.get();
    CHECK_FALSE(is_attached(*optional.trainer, "reader"));
}

TEST_CASE("a provider that fails too often takes a critical dependent's run with it", "[trainer][composition]") {
    auto failing = declaring("provider", {.publishes = {{"x", "train_step_end"}}, .subscriber = {.fault = Fault::Optional, .max_failures = 1}},
                             [](Attachment& run, Connections& connections) {
                                 connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [](const TrainStepEnd&) { throw std::runtime_error("no"); });
                             });
    Toy toy({std::move(failing), reader(Fault::Critical)});
    CHECK_THROWS_WITH(toy.train(3), "reader: it needs x, which 'provider' published, and 'provider' is detached");
}

TEST_CASE("all parts of a run are saved and put back", "[trainer][composition][run-state]") {
    RunState* state = nullptr;
    std::map<std::string, SavedState> saved;
    Toy toy({ComposedCallback("scaler", make_mixed_precision({.scale_loss = true})), declaring("saver", {}, [&](Attachment& run, Connections& connections) {
        state = &run.run_state;
        connections += run.bus.observe<TrainStepEnd>(Stage::Persist, [&](const TrainStepEnd& event) {
            if (event.position.step != 2) return;
            for (const std::string& part : state->parts()) {
                saved[part] = state->save(part);
                for (auto& [name, tensor] : saved[part].tensors) tensor = tensor.clone();
            }
        });
    })});
    toy.train();
    REQUIRE(state);
    CHECK(state->parts() == std::vector<std::string>{"model", "update", "generators", "connections", "options", "history", "blackboard", "position", "data", "decisions", "configuration", "callback.scaler",
                                                      "callback.saver"});
    CHECK(saved.at("position").values.at("step") == 2);
    CHECK(saved.at("data").values.at("batches") == 2);
    CHECK(saved.at("callback.scaler").values.contains("scale"));
    const auto trained = copies_of(toy.model->parameters());
    for (const char* part : {"model", "update", "generators", "connections", "history", "blackboard", "callback.scaler"}) state->load(part, saved.at(part));
    CHECK_FALSE(equal_bits(copies_of(toy.model->parameters()), trained));
    CHECK(torch::equal(state->save("model").tensors.at("0.weight"), saved.at("model").tensors.at("0.weight")));
    CHECK_THROWS_WITH(state->save("modle"), "a run has no part 'modle' that could be saved");
    saved.at("model").tensors.erase("0.weight");
    CHECK_THROWS_WITH(state->load("model", saved.at("model")), "the saved model has no tensor '0.weight'; is it of another model?");
}

TEST_CASE("what fails on a subscriber's thread at the very end still fails the run", "[trainer][composition][delivery]") {
    Toy toy({declaring("writer", {.on_thread = true}, [](Attachment& run, Connections& connections) {
        connections += run.bus.observe_on_thread<EpochCheckpoint>(Stage::Persist, [](const EpochCheckpoint& event) { return event.position.epoch; },
                                                                   [](std::int64_t) { throw std::runtime_error("the disk is full"); });
    })});
    CHECK_THROWS_WITH(toy.train(), "subscriber 'writer' failed on its thread at epoch_checkpoint: the disk is full");
}
