// The smaller behaviours, each through a trainer.
#include <cstdlib>

#include <ATen/autocast_mode.h>

#include <torchbus/callbacks/device_placement.hpp>
#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/callbacks/limit_batches.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixed_precision.hpp>
#include <torchbus/callbacks/nan_policy.hpp>
#include <torchbus/callbacks/step_evaluation.hpp>
#include <torchbus/callbacks/terminate_on_nan.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

struct BehavioursSetup {
    torch::nn::Sequential model = toy_model();
    std::shared_ptr<torch::optim::Optimizer> optimizer = make_sgd(model->parameters(), {.learning_rate = 0.5});
    Trainer trainer;
    explicit BehavioursSetup(std::vector<ComposedCallback> callbacks, Loss loss = cross_entropy)
        : trainer({.model = model, .loss = std::move(loss), .optimizer = optimizer, .callbacks = std::move(callbacks), .handle_signals = false}) {}
};

ComposedCallback on_step_end(std::function<void(const TrainStepEnd&, Attachment&)> slot) {
    return callback_of("on_step_end", [=](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Report, [=, &run](const TrainStepEnd& event) { slot(event, run); });
    });
}

}  // namespace

TEST_CASE("a schedule sets the rate of the update to come: the first one gets f(0)", "[callbacks][schedule]") {
    std::vector<double> rates;
    BehavioursSetup setup({make_learning_rate_schedule({[](const Moment& moment) { return 1.0 / static_cast<double>(1 + moment.position.step); }}),
                 on_step_end([&](const TrainStepEnd& event, Attachment&) { rates.push_back(event.update.optimizer->param_groups()[0].options().get_lr()); })});
    setup.trainer.train(toy_data(12), {.batch_size = 4});
    CHECK(rates == std::vector<double>{0.5, 0.25, 0.5 / 3});
    rates.clear();
    setup.trainer.train(toy_data(4), {.batch_size = 4});  // a second run starts from the base again
    CHECK(rates == std::vector<double>{0.5});
}

TEST_CASE("a skipped update does not advance a schedule in steps", "[callbacks][schedule]") {
    std::vector<double> rates;
    BehavioursSetup setup({make_learning_rate_schedule({[](const Moment& moment) { return static_cast<double>(1 + moment.position.step); }}),
                 callback_of("skipper", [](Attachment& run, Connections& connections) {
                     connections += run.bus.intercept(Phase::Decide, [](GradientsReady& event) { if (event.position.attempts == 0) event.skip("skipper", "test"); });
                 }),
                 on_step_end([&](const TrainStepEnd& event, Attachment&) { rates.push_back(event.update.optimizer->param_groups()[0].options().get_lr()); })});
    setup.trainer.train(toy_data(12), {.batch_size = 4});
    CHECK(rates == std::vector<double>{0.5, 0.5, 1.0});
}

TEST_CASE("schedules over the run know its length", "[callbacks][schedule]") {
    Moment moment;
    moment.length.steps = 11;
    const Schedule cosine = make_cosine_schedule({.warmup = 1, .minimum = 0.1});
    const auto at = [&](std::int64_t step) { moment.position.step = step; return moment; };
    CHECK(cosine(at(0)) == 0);
    CHECK(cosine(at(1)) == Approx(1.0));
    CHECK(cosine(at(6)) == Approx(0.55));  // half way: the mean of 1 and 0.1
    CHECK(cosine(at(11)) == Approx(0.1));
    CHECK(make_linear_schedule({.length = 4})(at(3)) == Approx(0.25));
    moment.position.epoch = 5;
    CHECK(make_step_schedule({.every = "2epoch", .factor = 0.5})(moment) == Approx(0.25));
    moment.length.steps.reset();
    CHECK_THROWS_WITH(cosine(at(3)), "a schedule's length of 1run needs a run of known length; give it in steps, e.g. \"1000step\"");
}

TEST_CASE("limit_batches ends epochs and evaluations early, and the epoch is complete", "[callbacks][limit-batches]") {
    std::int64_t eval_steps = 0;
    BehavioursSetup setup({make_limit_batches({.train = 3, .eval = 1}), make_gradient_accumulation({2}), callback_of("log", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<EvalEpochEnd>(Stage::Observe, [&](const EvalEpochEnd& event) { eval_steps += event.steps; });
    })});
    setup.trainer.train(toy_data(40), toy_data(12, 3), {.epochs = 2, .batch_size = 4});
    CHECK(setup.trainer.position().micro_batch == 6);
    CHECK(setup.trainer.position().step == 4);  // windows of two and one
    CHECK(setup.trainer.position().epoch == 2);
    CHECK(eval_steps == 2);
}

TEST_CASE("TORCHBUS_LIMIT_BATCHES makes a smoke run of any trainer", "[callbacks][limit-batches]") {
    setenv("TORCHBUS_LIMIT_BATCHES", "2", 1);
    BehavioursSetup setup({});
    setup.trainer.train(toy_data(40), {.epochs = 1, .batch_size = 4});
    CHECK(setup.trainer.position().step == 2);
    setenv("TORCHBUS_LIMIT_BATCHES", "many", 1);
    CHECK_THROWS_WITH(BehavioursSetup({}), "TORCHBUS_LIMIT_BATCHES: 'many' is not a number of batches; give at least 1, or unset it");
    unsetenv("TORCHBUS_LIMIT_BATCHES");
}

TEST_CASE("terminate_on_nan fails the run at a NaN, and keeps the weights of the last finite step", "[callbacks][terminate-on-nan]") {
    std::vector<at::Tensor> before;
    int calls = 0;
    const Loss breaks = [&](const at::Tensor& output, const at::Tensor& targets) {
        return cross_entropy(output, targets) * (++calls == 3 ? std::numeric_limits<double>::quiet_NaN() : 1.0);
    };
    BehavioursSetup setup({make_terminate_on_nan()}, breaks);
    auto tap = setup.trainer.subscribe("tap");
    const auto connection = tap.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) {
        if (event.position.step == 2 && !event.skipped) before = copies_of(setup.model->parameters());
    });
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(40), {.batch_size = 4}),
                      "terminate_on_nan: the training loss is nan in epoch 1 after step 2; lower the learning rate, clip the gradients, or look at the batch");
    CHECK(equal_bits(before, copies_of(setup.model->parameters())));
}

TEST_CASE("loss scaling unscales before clipping sees the gradients, skips what overflows and lowers the scale", "[callbacks][mixed-precision]") {
    MixedPrecisionOptions options;
    options.scale_loss = true;
    options.initial_scale = 1024;
    options.growth_interval = 2;
    std::vector<double> scales;
    std::vector<bool> skipped;
    BehavioursSetup setup({make_mixed_precision(options), callback_of("overflow", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept<BackwardStart>([](BackwardStart& event) {
            if (event.position.attempts == 1) event.root = event.root * std::numeric_limits<float>::infinity();
        });
    }), on_step_end([&](const TrainStepEnd& event, Attachment& run) {
        scales.push_back(*run.blackboard.number("loss_scale"));
        skipped.push_back(event.skipped);
    })});
    setup.trainer.train(toy_data(20), {.batch_size = 4});
    CHECK(skipped == std::vector<bool>{false, true, false, false, false});
    CHECK(scales == std::vector<double>{1024, 512, 512, 1024, 1024});  // halved by the overflow, doubled after two good ones
}

TEST_CASE("autocast does not leak out of a run that fails within forward", "[callbacks][mixed-precision]") {
    BehavioursSetup setup({make_mixed_precision()}, [](const at::Tensor&, const at::Tensor&) -> at::Tensor { throw std::runtime_error("no loss today"); });
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(8)), "no loss today");
    CHECK_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    CHECK(at::GradMode::is_enabled());
}

TEST_CASE("metrics are means over samples, not over batches", "[callbacks][metrics]") {
    BehavioursSetup setup({make_metrics({.accuracy = true})});
    const auto data = toy_data(10);
    setup.optimizer->param_groups()[0].options().set_lr(0);  // the weights stay, so the mean can be computed afterwards
    setup.trainer.train(data, {.batch_size = 4, .shuffle = false});
    const at::NoGradGuard no_grad;
    const at::Tensor output = setup.model->forward(data->inputs());
    CHECK(setup.trainer.history().latest("train.loss").value() == Approx(cross_entropy(output, data->targets()).item<double>()).epsilon(1e-6));
    CHECK(setup.trainer.history().latest("train.accuracy").value() == Approx(output.argmax(1).eq(data->targets()).to(torch::kDouble).mean().item<double>()));
}

TEST_CASE("accuracy without classes is refused with the shapes", "[callbacks][metrics]") {
    torch::nn::Linear model(6, 1);
    Trainer trainer({.model = model, .loss = [](const at::Tensor& output, const at::Tensor& targets) { return torch::mse_loss(output, targets); },
                     .optimizer = make_sgd(model->parameters(), {}), .callbacks = {make_metrics({.accuracy = true})}, .handle_signals = false});
    CHECK_THROWS_WITH(trainer.train(std::make_shared<TensorDataset>(torch::randn({8, 6}), torch::randn({8, 1})), {.batch_size = 4}),
                      "subscriber 'metrics' failed at forward_end (epoch 0, step 0): metrics: accuracy needs an output of shape [N, C] and integer "
                      "targets of shape [N]; got output [4, 1] and targets [4, 1]; turn accuracy off, or publish a metric of your own");
}

TEST_CASE("device placement refuses a device that is not here", "[callbacks][device-placement]") {
    CHECK_THROWS_WITH(make_device_placement({"gpu"}), "device_placement: device: 'gpu' is not a device; give cpu, cuda, cuda:N or auto");
    BehavioursSetup setup({make_device_placement({"cpu"})});
    CHECK(setup.trainer.train(toy_data(8)).outcome == Outcome::Finished);
}

TEST_CASE("device placement moves the model before the run and every batch before its forward", "[callbacks][device-placement]") {
    class Onlooker final : public ModelInterface {
    public:
        Output forward(const Batch& batch) override {
            for (const at::Tensor& tensor : {batch.inputs, batch.targets, *batch.extras.find("mask")}) log.push_back(tensor.device().str());
            return weight * 1;
        }
        std::vector<NamedTensor> named_parameters() const override { return {{"weight", weight}}; }
        std::vector<NamedTensor> named_buffers() const override { return {}; }
        void set_training(bool) override {}
        void to(c10::Device device) override { log.push_back("model to " + device.str()); }
        at::Tensor weight = torch::zeros({4, 3}, torch::requires_grad());
        std::vector<std::string> log;
    };
    const auto model = std::make_shared<Onlooker>();
    const auto data = toy_data(8);
    data->add("mask", torch::ones({8}));
    Trainer trainer({.model = model, .loss = [](const at::Tensor& output, const at::Tensor&) { return output.sum(); },
                     .optimizer = make_sgd({model->weight}, {}), .callbacks = {make_device_placement({"meta"})}, .handle_signals = false});
    trainer.train(data, {.batch_size = 4});
    CHECK(model->log == std::vector<std::string>{"model to meta", "meta", "meta", "meta", "meta", "meta", "meta"});
    model->log.clear();
    trainer.predict(data, {.batch_size = 4});
    CHECK(model->log == std::vector<std::string>{"model to meta", "meta", "meta", "meta", "meta", "meta", "meta"});
}

TEST_CASE("fp16 autocast equals LibTorch's own, and scales the loss", "[callbacks][mixed-precision]") {
    const auto data = toy_data(8);
    std::vector<at::Tensor> kept;
    double scale = 0;
    MixedPrecisionOptions options;
    options.precision = MixedPrecisionOptions::Precision::Fp16;
    options.initial_scale = 256;
    BehavioursSetup setup({make_mixed_precision(options), callback_of("keeper", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<GradientsReady>(Stage::Observe, [&](const GradientsReady& event) { kept = copies_of(event.gradients.held()); });
        connections += run.bus.observe<BackwardStart>(Stage::Observe, [&](const BackwardStart& event) { scale = event.root.item<double>(); });
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) { scale /= event.loss.item<double>(); });
    })});
    setup.trainer.train(data, {.batch_size = 8, .shuffle = false});
    CHECK(scale == Approx(256).epsilon(1e-6));

    auto model = toy_model();
    at::autocast::set_autocast_dtype(at::kCPU, at::kHalf);
    at::autocast::set_autocast_enabled(at::kCPU, true);
    const at::Tensor output = model->forward(data->inputs());
    const at::Tensor loss = cross_entropy(output, data->targets());
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    CHECK(output.scalar_type() == at::kHalf);
    (loss * 256).backward();
    std::vector<at::Tensor> expected;
    for (const at::Tensor& gradient : gradients_of(model)) expected.push_back(gradient / 256);
    CHECK(relative_difference(kept, expected) < 1e-6);
}

TEST_CASE("what decides on an update is read from the device together", "[callbacks][mixed-precision]") {
    MixedPrecisionOptions options;
    options.scale_loss = true;
    std::vector<int> reads;
    BehavioursSetup setup({make_mixed_precision(options), make_terminate_on_nan(), make_nan_policy(), callback_of("counter", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<GradientsReady>(Stage::Observe, [&](const GradientsReady& event) { reads.push_back(event.host_read.reads()); });
    })});
    setup.trainer.train(toy_data(8), {.batch_size = 4});
    CHECK(reads == std::vector<int>{1, 1});
}

TEST_CASE("accumulation warns of batch norm, whose statistics are those of each batch alone", "[callbacks][accumulation]") {
    const auto findings_for = [](torch::nn::Sequential model, std::int64_t micro_batches) {
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                         .callbacks = {make_gradient_accumulation({micro_batches})}, .handle_signals = false});
        return trainer.check(toy_data(8), nullptr, {.batch_size = 2}).findings;
    };
    const auto with_norm = [] { return torch::nn::Sequential(torch::nn::Linear(6, 4), torch::nn::BatchNorm1d(4), torch::nn::Linear(4, 3)); };
    const auto findings = findings_for(with_norm(), 2);
    REQUIRE(findings.size() == 1);
    CHECK(findings[0].weight == Finding::Weight::Warning);
    CHECK(findings[0].text == "'gradient_accumulation' makes an update of 2 batches, and batch norm (1) takes its statistics from each of them alone, so the gradient is not that of "
                              "one large batch; freeze it (callback freeze, batch_norm), or take a norm without batch statistics");
    CHECK(findings_for(with_norm(), 1).empty());
    CHECK(findings_for(toy_model(), 2).empty());
}

TEST_CASE("evaluations within an epoch may be limited alone", "[callbacks][limit-batches]") {
    std::vector<std::int64_t> steps;
    BehavioursSetup setup({make_limit_batches({.eval_within_epoch = 1}), make_step_evaluation({Interval(1, Interval::Unit::Step)}), callback_of("log", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<EvalEpochEnd>(Stage::Observe, [&](const EvalEpochEnd& event) { steps.push_back(event.steps); });
    })});
    setup.trainer.train(toy_data(12), toy_data(12), {.batch_size = 4});
    CHECK(steps == std::vector<std::int64_t>{1, 1, 3});
    CHECK_THROWS_WITH(make_limit_batches({.eval_within_epoch = 0}), "limit_batches: eval_within_epoch: 0 is too few; give at least 1 batch");
}

TEST_CASE("terminate_on_nan fails the run at an evaluation whose loss is not finite", "[callbacks][terminate-on-nan]") {
    BehavioursSetup setup({make_terminate_on_nan()});
    const auto broken = toy_data(8, 3);
    broken->inputs()[6] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(8), broken, {.epochs = 2, .batch_size = 4}),
                      "terminate_on_nan: the loss on 'eval' is nan after step 2; look at the weights and at the batches of that split");
    CHECK(setup.trainer.position().step == 2);
    CHECK(setup.trainer.evaluate(toy_data(8)).empty());  // nothing is left of the other one
}
