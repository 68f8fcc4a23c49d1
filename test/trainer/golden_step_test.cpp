// What everything hangs on: mixed precision with loss scaling, accumulation of three, clipping, a skipped update and
// a short last window, on one rank and on two; the sequence as in the golden file, the gradients as in a plain loop.
#include <mutex>
#include <thread>

#include <ATen/autocast_mode.h>

#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixed_precision.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/fake_world.hpp"
#include "support/event_trace.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

constexpr std::int64_t kSamples = 30;  // batches of 4: seven full ones and one of 2; windows of 3, 3 and 2 batches
constexpr std::int64_t kBatch = 4;
constexpr double kMaxNorm = 0.5;

/// How a run of this file differs from the one with everything on.
enum class Numbers { Bf16, Float };

/// Keeps the gradients as they are when the update is decided on, after clipping, and their norm before it.
class GradientKeeper final : public Callback {
public:
    std::string kind() const override { return "gradient_keeper"; }
    Declaration declare() const override { return {.reads = {"gradients"}, .needs = {"grad_norm"}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.observe<GradientsReady>(Stage::Observe, [this](const GradientsReady& event) {
            kept.push_back(copies_of(event.gradients.held()));
        });
        connections_ += run.bus.observe<TrainStepEnd>(Stage::Observe, [this, &run](const TrainStepEnd&) { norms.push_back(run.blackboard.number("grad_norm").value()); });
    }
    void detach() override { connections_.clear(); }
    std::vector<std::vector<at::Tensor>> kept;
    std::vector<double> norms;

private:
    Connections connections_;
};

/// A loss that overflows once: the second window's gradients are not finite, and its update is skipped.
class Overflow final : public Callback {
public:
    std::string kind() const override { return "overflow"; }
    Declaration declare() const override { return {.listens = {"backward_start"}, .writes = {"root"}, .after = {"mixed_precision"}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<BackwardStart>([](BackwardStart& event) {
            if (event.position.attempts == 1 && event.micro_batch.index == 1) event.root = event.root * std::numeric_limits<float>::infinity();
        });
    }
    void detach() override { connections_.clear(); }

private:
    Connections connections_;
};

/// Where nothing overflows, the same update is skipped by decree.
ComposedCallback skips_second_update() {
    return callback_of("skipper", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept(Phase::Decide, [](GradientsReady& event) {
            if (event.position.attempts == 1) event.skip("skipper", "the second one");
        });
    });
}

/// Every `world`-th sample, so that two ranks together see what one sees: batch i of the world is batch i of each rank.
std::shared_ptr<TensorDataset> share_of(const TensorDataset& whole, int rank, int world) {
    const at::Tensor index = torch::arange(rank, whole.size(), world);
    return std::make_shared<TensorDataset>(whole.inputs().index_select(0, index), whole.targets().index_select(0, index));
}

struct Traced {
    std::shared_ptr<EventTrace> recording = std::make_shared<EventTrace>();
    std::shared_ptr<GradientKeeper> gradients = std::make_shared<GradientKeeper>();
    std::vector<at::Tensor> parameters;
};

Traced run_rank(FakeWorld& world, int rank, Numbers numbers) {
    Traced traced;
    static std::mutex seeding;  // manual_seed and the generator it seeds are the whole process's
    std::unique_lock lock(seeding);
    auto model = toy_model();
    lock.unlock();
    auto optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    MixedPrecisionOptions precision;
    precision.scale_loss = true;
    precision.initial_scale = 1024;
    std::vector<ComposedCallback> callbacks = {make_gradient_accumulation({3}), make_gradient_clipping({.max_norm = kMaxNorm}),
                                               make_metrics({.accuracy = true})};
    if (numbers == Numbers::Bf16) {
        callbacks.insert(callbacks.begin(), make_mixed_precision(precision));
        callbacks.emplace_back(std::make_shared<Overflow>());
    } else {
        callbacks.push_back(skips_second_update());
    }
    callbacks.emplace_back(traced.recording);
    callbacks.emplace_back(traced.gradients);
    if (world.size() > 1) callbacks.insert(callbacks.begin(), ComposedCallback(world.reducer(rank)));
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer, .callbacks = std::move(callbacks),
                     .consensus = world.consensus(rank), .handle_signals = false});
    const auto train = share_of(*toy_data(kSamples), rank, world.size());
    const auto eval = share_of(*toy_data(8, 3), rank, world.size());
    trainer.train(train, eval, {.epochs = 1, .batch_size = kBatch / world.size(), .shuffle = false});
    traced.parameters = copies_of(model->parameters());
    return traced;
}

std::vector<Traced> run_world(int size, Numbers numbers = Numbers::Bf16) {
    FakeWorld world(size);
    std::vector<Traced> ranks(static_cast<std::size_t>(size));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank)
        threads.emplace_back([&, rank] { ranks[static_cast<std::size_t>(rank)] = run_rank(world, rank, numbers); });
    for (auto& thread : threads) thread.join();
    return ranks;
}

/// The same numbers by hand: bf16 autocast or none, the mean over each window, clipping, and no update where it overflows.
std::vector<std::vector<at::Tensor>> plain_loop(std::vector<at::Tensor>& parameters, Numbers numbers = Numbers::Bf16) {
    auto model = toy_model();
    const auto data = toy_data(kSamples);
    torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    std::vector<std::vector<at::Tensor>> kept;
    int window = 0;
    for (std::int64_t begin = 0; begin < kSamples; begin += 3 * kBatch, ++window) {
        const std::int64_t end = std::min(begin + 3 * kBatch, kSamples);
        for (std::int64_t at = begin; at < end; at += kBatch) {
            const std::int64_t count = std::min(kBatch, end - at);
            at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
            at::autocast::set_autocast_enabled(at::kCPU, numbers == Numbers::Bf16);
            const at::Tensor loss = cross_entropy(model->forward(data->inputs().narrow(0, at, count)), data->targets().narrow(0, at, count));
            at::autocast::clear_cache();
            at::autocast::set_autocast_enabled(at::kCPU, false);
            (loss * (static_cast<double>(count) / static_cast<double>(end - begin))).backward();
        }
        torch::nn::utils::clip_grad_norm_(model->parameters(), kMaxNorm);
        std::vector<at::Tensor> gradients;
        for (const at::Tensor& parameter : model->parameters()) gradients.push_back(parameter.grad().clone());
        kept.push_back(gradients);
        if (window != 1) optimizer.step();
        optimizer.zero_grad();
    }
    parameters = copies_of(model->parameters());
    return kept;
}

}  // namespace

TEST_CASE("one rank: the golden sequence of a step with everything on", "[trainer][golden]") {
    const auto traced = run_world(1).front();
    CHECK(compare_with_golden("step_one_rank", traced.recording->lines()) == "");
}

TEST_CASE("two ranks: the golden sequence is that of one rank, with each rank's own samples", "[trainer][golden][thread]") {
    const auto ranks = run_world(2);
    CHECK(compare_with_golden("step_two_ranks_rank_0", ranks[0].recording->lines()) == "");
    CHECK(ranks[0].recording->names() == ranks[1].recording->names());
    auto names = run_world(1).front().recording->names();
    names.insert(std::ranges::find(names, "subscriber_attached"), "subscriber_attached");  // the reducer
    CHECK(ranks[0].recording->names() == names);
    CHECK(equal_bits(ranks[0].parameters, ranks[1].parameters));
}

TEST_CASE("its gradients are those of a plain loop, on one rank and on two", "[trainer][golden][thread]") {
    std::vector<at::Tensor> parameters;
    const auto expected = plain_loop(parameters);
    const auto one = run_world(1).front();
    const auto two = run_world(2).front();
    REQUIRE(expected.size() == 3);
    REQUIRE(one.gradients->kept.size() == 3);
    REQUIRE(two.gradients->kept.size() == 3);
    for (const std::size_t window : {0u, 2u}) {  // window 1 overflows and is skipped
        CHECK(one.gradients->norms[window] > kMaxNorm);  // so clipping has something to do
        // Scaling by a power of two is exact, so only the order of sums differs.
        CHECK(relative_difference(one.gradients->kept[window], expected[window]) < 1e-6);
        CHECK(relative_difference(two.gradients->kept[window], expected[window]) < 2e-2);  // bf16, sums of half the batch
    }
    CHECK(relative_difference(one.parameters, parameters) < 1e-6);
}

TEST_CASE("in fp32 the gradients of one rank and of two are those of a plain loop to 1e-6, the short last window included", "[trainer][thread]") {
    std::vector<at::Tensor> parameters;
    const auto expected = plain_loop(parameters, Numbers::Float);
    REQUIRE(expected.size() == 3);
    for (const int size : {1, 2})
        for (const Traced& rank : run_world(size, Numbers::Float)) {
            REQUIRE(rank.gradients->kept.size() == 3);
            for (std::size_t window = 0; window < 3; ++window) {
                CHECK(rank.gradients->norms[window] > kMaxNorm);
                CHECK(relative_difference(rank.gradients->kept[window], expected[window]) < 1e-6);
            }
            CHECK(relative_difference(rank.parameters, parameters) < 1e-6);
        }
}
