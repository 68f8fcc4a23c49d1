// Running out of memory is injected: a model that refuses batches above a size.
#include <torch/torch.h>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/micro_batch_halving.hpp>
#include <torchbus/callbacks/mixup.hpp>
#include <torchbus/callbacks/sharpness_aware.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/error.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/fake_world.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

/// Throws as LibTorch's device allocators do, before or after it has drawn a dropout mask.
struct Hungry : torch::nn::Module {
    torch::nn::Linear hidden = register_module("hidden", torch::nn::Linear(6, 8));
    torch::nn::Linear output = register_module("output", torch::nn::Linear(8, 3));
    at::Tensor seen = register_buffer("seen", torch::zeros({}));
    std::int64_t largest = 1 << 30;
    double dropout = 0;
    bool wrong = false;
    std::vector<std::int64_t> sizes;
    at::Tensor forward(const at::Tensor& inputs) {
        sizes.push_back(inputs.size(0));
        seen.add_(inputs.size(0));
        at::Tensor x = torch::dropout(hidden(inputs).relu(), dropout, is_training());
        if (wrong) throw std::runtime_error("a mistake of another kind");
        if (inputs.size(0) > largest) throw c10::OutOfMemoryError({__func__, __FILE__, 0}, "CUDA out of memory");
        return output(x);
    }
};

struct MicroBatchHalvingSetup {
    std::shared_ptr<Hungry> model;
    std::vector<std::vector<at::Tensor>> gradients;
    std::vector<Position> positions;
    std::unique_ptr<Trainer> trainer;
    explicit MicroBatchHalvingSetup(std::vector<ComposedCallback> callbacks) {
        torch::manual_seed(1);
        model = std::make_shared<Hungry>();
        callbacks.emplace_back(callback_of("tap", [this](Attachment& run, Connections& connections) {
            connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [this](const TrainStepEnd& event) {
                positions.push_back(event.position);
                std::vector<at::Tensor> step;
                for (const at::Tensor& parameter : model->parameters()) step.push_back(parameter.grad().clone());
                gradients.push_back(std::move(step));
            });
        }));
        trainer = std::make_unique<Trainer>(TrainerOptions{.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1}),
                                                           .callbacks = std::move(callbacks), .seed = 1});
    }
    RunResult train(std::int64_t batch_size = 8, std::int64_t epochs = 1) {
        return trainer->train(toy_data(16), {.epochs = epochs, .batch_size = batch_size, .shuffle = false});
    }
};

}  // namespace

TEST_CASE("a window that runs out of memory is divided until it fits, and its gradients are those of the whole", "[callbacks][micro-batch-halving]") {
    MicroBatchHalvingSetup whole({make_metrics({.accuracy = true})}), divided({make_metrics({.accuracy = true}), make_micro_batch_halving()});
    divided.model->largest = 2;
    whole.train();
    CHECK(divided.train().outcome == Outcome::Finished);
    CHECK(divided.model->sizes == std::vector<std::int64_t>{8, 4, 2, 2, 2, 2, 2, 2, 2, 2});  // the second window from the start
    REQUIRE(divided.gradients.size() == 2);
    for (std::size_t step = 0; step < 2; ++step) CHECK(relative_difference(divided.gradients[step], whole.gradients[step]) < 1e-6);
    for (const char* name : {"train.loss", "train.accuracy"})
        CHECK(divided.trainer->history().latest(name).value() == Approx(whole.trainer->history().latest(name).value()).epsilon(1e-6));
    CHECK(divided.positions.back().samples == 16);
    CHECK(divided.positions.back().micro_batch == 8);
    CHECK(divided.trainer->blackboard().number("micro_batch_parts") == 4.0);
}

TEST_CASE("what was told before the failure is not told again", "[callbacks][micro-batch-halving]") {
    std::vector<std::pair<std::int64_t, bool>> told;
    MicroBatchHalvingSetup setup({make_metrics(), make_micro_batch_halving(), callback_of("plan", [&](Attachment& run, Connections& connections) {
        connections += run.bus.intercept<RunConfigured>([](RunConfigured& event) { event.plan.micro_batches_per_step = 2; });
        connections += run.bus.observe<ForwardEnd>(Stage::Observe, [&](const ForwardEnd& event) { told.emplace_back(event.batch.samples, event.micro_batch.repeated); });
    })});
    auto tap = setup.trainer->subscribe("memory");  // becomes scarce when the first batch of the window was told
    const auto connection = tap.observe<ForwardEnd>(Stage::Observe, [&](const ForwardEnd&) { setup.model->largest = 2; });
    setup.trainer->train(toy_data(16), {.max_steps = 1, .batch_size = 6, .shuffle = false});
    CHECK(setup.model->sizes == std::vector<std::int64_t>{6, 6, 3, 1, 2, 1, 2, 1, 2, 1, 2});
    CHECK(told == std::vector<std::pair<std::int64_t, bool>>{{6, false}, {1, true}, {2, true}, {1, true}, {2, true}, {1, false}, {2, false}, {1, false}, {2, false}});
    CHECK(setup.positions.back().samples == 12);
}

TEST_CASE("generators and buffers are as at the start of the step when it is tried again", "[callbacks][micro-batch-halving]") {
    MicroBatchHalvingSetup setup({make_micro_batch_halving()});
    setup.model->dropout = 0.5;
    setup.model->largest = 2;
    std::vector<at::Tensor> generators, buffers;
    auto tap = setup.trainer->subscribe("watcher");
    const auto connection = tap.observe<ForwardStart>(Stage::Observe, [&](const ForwardStart& event) {
        if (event.micro_batch.index > 0) return;
        generators.push_back(at::globalContext().defaultGenerator(at::kCPU).get_state());
        buffers.push_back(setup.model->seen.clone());
    });
    setup.trainer->train(toy_data(16), {.max_steps = 1, .batch_size = 8, .shuffle = false});
    REQUIRE(setup.model->sizes == std::vector<std::int64_t>{8, 4, 2, 2, 2, 2});
    CHECK(equal_bits(generators, {generators[0], generators[0], generators[0]}));
    CHECK(equal_bits(buffers, {torch::zeros({}), torch::zeros({}), torch::zeros({})}));
    CHECK(setup.model->seen.item<double>() == 8);
}

TEST_CASE("mixing is done anew within the parts", "[callbacks][micro-batch-halving][mixup]") {
    MicroBatchHalvingSetup setup({make_mixup(), make_micro_batch_halving()});
    setup.model->largest = 3;
    CHECK(setup.train().outcome == Outcome::Finished);
    CHECK(setup.positions.back().samples == 16);
}

TEST_CASE("halving is announced, and forgotten with the window where it is not kept", "[callbacks][micro-batch-halving]") {
    std::vector<std::string> told;
    MicroBatchHalvingSetup setup({make_micro_batch_halving({.keep = false}), callback_of("listener", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<OptionChanged>(Stage::Observe, [&](const OptionChanged& event) {
            told.push_back(event.subscriber + "." + event.option + " " + event.from + " -> " + event.to + ": " + event.requester);
        });
    })});
    setup.model->largest = 4;
    setup.train();
    CHECK(setup.model->sizes == std::vector<std::int64_t>{8, 4, 4, 8, 4, 4});
    CHECK(told == std::vector<std::string>(2, "micro_batch_halving.parts 1 -> 2: out of memory"));
}

TEST_CASE("the run fails where a part cannot be smaller, and for errors of another kind", "[callbacks][micro-batch-halving]") {
    MicroBatchHalvingSetup small({make_micro_batch_halving({.min_samples = 3})});
    small.model->largest = 2;
    CHECK_THROWS_WITH(small.train(), containing("CUDA out of memory"));
    CHECK(small.model->sizes == std::vector<std::int64_t>{8, 4});
    MicroBatchHalvingSetup wrong({make_micro_batch_halving()});
    wrong.model->wrong = true;
    CHECK_THROWS_WITH(wrong.train(), "a mistake of another kind");
    CHECK(wrong.model->sizes.size() == 1);
    MicroBatchHalvingSetup alone(std::vector<ComposedCallback>{});
    alone.model->largest = 4;
    CHECK_THROWS_WITH(alone.train(), containing("CUDA out of memory"));
    CHECK_THROWS_WITH(make_micro_batch_halving({.min_samples = 0}), "micro_batch_halving: min_samples: 0 is too few; give at least 1");
}

TEST_CASE("halving is refused where there are several ranks", "[callbacks][micro-batch-halving]") {
    FakeWorld world(2);
    const auto model = toy_model();
    CHECK_THROWS_WITH(Trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}), .callbacks = {make_micro_batch_halving()},
                               .consensus = world.consensus(0), .handle_signals = false}),
                      "micro_batch_halving: it works in one process, and there are 2 ranks; make the batch smaller and accumulate instead");
}

TEST_CASE("sharpness-aware minimisation on divided batches has the gradients of whole ones, in both passes", "[callbacks][micro-batch-halving]") {
    MicroBatchHalvingSetup whole({make_sharpness_aware({.rho = 0.1})}), divided({make_sharpness_aware({.rho = 0.1}), make_micro_batch_halving()});
    divided.model->largest = 4;
    whole.train();
    divided.train();
    CHECK(whole.model->sizes == std::vector<std::int64_t>{8, 8, 8, 8});
    CHECK(divided.model->sizes == std::vector<std::int64_t>{8, 4, 4, 4, 4, 4, 4, 4, 4});
    REQUIRE(divided.gradients.size() == 2);
    for (std::size_t step = 0; step < 2; ++step) CHECK(relative_difference(divided.gradients[step], whole.gradients[step]) < 1e-6);
    CHECK(relative_difference(copies_of(divided.model->parameters()), copies_of(whole.model->parameters())) < 1e-6);
}

TEST_CASE("memory that runs out in the second pass of sharpness-aware minimisation starts that pass over", "[callbacks][micro-batch-halving]") {
    MicroBatchHalvingSetup whole({make_sharpness_aware({.rho = 0.1})}), divided({make_sharpness_aware({.rho = 0.1}), make_micro_batch_halving()});
    auto tap = divided.trainer->subscribe("memory");  // becomes scarce after the first pass
    const auto connection = tap.observe<GradientsReady>(Stage::Observe, [&](const GradientsReady&) { divided.model->largest = 4; });
    whole.train();
    divided.train();
    CHECK(divided.model->sizes == std::vector<std::int64_t>{8, 8, 4, 4, 4, 4, 4, 4});
    for (std::size_t step = 0; step < 2; ++step) CHECK(relative_difference(divided.gradients[step], whole.gradients[step]) < 1e-6);
}
