#include <thread>

#include <torchbus/callbacks/label_smoothing.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/event_trace.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

TrainerOptions options_for(torch::nn::Sequential& model, std::vector<ComposedCallback> callbacks = {}) {
    return {.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
            .callbacks = std::move(callbacks), .handle_signals = false};
}

/// Forward and loss of one model, for an update of its own.
StepFunction step_of(torch::nn::Sequential model) {
    return [model](const Batch& batch) mutable {
        at::Tensor output = model->forward(batch.inputs);
        return StepOutput{output, cross_entropy(output, batch.targets)};
    };
}

}  // namespace

TEST_CASE("GradientsReady answered `again` repeats forward and backward; metrics and counters happen once", "[trainer][again]") {
    auto model = toy_model();
    std::vector<int> passes;
    std::vector<std::int64_t> samples;
    int batches_ready = 0;
    Trainer trainer(options_for(model, {make_metrics(), callback_of("twice", [&](Attachment& run, Connections& connections) {
        connections += run.bus.intercept<BatchReady>([&](BatchReady&) { ++batches_ready; });
        connections += run.bus.observe<ForwardEnd>(Stage::Observe, [&](const ForwardEnd& event) { passes.push_back(event.micro_batch.pass); });
        connections += run.bus.intercept(Phase::Change, [](GradientsReady& event) { if (event.pass == 0) event.again(); });
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) { samples.push_back(event.position.samples); });
    })}));
    trainer.train(toy_data(8), {.epochs = 1, .batch_size = 4, .shuffle = false});
    CHECK(passes == std::vector<int>{0, 1, 0, 1});
    CHECK(samples == std::vector<std::int64_t>{4, 8});
    CHECK(batches_ready == 2);
    CHECK(trainer.position().step == 2);
}

TEST_CASE("the second pass of `again` starts from no gradient", "[trainer][again]") {
    auto model = toy_model(), plain = toy_model();
    const auto data = toy_data(4);
    std::vector<at::Tensor> gradients;
    Trainer trainer(options_for(model, {callback_of("twice", [&](Attachment& run, Connections& connections) {
        connections += run.bus.intercept(Phase::Change, [&](GradientsReady& event) {
            if (event.pass == 0) return event.again();
            gradients = copies_of(event.gradients.held());
        });
    })}));
    trainer.train(data, {.epochs = 1, .batch_size = 4, .shuffle = false});
    cross_entropy(plain->forward(data->inputs()), data->targets()).backward();
    CHECK(equal_bits(gradients, gradients_of(plain)));
}

TEST_CASE("`again` without end is refused", "[trainer][again]") {
    auto model = toy_model();
    Trainer trainer(options_for(model, {callback_of("forever", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept(Phase::Decide, [](GradientsReady& event) { event.again(); });
    })}));
    CHECK_THROWS_WITH(trainer.train(toy_data(4), {.batch_size = 4}),
                      "GradientsReady was answered `again` 4 times at step 0; raise max_passes in the plan, or let the subscriber give up");
}

TEST_CASE("two updates follow each other on each window, each with its own loss and rhythm", "[trainer][updates]") {
    auto first = toy_model(1), second = toy_model(2);
    std::vector<std::string> updates;
    Trainer trainer({.model = first,
                     .updates = {{"critic", make_sgd(first->parameters(), {.learning_rate = 0.1}), step_of(first), 1},
                                 {"generator", make_sgd(second->parameters(), {.learning_rate = 0.1}), step_of(second), 2}},
                     .callbacks = {callback_of("log", [&](Attachment& run, Connections& connections) {
                         connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) { updates.push_back(event.update.name); });
                     }), make_metrics()},
                     .handle_signals = false});
    const auto before = copies_of(second->parameters());
    trainer.train(toy_data(12), {.epochs = 1, .batch_size = 4});
    CHECK(updates == std::vector<std::string>{"critic", "generator", "critic", "critic", "generator"});
    CHECK(trainer.position().step == 5);
    CHECK(trainer.position().samples == 12);
    CHECK_FALSE(equal_bits(before, copies_of(second->parameters())));
    CHECK(trainer.history().latest("train.critic.loss").has_value());
    CHECK(trainer.history().latest("train.generator.loss").has_value());
}

TEST_CASE("advance() goes one transition at a time, and only on the thread that started the run", "[trainer][advance]") {
    auto model = toy_model(), other = toy_model();
    Trainer trainer(options_for(model));
    const auto data = toy_data(8);
    CHECK_THROWS_WITH(trainer.advance(), "advance() without a run; call start_training() first");
    trainer.start_training(data, {.epochs = 2, .batch_size = 4, .shuffle = false});
    std::vector<State> states = {trainer.state()};
    while (trainer.advance()) states.push_back(trainer.state());
    CHECK(states.front() == State::Ready);
    CHECK(trainer.state() == State::Closed);
    CHECK(std::ranges::count(states, State::RunningWindow) == 4);
    CHECK(std::ranges::count(states, State::Updating) == 4);
    Trainer whole(options_for(other));
    whole.train(data, {.epochs = 2, .batch_size = 4, .shuffle = false});
    CHECK(equal_bits(copies_of(model->parameters()), copies_of(other->parameters())));

    trainer.start_training(data, {.epochs = 1, .batch_size = 4});
    CHECK_THROWS_WITH(trainer.start_training(data, {.batch_size = 4}), "a run is under way (in ready); let it end, or ask it to stop, before the next one");
    std::string refusal;
    std::thread([&] {
        try {
            trainer.advance();
        } catch (const StateError& error) {
            refusal = error.what();
        }
    }).join();
    CHECK(refusal == "advance() was called from another thread than the one that started the run; "
                     "call it from that one, and ask() for decisions from any");
    while (trainer.advance()) {}
}

TEST_CASE("a decision may be asked for from another thread while the run goes on", "[trainer][thread]") {
    auto model = toy_model();
    Trainer trainer(options_for(model));
    trainer.start_training(toy_data(64), {.epochs = 100000, .batch_size = 4});
    std::thread operator_thread([&] { trainer.ask(Decision::StopRun, "operator", "lunch"); });
    while (trainer.advance()) {}
    operator_thread.join();
    CHECK(trainer.result().outcome == Outcome::Stopped);
    CHECK(trainer.result().requester == "operator");
}

TEST_CASE("skip_update and skip_batch leave the parameters; the attempt counts, the step does not", "[trainer][decision]") {
    for (const Decision decision : {Decision::SkipUpdate, Decision::SkipBatch}) {
        auto model = toy_model();
        std::vector<at::Tensor> before;
        Trainer trainer(options_for(model, {callback_of("skipper", [&](Attachment& run, Connections& connections) {
            connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) {
                if (event.position.attempts == 1) {
                    before = copies_of(model->parameters());
                    run.asker.ask(decision, "a spike");
                } else if (event.position.attempts == 2) {
                    CHECK(equal_bits(before, copies_of(model->parameters())));
                    CHECK(event.skipped);
                }
            });
        })}));
        trainer.train(toy_data(12), {.epochs = 1, .batch_size = 4, .shuffle = false});
        CHECK(trainer.position().attempts == 3);
        CHECK(trainer.position().step == 2);
    }
}

TEST_CASE("an interceptor of OutputReady may supply the loss; the loss function is then not called", "[trainer]") {
    auto model = toy_model();
    TrainerOptions options = options_for(model, {callback_of("own_loss", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept<OutputReady>([](OutputReady& event) { event.loss = event.output.tensor.square().mean(); });
    })});
    int calls = 0;
    options.loss = [&](const at::Tensor& output, const at::Tensor& targets) { ++calls; return cross_entropy(output, targets); };
    Trainer trainer(std::move(options));
    trainer.train(toy_data(8), {.batch_size = 4});
    CHECK(calls == 0);
}

TEST_CASE("several named evaluation splits each get their metrics, and evaluate() returns its own", "[trainer][evaluation]") {
    auto model = toy_model();
    Trainer trainer(options_for(model, {make_metrics({.accuracy = true})}));
    trainer.train(toy_data(16), toy_data(8, 3), {.epochs = 2, .batch_size = 4, .eval_splits = {{"noisy", toy_data(8, 5)}}});
    const auto& metrics = trainer.history().epochs().back().metrics;
    for (const char* name : {"train.loss", "train.accuracy", "eval.loss", "eval.accuracy", "eval.noisy.loss", "eval.noisy.accuracy"})
        CHECK(metrics.contains(name));
    CHECK(trainer.history().epochs().size() == 2);

    const auto data = toy_data(10, 6);
    const Metrics evaluated = trainer.evaluate(data, {.batch_size = 4});
    const at::NoGradGuard no_grad;
    model->eval();
    const at::Tensor output = model->forward(data->inputs());
    CHECK(evaluated.at("eval.loss") == Approx(cross_entropy(output, data->targets()).item<double>()).epsilon(1e-6));
    CHECK(evaluated.at("eval.accuracy") == Approx(output.argmax(1).eq(data->targets()).to(torch::kDouble).mean().item<double>()));
}

TEST_CASE("predict returns the outputs in the order of the dataset, in evaluation mode and without a graph", "[trainer][evaluation]") {
    torch::manual_seed(1);
    torch::nn::Sequential model(torch::nn::Linear(6, 8), torch::nn::Dropout(0.5), torch::nn::Linear(8, 3));
    Trainer trainer({.model = model, .handle_signals = false});
    const auto data = toy_data(10);
    const at::Tensor outputs = trainer.predict(data, {.batch_size = 3});
    model->eval();
    const at::NoGradGuard no_grad;
    CHECK_FALSE(outputs.requires_grad());
    CHECK(torch::allclose(outputs, model->forward(data->inputs())));
}

TEST_CASE("the summary counts parameters, frozen ones apart", "[trainer]") {
    auto model = toy_model();
    model->parameters()[0].requires_grad_(false);
    const std::string summary = Trainer(options_for(model)).summary();
    CHECK_THAT(summary, containing("0.weight") && containing("[8, 6]") && containing("83 parameters, 35 trainable"));
}

TEST_CASE("a trainer that lacks a part says which", "[trainer][errors]") {
    auto model = toy_model();
    const auto data = toy_data(8);
    CHECK_THROWS_WITH(Trainer({}), "the trainer has no model; give TrainerOptions::model");
    CHECK_THROWS_WITH(Trainer({.model = model}).train(data), "the trainer has no optimizer; give TrainerOptions::optimizer to train");
    TrainerOptions no_loss = options_for(model);
    no_loss.loss = {};
    CHECK_THROWS_WITH(Trainer(std::move(no_loss)).train(data), "the trainer has no loss; give TrainerOptions::loss, or a step function for every update");
    CHECK_THROWS_WITH(Trainer(options_for(model)).train(data, {.epochs = 0}), "epochs: 0 is too few; give at least 1");
    CHECK_THROWS_WITH(Trainer(options_for(model)).train(data, {.batch_size = 0}), "batch_size: 0 is not a batch size; give at least 1");
    CHECK_THROWS_WITH(Trainer(options_for(model)).train(data, {.batch_size = 9, .drop_last = true}),
                      "batch_size: 9 is above the 8 samples of an epoch, and drop_last leaves nothing; give a smaller batch or keep the last one");
    CHECK_THROWS_WITH(Trainer(options_for(model)).train(std::make_shared<TensorDataset>(torch::empty({0, 6}))), "the dataset is empty; there is nothing to load");
    CHECK_THROWS_WITH(Trainer(options_for(model)).train(data, data, {.eval_splits = {{"eval", data}}}), "two splits are called 'eval'; give one of them another name");
    TrainerOptions second_order = options_for(model);
    second_order.optimizer = std::make_shared<torch::optim::LBFGS>(model->parameters());
    CHECK_THROWS_WITH(Trainer(std::move(second_order)).train(data),
                      "L-BFGS evaluates the loss several times an update, which the trainer does not do yet; take another optimizer");
    for (const at::Tensor& parameter : model->parameters()) parameter.requires_grad_(false);
    CHECK_THROWS_WITH(Trainer(options_for(model)).train(data),
                      "the model has no trainable parameters in its optimizer; add some, or unfreeze one (requires_grad)");
}

TEST_CASE("a loss that is no scalar, or depends on nothing, is refused", "[trainer][errors]") {
    auto model = toy_model();
    TrainerOptions options = options_for(model);
    options.loss = [](const at::Tensor& output, const at::Tensor&) { return output.mean(1); };
    CHECK_THROWS_WITH(Trainer(std::move(options)).train(toy_data(8), {.batch_size = 4}), "the loss has shape [4], expected a scalar; reduce it, e.g. with mean()");
    options = options_for(model);
    options.loss = [](const at::Tensor& output, const at::Tensor&) { return output.detach().mean(); };
    CHECK_THROWS_WITH(Trainer(std::move(options)).train(toy_data(8)), "the loss does not depend on any trainable parameter; is everything frozen or detached?");
}

TEST_CASE("the signal asked for before the first step has nothing to save, and the run ends", "[trainer][signal]") {
    auto model = toy_model();
    int saves = 0;
    Trainer trainer(options_for(model, {callback_of("saver", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<StepCheckpoint>(Stage::Persist, [&](const StepCheckpoint&) { ++saves; });
        connections += run.bus.observe<TrainEpochStart>(Stage::Observe, [&run](const TrainEpochStart&) {
            run.asker.ask(Decision::SaveNow, "SIGTERM");
            run.asker.ask(Decision::StopRun, "SIGTERM");
        });
    })}));
    CHECK(trainer.train(toy_data(8)).outcome == Outcome::Stopped);
    CHECK(saves == 0);
}

TEST_CASE("a run without a known length trains on a stream, and its last window is short", "[trainer][data]") {
    class Stream final : public IterableDataset {
    public:
        void begin(SampleSeed) override { next_ = 0; }
        std::optional<Item> next() override {
            if (next_ == 10) return std::nullopt;
            return Item{torch::full({6}, static_cast<double>(next_++)), torch::tensor(1), {}, 0};
        }

    private:
        int next_ = 0;
    };
    auto model = toy_model();
    std::vector<std::int64_t> sizes;
    Trainer trainer(options_for(model, {callback_of("log", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<ForwardEnd>(Stage::Observe, [&](const ForwardEnd& event) { sizes.push_back(event.batch.samples); }, in(Mode::Train));
    })}));
    trainer.train(std::make_shared<Stream>(), toy_data(4), {.epochs = 2, .batch_size = 4});
    CHECK(sizes == std::vector<std::int64_t>{4, 4, 2, 4, 4, 2});
}

TEST_CASE("a request that came too late for one run is not asked of the next", "[trainer][decision]") {
    auto model = toy_model();
    Trainer trainer(options_for(model, {callback_of("late", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainingRunEnd>(Stage::Observe, [&run](const TrainingRunEnd&) { run.asker.ask(Decision::StopRun, "too late"); });
    })}));
    for (int run = 0; run < 2; ++run) CHECK(trainer.train(toy_data(8), {.batch_size = 4}).outcome == Outcome::Finished);
}

TEST_CASE("a run after one that failed begins anew", "[trainer]") {
    auto model = toy_model();
    bool broken = true;
    Trainer trainer(options_for(model, {make_metrics(), callback_of("broken", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<EvalStepEnd>(Stage::Observe, [&](const EvalStepEnd&) { if (broken) throw std::runtime_error("once"); });
    })}));
    CHECK_THROWS_AS(trainer.train(toy_data(8), toy_data(4), {.batch_size = 4}), SubscriberError);
    broken = false;
    CHECK(trainer.train(toy_data(8), toy_data(4), {.batch_size = 4}).outcome == Outcome::Finished);
    CHECK(trainer.position().step == 2);
    CHECK(trainer.history().epochs().size() == 1);
    trainer.evaluate(toy_data(4));
    CHECK(trainer.position().step == 2);  // an evaluation is told with the position of what it evaluates
}

TEST_CASE("an evaluation asked for without data is passed over, and the run goes on", "[trainer][decision]") {
    auto model = toy_model();
    Trainer trainer(options_for(model, {callback_of("curious", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&run](const TrainStepEnd&) { run.asker.ask(Decision::EvaluateNow, "curious"); });
    })}));
    CHECK(trainer.train(toy_data(8), {.batch_size = 4}).outcome == Outcome::Finished);
}

TEST_CASE("a window's batches are made ready and counted once, whichever update is due on it", "[trainer][updates]") {
    auto first = toy_model(1), second = toy_model(2);
    int ready = 0;
    std::vector<double> weights;
    Trainer trainer({.model = first,
                     .updates = {{"slow", make_sgd(first->parameters(), {}), step_of(first), 2}, {"fast", make_sgd(second->parameters(), {}), step_of(second), 1}},
                     .callbacks = {callback_of("log", [&](Attachment& run, Connections& connections) {
                         connections += run.bus.intercept<BatchReady>([&](BatchReady&) { ++ready; });
                         connections += run.bus.intercept<TrainStepStart>([&](TrainStepStart& event) {
                             weights.push_back(event.window.total_weight);
                             event.window.total_weight *= 2;  // as a reducer of two ranks does
                         });
                     })},
                     .handle_signals = false});
    trainer.train(toy_data(16), {.epochs = 1, .batch_size = 4});
    CHECK(ready == 4);
    CHECK(trainer.position().samples == 16);
    CHECK(weights == std::vector<double>(6, 4.0));
}

TEST_CASE("gradients that a failed run left do not enter the next", "[trainer]") {
    auto model = toy_model(), plain = toy_model();
    const auto data = toy_data(4);
    bool broken = true;
    std::vector<at::Tensor> gradients;
    Trainer trainer(options_for(model, {callback_of("broken", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<BackwardEnd>(Stage::Observe, [&](const BackwardEnd&) { if (broken) throw std::runtime_error("once"); });
        connections += run.bus.observe<GradientsReady>(Stage::Observe, [&](const GradientsReady& event) { gradients = copies_of(event.gradients.held()); });
    })}));
    CHECK_THROWS_AS(trainer.train(data, {.batch_size = 4, .shuffle = false}), SubscriberError);
    broken = false;
    trainer.train(data, {.batch_size = 4, .shuffle = false});
    cross_entropy(plain->forward(data->inputs()), data->targets()).backward();
    CHECK(equal_bits(gradients, gradients_of(plain)));
}

TEST_CASE("a tap that throws at every event still lets the run fail and close", "[trainer][fault]") {
    auto model = toy_model();
    int closed = 0;
    Trainer trainer(options_for(model, {callback_of("tap", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe_all(Stage::Observe, [&](const AnyEvent& event) {
            if (event.name() == "run_closed") ++closed;
            throw std::runtime_error("always");
        });
    })}));
    for (int run = 1; run <= 2; ++run) {
        CHECK_THROWS_WITH(trainer.train(toy_data(4)), Catch::Matchers::StartsWith("subscriber 'tap' failed at ") && Catch::Matchers::EndsWith(": always"));
        CHECK(trainer.state() == State::Closed);
        CHECK(closed == run);
    }
}

TEST_CASE("advance() within a slot is refused", "[trainer][advance]") {
    auto model = toy_model();
    Trainer trainer(options_for(model));
    auto subscriber = trainer.subscribe("greedy");
    const auto connection = subscriber.observe<TrainStepStart>(Stage::Observe, [&](const TrainStepStart&) { trainer.advance(); });
    CHECK_THROWS_WITH(trainer.train(toy_data(4)), Catch::Matchers::EndsWith("advance() was called from within a slot; ask() for a decision instead"));
}

TEST_CASE("the plan is looked at after RunConfigured", "[trainer][errors]") {
    const auto error_with = [](std::function<void(RunPlan&)> change) -> std::string {
        auto model = toy_model();
        Trainer trainer(options_for(model, {callback_of("meddler", [=](Attachment& run, Connections& connections) {
            connections += run.bus.intercept<RunConfigured>([=](RunConfigured& event) { change(event.plan); });
        })}));
        try {
            trainer.train(toy_data(4));
        } catch (const ConfigError& error) {
            return error.what();
        }
        return "no error";
    };
    CHECK(error_with([](RunPlan& plan) { plan.micro_batches_per_step = 0; }) == "the plan, after RunConfigured: micro_batches_per_step must be at least 1");
    CHECK(error_with([](RunPlan& plan) { plan.views.clear(); }) == "the plan, after RunConfigured: an evaluation needs at least one weights view");
    CHECK(error_with([](RunPlan& plan) { plan.splits.clear(); }) == "the plan, after RunConfigured: splits may be limited, but neither added nor removed");
    CHECK(error_with([](RunPlan& plan) { plan.max_steps = 0; }) == "the plan, after RunConfigured: max_steps must be at least 1; leave it out to train all epochs");
    auto model = toy_model();
    CHECK_THROWS_WITH(Trainer(options_for(model)).train(std::shared_ptr<const Dataset>()), "there is no dataset; give one");
}

TEST_CASE("a batch that is skipped moves no weight, decay included", "[trainer][decision]") {
    auto model = toy_model();
    std::vector<at::Tensor> before;
    TrainerOptions options = options_for(model, {callback_of("skipper", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) {
            if (event.position.attempts == 1) {
                before = copies_of(model->parameters());
                run.asker.ask(Decision::SkipBatch, "a spike");
            } else {
                CHECK(event.skipped);
                CHECK(equal_bits(before, copies_of(model->parameters())));
            }
        });
    })});
    options.optimizer = make_adamw(model->parameters(), {.weight_decay = 0.5});
    int calls = 0;
    options.loss = [&](const at::Tensor& output, const at::Tensor& targets) {
        return cross_entropy(output, targets) * (++calls == 2 ? std::numeric_limits<double>::infinity() : 1.0);
    };
    Trainer(std::move(options)).train(toy_data(8), {.batch_size = 4});
}

TEST_CASE("a refused start leaves the run under way as it is", "[trainer]") {
    auto model = toy_model();
    Trainer trainer(options_for(model, {make_metrics()}));
    trainer.start_training(toy_data(4), {.epochs = 2});
    while (trainer.history().epochs().size() < 1) trainer.advance();
    CHECK_THROWS_AS(trainer.start_training(toy_data(4)), StateError);
    CHECK(trainer.history().epochs().size() == 1);
    while (trainer.advance()) {}
}

TEST_CASE("evaluate() returns the metrics of its own split only", "[trainer][evaluation]") {
    auto model = toy_model();
    Trainer trainer(options_for(model, {make_metrics()}));
    trainer.train(toy_data(8), toy_data(4), {.eval_splits = {{"noisy", toy_data(4, 9)}}});
    const Metrics metrics = trainer.evaluate(toy_data(4));
    CHECK(metrics.size() == 1);
    CHECK(metrics.contains("eval.loss"));
}

TEST_CASE("a prediction that was stopped is not handed out as whole", "[trainer][evaluation]") {
    auto model = toy_model();
    Trainer trainer(options_for(model));
    trainer.ask(Decision::StopRun, "operator", "lunch");
    CHECK_THROWS_WITH(trainer.predict(toy_data(64), {.batch_size = 1}), "the prediction was stopped by operator (lunch); its outputs are not complete");
}

TEST_CASE("two updates of different rhythm have the length that is announced", "[trainer][updates]") {
    auto model = toy_model();
    std::optional<std::int64_t> announced;
    Trainer trainer({.model = model, .loss = cross_entropy,
                     .updates = {{"a", make_sgd(model->parameters(), {}), {}, 1}, {"b", make_sgd(model->parameters(), {}), {}, 2}},
                     .callbacks = {callback_of("log", [&](Attachment& run, Connections& connections) {
                         connections += run.bus.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) { announced = run.moment.length.steps; });
                     })},
                     .handle_signals = false});
    trainer.train(toy_data(12), {.epochs = 2, .batch_size = 4});
    CHECK(announced == trainer.position().step);
    trainer.train(toy_data(12), {.epochs = 2, .max_steps = 1, .batch_size = 4});
    CHECK(trainer.position().step == 1);
}

TEST_CASE("a label that is no class of the model is named, with its sample and what is expected", "[trainer]") {
    auto data = toy_data(8);
    data->targets()[5] = 3;
    auto model = toy_model();
    const std::string told = "sample 5: its label is 3, expected 0 to 2, as the model has 3 outputs; give the model more classes, or mend the label";
    CHECK_THROWS_WITH(Trainer(options_for(model)).train(data, {.batch_size = 4, .shuffle = false}), told);
    TrainerOptions smoothed = options_for(model);
    smoothed.callbacks.emplace_back(make_label_smoothing());
    CHECK_THROWS_WITH(Trainer(std::move(smoothed)).train(data, {.batch_size = 4, .shuffle = false}),
                      "subscriber 'label_smoothing' failed at output_ready (epoch 0, step 1): " + told);
    data->targets()[5] = -100;  // not counted by cross entropy
    CHECK(Trainer(options_for(model)).train(data, {.batch_size = 4, .shuffle = false}).outcome == Outcome::Finished);
}

TEST_CASE("batches are transformed for training, and by a transform of their own for evaluation and prediction", "[trainer]") {
    auto model = toy_model();
    const auto data = toy_data(8);
    TrainerOptions options = options_for(model);
    std::map<int, std::vector<double>> sums;  // by mode
    constexpr int kTrain = static_cast<int>(Mode::Train), kEval = static_cast<int>(Mode::Eval), kPredict = static_cast<int>(Mode::Predict);
    options.callbacks.push_back(callback_of("onlooker", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<ForwardStart>(Stage::Observe, [&](const ForwardStart& event) { sums[static_cast<int>(event.scope.mode)].push_back(event.batch.inputs.sum().item<double>()); });
    }));
    Trainer trainer(std::move(options));
    const auto filled_with = [](double value) { return [value](Batch& batch, std::uint64_t) { batch.inputs = torch::full_like(batch.inputs, value); }; };
    trainer.train(data, data, {.batch_size = 8, .transform = filled_with(1), .eval_transform = filled_with(2)});
    CHECK(sums == std::map<int, std::vector<double>>{{kTrain, {48}}, {kEval, {96}}});
    sums.clear();
    trainer.evaluate(data, {.batch_size = 8, .transform = filled_with(3)});
    trainer.predict(data, {.batch_size = 8, .transform = filled_with(4)});
    CHECK(sums == std::map<int, std::vector<double>>{{kEval, {144}}, {kPredict, {192}}});
}

TEST_CASE("a stream is evaluated and predicted like a dataset with a length", "[trainer]") {
    class Stream final : public IterableDataset {
    public:
        void begin(SampleSeed) override { next_ = 0; }
        std::optional<Item> next() override {
            if (next_ == data_->size()) return std::nullopt;
            const std::int64_t at = next_++;
            return Item{data_->inputs()[at], data_->targets()[at], {}, 0};
        }

    private:
        std::shared_ptr<TensorDataset> data_ = toy_data(10);
        std::int64_t next_ = 0;
    };
    auto model = toy_model();
    TrainerOptions options = options_for(model);
    options.callbacks.emplace_back(make_metrics({.accuracy = true}));
    Trainer trainer(std::move(options));
    const auto stream = std::make_shared<Stream>();
    CHECK(trainer.evaluate(stream, {.batch_size = 4}) == trainer.evaluate(toy_data(10), {.batch_size = 4}));
    CHECK(trainer.predict(stream, {.batch_size = 4}).equal(trainer.predict(toy_data(10), {.batch_size = 4})));
    trainer.train(stream, stream, {.batch_size = 4});
    CHECK(trainer.history().latest("eval.accuracy").has_value());
}

TEST_CASE("a save that is asked for before the first step is said to have nothing to save", "[trainer]") {
    auto model = toy_model();
    Trainer trainer(options_for(model));
    int saves = 0;
    Subscriber saver = trainer.subscribe("saver");
    const Connection connection = saver.observe<StepCheckpoint>(Stage::Persist, [&](const StepCheckpoint&) { ++saves; });
    trainer.ask(Decision::SaveNow, "user", "at once");
    const CapturedStderr captured;
    trainer.train(toy_data(8), {.batch_size = 4});
    CHECK(captured.text() == "torchbus: warning: user: at once; no step has been made yet, so there is nothing to save\n");
    CHECK(saves == 0);
}

TEST_CASE("a subscriber that takes more time than it was given is named when the run is over", "[trainer]") {
    class Slow final : public Callback {
    public:
        std::string kind() const override { return "slow"; }
        Declaration declare() const override { return {.subscriber = {.budget_us = 1.0}}; }
        void attach(Attachment& run) override {
            connections_ += run.bus.observe<TrainStepEnd>(Stage::Observe, [](const TrainStepEnd&) { std::this_thread::sleep_for(std::chrono::milliseconds(2)); });
        }
        void detach() override { connections_.clear(); }

    private:
        Connections connections_;
    };
    auto model = toy_model();
    Trainer trainer(options_for(model, {ComposedCallback(std::make_shared<Slow>())}));
    const CapturedStderr captured;
    trainer.train(toy_data(8), {.batch_size = 4});
    CHECK_THAT(captured.text(), Catch::Matchers::StartsWith("torchbus: warning: 'slow' took ") && Catch::Matchers::EndsWith(" µs a call on average, over its budget of 1.0 µs\n"));
}

TEST_CASE("an output is gone before backward: nothing of the trainer's holds it", "[trainer]") {
    auto model = toy_model();
    std::vector<bool> gone;
    c10::weak_intrusive_ptr<c10::TensorImpl> output(c10::intrusive_ptr<c10::TensorImpl>{});
    Trainer trainer(options_for(model, {make_metrics({.accuracy = true}), callback_of("onlooker", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<ForwardEnd>(Stage::Persist, [&](const ForwardEnd& event) { output = event.output.tensor.getIntrusivePtr(); });
        connections += run.bus.observe<BackwardStart>(Stage::Observe, [&](const BackwardStart&) { gone.push_back(output.expired()); });
    })}));
    trainer.train(toy_data(8), {.batch_size = 4});
    CHECK(gone == std::vector<bool>{true, true});
}
