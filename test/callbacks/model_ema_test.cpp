#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/model_ema.hpp>
#include <torchbus/error.hpp>

#include "support/alone_on_bus.hpp"
#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

json references() { return json::parse(std::ifstream(source_root() + "/test/references/averaging.json")); }

at::Tensor tensor_of(const json& numbers) { return torch::tensor(numbers.get<std::vector<double>>(), torch::kFloat); }

struct ModelEmaSetup {
    torch::nn::Sequential model;
    Trainer trainer;
    explicit ModelEmaSetup(std::vector<ComposedCallback> callbacks, torch::nn::Sequential its_model = toy_model(), double learning_rate = 0.5)
        : model(std::move(its_model)),
          trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), learning_rate),
                   .callbacks = std::move(callbacks), .handle_signals = false}) {}
};

torch::nn::Sequential model_with_batch_norm() {
    torch::manual_seed(1);
    return torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8), torch::nn::Linear(8, 3));
}

ComposedCallback skipper(std::int64_t attempt) {
    return callback_of("skipper", [=](Attachment& run, Connections& connections) {
        connections += run.bus.intercept(Phase::Decide, [=](GradientsReady& event) { if (event.position.attempts == attempt) event.skip("skipper", "test"); });
    });
}

}  // namespace

TEST_CASE("averages follow timm's formula, with and without warm-up", "[callbacks][model-ema]") {
    const json reference = references();
    const std::vector<Update> updates(1);
    for (const json& course : reference["ema"]) {
        INFO(course.at("warmup") << " " << course.at("decay"));
        ModelEmaOptions options;
        options.decay = course.at("decay");
        options.warmup = course.at("warmup") == "power" ? ModelEmaOptions::Warmup::Power : ModelEmaOptions::Warmup::None;
        options.start_step = course.at("start_step");
        AloneOnBus alone(make_model_ema(options));
        torch::nn::Linear linear(torch::nn::LinearOptions(3, 1).bias(false));
        const auto set = [&](const json& numbers) { linear->weight.data().copy_(tensor_of(numbers).view({1, 3})); };
        Model model(linear);
        RunPlan plan;
        plan.splits = {{"train", Mode::Train}};
        std::vector<Update> own_updates = updates;
        alone.bus().emit(RunConfigured{{}, plan, model, own_updates});
        set(reference["weights"][0]);
        alone.bus().emit(TrainEpochStart{});
        for (std::size_t step = 1; step < reference["weights"].size(); ++step) {
            set(reference["weights"][step]);
            alone.bus().emit(OptimizerStepEnd{{}, own_updates[0]});
            const at::Tensor average = alone.callback().state().tensors.at("weight").view({3});
            CHECK(torch::allclose(average, tensor_of(course["averages"][step - 1]), 1e-6, 1e-7));
        }
    }
}

TEST_CASE("an evaluation shows the average beside the weights, whose bits are put back", "[callbacks][model-ema]") {
    std::vector<at::Tensor> before, shown, after;
    std::vector<std::string> views;
    ModelEmaSetup setup({make_metrics(), make_model_ema({.decay = 0.5})});
    auto tap = setup.trainer.subscribe("tap");
    Connections connections;
    connections += tap.observe<TrainEpochEnd>(Stage::Observe, [&](const TrainEpochEnd&) { before = copies_of(setup.model->parameters()); });
    connections += tap.observe<EvalEpochStart>(Stage::Observe, [&](const EvalEpochStart& event) {
        views.emplace_back(event.scope.view);
        if (event.scope.view == "ema") shown = copies_of(setup.model->parameters());
    });
    connections += tap.observe<TrainingRunEpochEnd>(Stage::Observe, [&](const TrainingRunEpochEnd&) { after = copies_of(setup.model->parameters()); });
    setup.trainer.train(toy_data(16), toy_data(8, 3), {.batch_size = 4});
    CHECK(views == std::vector<std::string>{"training", "ema"});
    CHECK(equal_bits(before, after));
    CHECK_FALSE(equal_bits(before, shown));
    CHECK(setup.trainer.history().latest("eval.loss").has_value());
    CHECK(setup.trainer.history().latest("eval.ema.loss").value() != setup.trainer.history().latest("eval.loss").value());
    // and once more after the run, where the average is that of its end
    const Metrics metrics = setup.trainer.evaluate(toy_data(8, 3), {.batch_size = 4});
    CHECK(metrics.at("eval.ema.loss") == Approx(setup.trainer.history().latest("eval.ema.loss").value()));
    CHECK(equal_bits(after, copies_of(setup.model->parameters())));
}

TEST_CASE("training goes the same way with an average as without, evaluations in between included", "[callbacks][model-ema]") {
    ModelEmaSetup plain({make_metrics()}), averaged({make_metrics(), make_model_ema()});
    for (ModelEmaSetup* setup : {&plain, &averaged}) setup->trainer.train(toy_data(16), toy_data(8, 3), {.epochs = 3, .batch_size = 4, .shuffle = false});
    CHECK(equal_bits(copies_of(plain.model->parameters()), copies_of(averaged.model->parameters())));
}

TEST_CASE("several averages live side by side under views of their own", "[callbacks][model-ema]") {
    const std::shared_ptr<Callback> slow = make_model_ema({.decay = 0.9, .view = "slow"}), fast = make_model_ema({.decay = 0.1, .view = "fast"});
    ModelEmaSetup setup({make_metrics(), ComposedCallback("slow", slow), ComposedCallback("fast", fast)});
    setup.trainer.train(toy_data(16), toy_data(8, 3), {.batch_size = 4});
    CHECK(setup.trainer.history().latest("eval.slow.loss").has_value());
    CHECK(setup.trainer.history().latest("eval.fast.loss").has_value());
    CHECK_FALSE(slow->state().tensors.at("0.weight").equal(fast->state().tensors.at("0.weight")));
    CHECK_THROWS_WITH(ModelEmaSetup({ComposedCallback("one", make_model_ema()), ComposedCallback("two", make_model_ema())}),
                      "'one' and 'two' both hold the weights view 'ema'; give one of them a view of another name");
}

TEST_CASE("a skipped update leaves the average alone, and every n updates means those made", "[callbacks][model-ema]") {
    const std::shared_ptr<Callback> ema = make_model_ema({.decay = 0.5, .every = 2});
    ModelEmaSetup setup({ema, skipper(1)});
    setup.trainer.train(toy_data(16), {.batch_size = 4});  // four attempts, three updates
    CHECK(ema->state().values.at("steps") == 3);
    CHECK(ema->state().values.at("averages") == 1);
}

TEST_CASE("buffers are copied, averaged or left as they are", "[callbacks][model-ema]") {
    using Buffers = ModelEmaOptions::Buffers;
    for (const Buffers buffers : {Buffers::Copy, Buffers::Average, Buffers::None}) {
        const std::shared_ptr<Callback> ema = make_model_ema({.decay = 0.9, .buffers = buffers});
        ModelEmaSetup setup({make_metrics(), ema}, model_with_batch_norm());
        at::Tensor trained, shown;
        auto tap = setup.trainer.subscribe("tap");
        const auto connection = tap.observe<EvalEpochStart>(Stage::Observe, [&](const EvalEpochStart& event) {
            (event.scope.view == "ema" ? shown : trained) = setup.model->named_buffers()["1.running_mean"].clone();
        });
        setup.trainer.train(toy_data(16), toy_data(8, 3), {.batch_size = 4});
        CHECK(shown.equal(trained) == (buffers != Buffers::Average));
        CHECK(ema->state().tensors.contains("buffer:1.running_mean") == (buffers != Buffers::None));
        CHECK(setup.model->named_buffers()["1.running_mean"].equal(trained));
    }
}

TEST_CASE("weights in bfloat16 are averaged in float32", "[callbacks][model-ema]") {
    torch::nn::Sequential model = toy_model();
    model->to(torch::kBFloat16);
    const std::shared_ptr<Callback> ema = make_model_ema({.decay = 0.999});
    Trainer trainer({.model = model, .loss = [](const at::Tensor& output, const at::Tensor& targets) { return cross_entropy(output.to(torch::kFloat), targets); },
                     .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.5), .callbacks = {ema}, .handle_signals = false});
    auto data = toy_data(16);
    trainer.train(std::make_shared<TensorDataset>(data->inputs().to(torch::kBFloat16), data->targets()),
                  std::make_shared<TensorDataset>(data->inputs().to(torch::kBFloat16), data->targets()), {.batch_size = 4});
    CHECK(ema->state().tensors.at("0.weight").scalar_type() == torch::kFloat);
    CHECK(model->parameters()[0].scalar_type() == torch::kBFloat16);
}

TEST_CASE("a run that goes on from a saved average ends with the average of the whole run", "[callbacks][model-ema]") {
    const ModelEmaOptions options{.decay = 0.9, .warmup = ModelEmaOptions::Warmup::Power};
    const std::shared_ptr<Callback> whole = make_model_ema(options), first = make_model_ema(options), second = make_model_ema(options);
    ModelEmaSetup at_once({whole}), begun({first});
    at_once.trainer.train(toy_data(16), {.epochs = 2, .batch_size = 4, .shuffle = false});
    begun.trainer.train(toy_data(16), {.epochs = 1, .batch_size = 4, .shuffle = false});
    ModelEmaSetup resumed({second}, begun.model);
    second->load_state({json::parse(first->state().values.dump()), first->state().tensors});
    resumed.trainer.train(toy_data(16), {.epochs = 1, .batch_size = 4, .shuffle = false});
    for (const auto& [name, average] : whole->state().tensors) CHECK(average.equal(second->state().tensors.at(name)));
    // a further run begins anew, with the weights it finds
    resumed.trainer.train(toy_data(4), {.batch_size = 4});
    CHECK(second->state().values.at("steps") == 1);
}

TEST_CASE("an average of another model is refused", "[callbacks][model-ema]") {
    const std::shared_ptr<Callback> ema = make_model_ema();
    ema->load_state({{{"steps", 1}, {"averages", 1}}, {{"0.weight", torch::zeros({2, 2})}}});
    ModelEmaSetup setup({ema});
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(4), {.batch_size = 4}),
                      containing("the saved average of '0.weight' has another shape than the model's; is it of another model?"));
}

TEST_CASE("detaching while the average is shown puts the weights back", "[callbacks][model-ema]") {
    ModelEmaSetup setup({make_metrics(), make_model_ema({.decay = 0.5})});
    setup.trainer.start_training(toy_data(16), toy_data(64, 3), {.batch_size = 4});
    std::vector<at::Tensor> trained;
    bool asked = false;
    auto tap = setup.trainer.subscribe("tap");
    Connections connections;
    connections += tap.observe<TrainEpochEnd>(Stage::Observe, [&](const TrainEpochEnd&) { trained = copies_of(setup.model->parameters()); });
    connections += tap.observe<EvalEpochStart>(Stage::Observe, [&](const EvalEpochStart& event) {
        if (event.scope.view == "ema" && !std::exchange(asked, true)) (void)setup.trainer.detach("model_ema", "test");
    });
    while (setup.trainer.advance()) {}
    CHECK(asked);
    CHECK(equal_bits(trained, copies_of(setup.model->parameters())));
}

TEST_CASE("a save within an evaluation of the average is of the trained weights", "[callbacks][model-ema]") {
    ModelEmaSetup setup({make_metrics(), make_model_ema({.decay = 0.5})}, model_with_batch_norm());
    std::vector<at::Tensor> trained, saved;
    std::vector<at::Tensor> shown;  // at the start of the view, and at its end
    std::int64_t steps = 0;
    auto tap = setup.trainer.subscribe("tap");
    Connections connections;
    connections += tap.observe<TrainEpochEnd>(Stage::Observe, [&](const TrainEpochEnd&) { trained = copies_of(setup.model->parameters()); });
    connections += tap.observe<EvalStepEnd>(Stage::Observe, [&](const EvalStepEnd& event) {
        if (event.scope.view != "ema") return;
        ++steps;
        shown.push_back(setup.model->parameters()[0].detach().clone());
        if (steps == 2) setup.trainer.ask(Decision::SaveNow, "test", "within the view");
    });
    connections += tap.observe<StepCheckpoint>(Stage::Observe, [&](const StepCheckpoint&) { saved = copies_of(setup.model->parameters()); });
    setup.trainer.train(toy_data(16), toy_data(64, 3), {.batch_size = 4});
    REQUIRE(steps == 16);
    CHECK(equal_bits(saved, trained));
    CHECK(shown.front().equal(shown.back()));
    CHECK_FALSE(shown.front().equal(trained[0]));
}

TEST_CASE("attached while a run is under way, it averages from there on", "[callbacks][model-ema]") {
    ModelEmaSetup setup({make_metrics()});
    auto tap = setup.trainer.subscribe("tap");
    std::vector<at::Tensor> expected;
    const auto connection = tap.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) {
        if (event.position.step == 2) (void)setup.trainer.attach(ComposedCallback(make_model_ema({.decay = 0.5})), "test");
        const auto weights = copies_of(setup.model->parameters());
        if (event.position.step == 3) expected = weights;  // the first average copies
        for (std::size_t i = 0; event.position.step > 3 && i < weights.size(); ++i) expected[i].lerp_(weights[i], 0.5);
    });
    std::vector<at::Tensor> shown;
    const auto looking = tap.observe<EvalEpochStart>(Stage::Observe, [&](const EvalEpochStart& event) {
        if (event.scope.view == "ema") shown = copies_of(setup.model->parameters());
    });
    CHECK(setup.trainer.train(toy_data(24), toy_data(8, 3), {.epochs = 1, .batch_size = 4}).outcome == Outcome::Finished);
    CHECK(setup.trainer.history().latest("eval.ema.loss").has_value());
    REQUIRE(shown.size() == expected.size());
    CHECK(relative_difference(shown, expected) < 1e-6);
}

TEST_CASE("detached while a run is under way, its view is evaluated no more", "[callbacks][model-ema]") {
    ModelEmaSetup setup({make_metrics(), make_model_ema()});
    auto tap = setup.trainer.subscribe("tap");
    std::vector<std::string> views;
    const auto looking = tap.observe<EvalEpochEnd>(Stage::Observe, [&](const EvalEpochEnd& event) { views.emplace_back(event.scope.view); });
    std::future<void> gone;
    // Asked for within the evaluation of the view, it waits until that is over.
    const auto asking = tap.observe<EvalStepEnd>(Stage::Observe, [&](const EvalStepEnd& event) {
        if (event.scope.view == "ema" && event.step == 0 && !gone.valid()) gone = setup.trainer.detach("model_ema", "test");
    });
    setup.trainer.train(toy_data(16), toy_data(64, 3), {.epochs = 2, .batch_size = 4});
    gone.get();
    CHECK(views == std::vector<std::string>{"training", "ema", "training"});
}

TEST_CASE("model_ema refuses options out of range", "[callbacks][model-ema]") {
    CHECK_THROWS_WITH(make_model_ema({.decay = 1}), "model_ema: decay: 1 is out of range; give a number in [0, 1), e.g. 0.9999");
    CHECK_THROWS_WITH(make_model_ema({.every = 0}), "model_ema: every: 0 is out of range; give at least 1 update");
    CHECK_THROWS_WITH(make_model_ema({.view = ""}), "model_ema: view: it has no name; give one, e.g. ema");
    ModelEmaSetup setup({make_model_ema({.update = "generator"})});
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(4)), "model_ema: update: there is no update 'generator'");
}
