#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/stochastic_weight_averaging.hpp>
#include <torchbus/error.hpp>

#include "support/alone_on_bus.hpp"
#include "support/callback_of.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

json references() { return json::parse(std::ifstream(source_root() + "/test/references/averaging.json")); }
at::Tensor vector_of(const json& numbers) { return torch::tensor(numbers.get<std::vector<double>>(), torch::kFloat); }
at::Tensor matrix_of(const json& rows) {
    std::vector<at::Tensor> tensors;
    for (const json& row : rows) tensors.push_back(vector_of(row));
    return torch::stack(tensors);
}

struct StochasticWeightAveragingSetup {
    torch::nn::Sequential model;
    Trainer trainer;
    explicit StochasticWeightAveragingSetup(std::vector<ComposedCallback> callbacks, torch::nn::Sequential its_model = toy_model())
        : model(std::move(its_model)),
          trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.5),
                   .callbacks = std::move(callbacks), .handle_signals = false}) {}
};

torch::nn::Sequential model_with_batch_norm(bool dropout = false) {
    torch::manual_seed(1);
    torch::nn::Sequential model(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8));
    if (dropout) model->push_back(torch::nn::Dropout(0.5));
    model->push_back(torch::nn::Linear(8, 3));
    return model;
}

std::shared_ptr<Callback> averaging(StochasticWeightAveragingOptions options) { return make_stochastic_weight_averaging(std::move(options)); }

}  // namespace

TEST_CASE("the average is that of torch's AveragedModel", "[callbacks][stochastic-weight-averaging]") {
    const json reference = references();
    AloneOnBus alone(averaging({.start = "0step", .every = "1step"}));
    torch::nn::Linear linear(torch::nn::LinearOptions(3, 1).bias(false));
    Model model(linear);
    RunPlan plan;
    plan.splits = {{"train", Mode::Train}};
    std::vector<Update> updates(1);
    alone.bus().emit(RunConfigured{{}, plan, model, updates});
    alone.bus().emit(TrainEpochStart{});
    for (std::size_t step = 0; step < reference["weights"].size(); ++step) {
        linear->weight.data().copy_(vector_of(reference["weights"][step]).view({1, 3}));
        alone.bus().moment().position.step = static_cast<std::int64_t>(step) + 1;
        alone.bus().emit(OptimizerStepEnd{{}, updates[0]});
        CHECK(torch::allclose(alone.callback().state().tensors.at("weight").view({3}), vector_of(reference["swa"][step]), 1e-6, 1e-7));
    }
}

TEST_CASE("from three quarters of the run on, the weights at the end of each epoch are averaged", "[callbacks][stochastic-weight-averaging]") {
    const std::shared_ptr<Callback> swa = averaging({});
    StochasticWeightAveragingSetup setup({make_metrics(), swa});
    std::vector<std::vector<at::Tensor>> ends;
    std::vector<at::Tensor> shown, after;
    auto tap = setup.trainer.subscribe("tap");
    Connections connections;
    connections += tap.observe<TrainEpochEnd>(Stage::Observe, [&](const TrainEpochEnd&) { ends.push_back(copies_of(setup.model->parameters())); });
    connections += tap.observe<EvalEpochStart>(Stage::Observe, [&](const EvalEpochStart& event) {
        if (event.scope.view == "swa") shown = copies_of(setup.model->parameters());
        if (event.scope.view == "swa" && ends.size() < 3) CHECK(equal_bits(shown, ends.back()));  // not begun: the trained weights
    });
    setup.trainer.train(toy_data(16), toy_data(8, 3), {.epochs = 4, .batch_size = 4});
    CHECK(swa->state().values.at("averages") == 2);  // after epochs 3 and 4
    std::vector<at::Tensor> expected;
    for (std::size_t i = 0; i < ends[2].size(); ++i) expected.push_back((ends[2][i] + ends[3][i]) / 2);
    CHECK(relative_difference(shown, expected) < 1e-6);
    CHECK(equal_bits(ends[3], copies_of(setup.model->parameters())));
    CHECK(setup.trainer.history().latest("eval.swa.loss").has_value());
    CHECK_FALSE(swa->state().values.at("batches") > 0);  // no batch norm: none is kept
}

TEST_CASE("batch-norm statistics of the average are those of torch's update_bn over the same batches", "[callbacks][stochastic-weight-averaging]") {
    const json all = references();
    for (const json& reference : all["batch_statistics"]) {
        AloneOnBus alone(averaging({.start = "0step", .every = "1step", .batches = 3}));
        torch::nn::Linear linear(3, 2);
        torch::nn::BatchNorm1d norm(torch::nn::BatchNorm1dOptions(2).momentum(reference["momentum"].get<double>()));
        linear->weight.data().copy_(matrix_of(reference["weight"]));
        linear->bias.data().copy_(vector_of(reference["bias"]));
        Model model(torch::nn::Sequential(linear, norm));
        RunPlan plan;
        plan.splits = {{"train", Mode::Train}, {"eval", Mode::Eval}};
        std::vector<Update> updates(1);
        alone.bus().emit(RunConfigured{{}, plan, model, updates});
        CHECK(plan.views == std::vector<std::string>{"training", "swa"});
        alone.bus().emit(TrainEpochStart{});
        const Output output;
        const at::Tensor loss;
        // A fourth batch ahead of them, of another kind, has to be forgotten.
        for (int i = -1; i < 3; ++i) {
            Batch batch;
            batch.inputs = i < 0 ? torch::full({4, 3}, 100.0f) : matrix_of(reference["batches"][static_cast<std::size_t>(i)]);
            alone.bus().emit(ForwardEnd{{}, {Mode::Train, "train", "training"}, {}, batch, output, loss});
            batch.inputs.zero_();  // what is kept is a copy
        }
        alone.bus().emit(OptimizerStepEnd{{}, updates[0]});
        const at::Tensor mean = norm->running_mean.clone(), variance = norm->running_var.clone();
        for (int again = 0; again < 2; ++again) {
            alone.bus().emit(WeightsViewChanged{{}, "training", "swa"});
            CHECK(torch::allclose(norm->running_mean, vector_of(reference["running_mean"]), 1e-6, 1e-6));
            CHECK(torch::allclose(norm->running_var, vector_of(reference["running_var"]), 1e-6, 1e-6));
            alone.bus().emit(WeightsViewChanged{{}, "swa", "training"});
            CHECK(norm->running_mean.equal(mean));
            CHECK(norm->running_var.equal(variance));
        }
    }
}

TEST_CASE("the forwards for batch norm draw no numbers of the run's: training goes the same way", "[callbacks][stochastic-weight-averaging]") {
    StochasticWeightAveragingSetup plain({make_metrics()}, model_with_batch_norm(true)), averaged({make_metrics(), averaging({.start = "2step", .every = "1step"})}, model_with_batch_norm(true));
    for (StochasticWeightAveragingSetup* setup : {&plain, &averaged}) {
        torch::manual_seed(5);
        setup->trainer.train(toy_data(16), toy_data(8, 3), {.epochs = 3, .batch_size = 4, .shuffle = false});
    }
    CHECK(equal_bits(copies_of(plain.model->parameters()), copies_of(averaged.model->parameters())));
    CHECK(equal_bits(copies_of(plain.model->buffers()), copies_of(averaged.model->buffers())));
    CHECK(plain.trainer.history().latest("eval.loss").value() == averaged.trainer.history().latest("eval.loss").value());
}

TEST_CASE("an average that goes on from its state shows the same numbers", "[callbacks][stochastic-weight-averaging]") {
    const std::shared_ptr<Callback> swa = averaging({.start = "2step", .every = "1step", .batches = 2});
    StochasticWeightAveragingSetup setup({make_metrics(), swa}, model_with_batch_norm());
    setup.trainer.train(toy_data(16), toy_data(8, 3), {.batch_size = 4});
    const SavedState saved = swa->state();
    CHECK(saved.values.at("batches") == 2);
    CHECK(saved.values.at("averages") == 3);
    const std::shared_ptr<Callback> other = averaging({.start = "2step", .every = "1step", .batches = 2});
    other->load_state({json::parse(saved.values.dump()), saved.tensors});
    StochasticWeightAveragingSetup resumed({make_metrics(), other}, setup.model);
    CHECK(resumed.trainer.evaluate(toy_data(8, 3), {.batch_size = 4}).at("eval.swa.loss") == setup.trainer.history().latest("eval.swa.loss").value());
}

TEST_CASE("stochastic weight averaging refuses what cannot be", "[callbacks][stochastic-weight-averaging]") {
    CHECK_THROWS_WITH(averaging({.every = "0step"}), "stochastic_weight_averaging: every: '0step' is not positive; give e.g. 1epoch");
    CHECK_THROWS_WITH(averaging({.batches = -1}), "stochastic_weight_averaging: batches: -1 is negative; give at least 0");
}

TEST_CASE("an average that would begin after the run's end is warned of", "[callbacks][stochastic-weight-averaging]") {
    for (const char* start : {"5step", "2epoch"}) {
        CapturedStderr captured;
        StochasticWeightAveragingSetup setup({make_metrics(), averaging({.start = start})}, model_with_batch_norm());
        setup.trainer.train(toy_data(16), {.batch_size = 4});
        CHECK_THAT(captured.text(), containing(std::string("'stochastic_weight_averaging' starts at ") + start + ", after the run's end; no average will be taken"));
    }
    CapturedStderr captured;
    StochasticWeightAveragingSetup setup({make_metrics(), averaging({.start = "1epoch", .every = "3step"})}, model_with_batch_norm());
    setup.trainer.start_training(toy_data(32), {.epochs = 2, .batch_size = 4});
    auto changed = setup.trainer.change_option("stochastic_weight_averaging", "every", "2step", "operator");
    while (setup.trainer.advance()) {}
    changed.get();
    CHECK(captured.text().find("no average") == std::string::npos);
}
