#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixed_precision.hpp>
#include <torchbus/callbacks/sharpness_aware.hpp>
#include <torchbus/error.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

struct SharpnessAwareSetup {
    torch::nn::Sequential model;
    Trainer trainer;
    explicit SharpnessAwareSetup(std::vector<ComposedCallback> callbacks, double learning_rate = 0.5, torch::nn::Sequential its_model = toy_model(), Loss loss = cross_entropy)
        : model(std::move(its_model)),
          trainer({.model = model, .loss = std::move(loss), .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), torch::optim::SGDOptions(learning_rate).momentum(0.9)),
                   .callbacks = std::move(callbacks), .handle_signals = false}) {}
    std::vector<at::Tensor> weights() const { return copies_of(model->parameters()); }
};

/// Algorithm 1 by hand, over batches of four in order.
std::vector<at::Tensor> by_hand(double rho, bool adaptive, std::int64_t samples) {
    auto model = toy_model();
    torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.5).momentum(0.9));
    const auto data = toy_data(samples);
    for (std::int64_t at = 0; at < samples; at += 4) {
        const auto backward = [&] {
            optimizer.zero_grad();
            cross_entropy(model->forward(data->inputs().narrow(0, at, 4)), data->targets().narrow(0, at, 4)).backward();
        };
        backward();
        const auto before = copies_of(model->parameters());
        {
            const torch::NoGradGuard no_grad;
            double squares = 0;
            for (const at::Tensor& p : model->parameters()) squares += (adaptive ? p.abs() * p.grad() : p.grad()).square().sum().item<double>();
            for (at::Tensor& p : model->parameters()) p.add_((adaptive ? p.square() * p.grad() : p.grad()) * (rho / std::sqrt(squares)));
        }
        backward();
        {
            const torch::NoGradGuard no_grad;
            for (std::size_t i = 0; i < before.size(); ++i) model->parameters()[i].copy_(before[i]);
        }
        optimizer.step();
    }
    return copies_of(model->parameters());
}

/// One of window, pass or so: how often each micro-batch went forward.
ComposedCallback counting(std::vector<int>& passes) {
    return callback_of("counting", [&passes](Attachment& run, Connections& connections) {
        connections += run.bus.observe<ForwardEnd>(Stage::Report, [&passes](const ForwardEnd& event) { passes.push_back(event.micro_batch.pass); });
    });
}

}  // namespace

TEST_CASE("sharpness-aware updates are those of the algorithm by hand", "[callbacks][sharpness-aware]") {
    for (const bool adaptive : {false, true}) {
        SharpnessAwareSetup setup({make_sharpness_aware({.rho = 0.2, .adaptive = adaptive})});
        setup.trainer.train(toy_data(40), {.batch_size = 4, .shuffle = false});
        CHECK(relative_difference(setup.weights(), by_hand(0.2, adaptive, 40)) < 1e-5);
        CHECK(relative_difference(setup.weights(), by_hand(1e-9, adaptive, 40)) > 1e-3);  // and not those of plain SGD
    }
}

TEST_CASE("the weights are put back to the bit before the update, and metrics count once", "[callbacks][sharpness-aware]") {
    std::vector<int> passes;
    SharpnessAwareSetup setup({make_metrics(), make_sharpness_aware({.rho = 3}), counting(passes)}, 0.0);
    const auto before = setup.weights();
    const auto data = toy_data(8);
    setup.trainer.train(data, {.batch_size = 4, .shuffle = false});
    CHECK(passes == std::vector<int>{0, 1, 0, 1});
    CHECK(equal_bits(before, setup.weights()));
    const torch::NoGradGuard no_grad;
    CHECK(setup.trainer.history().latest("train.loss").value() == Approx(cross_entropy(setup.model->forward(data->inputs()), data->targets()).item<double>()).epsilon(1e-6));
}

TEST_CASE("a window of batches climbs by the gradient of the whole window", "[callbacks][sharpness-aware]") {
    SharpnessAwareSetup whole({make_sharpness_aware()}), window({make_gradient_accumulation({4}), make_sharpness_aware()});
    whole.trainer.train(toy_data(22), {.batch_size = 8, .shuffle = false});
    window.trainer.train(toy_data(22), {.batch_size = 2, .shuffle = false});
    CHECK(relative_difference(window.weights(), whole.weights()) < 1e-5);
}

TEST_CASE("loss scaling and clipping keep with it: the climb is of unscaled gradients, clipping of the second pass", "[callbacks][sharpness-aware]") {
    MixedPrecisionOptions scaling;
    scaling.scale_loss = true;
    scaling.initial_scale = 4096;
    SharpnessAwareSetup without({make_mixed_precision(), make_sharpness_aware({.rho = 0.2}), make_gradient_clipping({.max_norm = 0.5})});
    SharpnessAwareSetup with({make_mixed_precision(scaling), make_sharpness_aware({.rho = 0.2}), make_gradient_clipping({.max_norm = 0.5})});
    for (SharpnessAwareSetup* setup : {&without, &with}) setup->trainer.train(toy_data(20), {.batch_size = 4, .shuffle = false});
    CHECK(relative_difference(with.weights(), without.weights()) < 1e-5);
}

TEST_CASE("an update that is skipped is not repeated, and its weights stay", "[callbacks][sharpness-aware]") {
    MixedPrecisionOptions scaling;
    scaling.scale_loss = true;
    std::vector<int> passes;
    SharpnessAwareSetup setup({make_sharpness_aware(), make_mixed_precision(scaling), counting(passes), callback_of("overflow", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept<BackwardStart>([](BackwardStart& event) { event.root = event.root * std::numeric_limits<float>::infinity(); });
    })});
    const auto before = setup.weights();
    setup.trainer.train(toy_data(4), {.batch_size = 4});
    CHECK(passes == std::vector<int>{0});
    CHECK(equal_bits(before, setup.weights()));
}

TEST_CASE("batch norm follows the first pass alone", "[callbacks][sharpness-aware]") {
    const auto make_model = [] {
        torch::manual_seed(1);
        return torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8), torch::nn::Linear(8, 3));
    };
    SharpnessAwareSetup plain({}, 0.0, make_model()), sharp({make_sharpness_aware({.rho = 3})}, 0.0, make_model());
    for (SharpnessAwareSetup* setup : {&plain, &sharp}) setup->trainer.train(toy_data(16), {.batch_size = 4, .shuffle = false});
    CHECK(equal_bits(copies_of(sharp.model->buffers()), copies_of(plain.model->buffers())));
}

TEST_CASE("a run that fails within the second pass leaves the weights as they were", "[callbacks][sharpness-aware]") {
    int calls = 0;
    SharpnessAwareSetup setup({make_sharpness_aware({.rho = 3})}, 0.5, toy_model(), [&](const at::Tensor& output, const at::Tensor& targets) {
        if (++calls == 2) throw std::runtime_error("no loss today");
        return cross_entropy(output, targets);
    });
    const auto before = setup.weights();
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(8), {.batch_size = 4}), "no loss today");
    CHECK(calls == 2);
    CHECK(equal_bits(before, setup.weights()));
}

TEST_CASE("sharpness_aware refuses a length that is not positive, and an update that is not there", "[callbacks][sharpness-aware]") {
    CHECK_THROWS_WITH(make_sharpness_aware({.rho = 0}), "sharpness_aware: rho: 0 is not positive; give the length of the climb, e.g. 0.05");
    SharpnessAwareSetup setup({make_sharpness_aware({.update = "generator"})});
    CHECK_THROWS_WITH(setup.trainer.train(toy_data(4)), "sharpness_aware: update: there is no update 'generator'");
}
