// What everything hangs on: mixed precision with loss scaling, accumulation of three, clipping, a skipped update and
// a short last window, on one rank and on two; the sequence as in the golden file, the gradients as in a plain loop.
#include <mutex>
#include <thread>

#include <ATen/autocast_mode.h>

#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixed_precision.hpp>

#include "support/catch.hpp"
#include "support/fake_world.hpp"
#include "support/recording.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

constexpr std::int64_t kSamples = 30;  // batches of 4: seven full ones and one of 2; windows of 3, 3 and 2 batches
constexpr std::int64_t kBatch = 4;
constexpr double kMaxNorm = 0.5;

/// Keeps the gradients as they are when the update is decided on, after clipping.
class GradientKeeper final : public Callback {
public:
    std::string kind() const override { return "gradient_keeper"; }
    Declaration declare() const override { return {.reads = {"gradients"}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.observe<GradientsReady>(Stage::Observe, [this](const GradientsReady& event) {
            kept.push_back(copies_of(event.gradients.owned()));
        });
    }
    void detach() override { connections_.clear(); }
    std::vector<std::vector<at::Tensor>> kept;

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

/// Every `world`-th sample, so that two ranks together see what one sees: batch i of the world is batch i of each rank.
std::shared_ptr<TensorDataset> share_of(const TensorDataset& whole, int rank, int world) {
    const at::Tensor index = torch::arange(rank, whole.size(), world);
    return std::make_shared<TensorDataset>(whole.inputs().index_select(0, index), whole.targets().index_select(0, index));
}

struct Traced {
    std::shared_ptr<Recording> recording = std::make_shared<Recording>();
    std::shared_ptr<GradientKeeper> gradients = std::make_shared<GradientKeeper>();
    std::vector<at::Tensor> parameters;
};

Traced run_rank(FakeWorld& world, int rank) {
    Traced traced;
    static std::mutex seeding;  // manual_seed and the generator it seeds are the whole process's
    std::unique_lock lock(seeding);
    auto model = toy_model();
    lock.unlock();
    auto optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    MixedPrecisionOptions precision;
    precision.scale_loss = true;
    precision.initial_scale = 1024;
    std::vector<ComposedCallback> callbacks = {make_mixed_precision(precision), make_gradient_accumulation({3}),
                                               make_gradient_clipping({.max_norm = kMaxNorm}), make_metrics({.accuracy = true}),
                                               ComposedCallback(std::make_shared<Overflow>()), ComposedCallback(traced.recording),
                                               ComposedCallback(traced.gradients)};
    if (world.size() > 1) callbacks.insert(callbacks.begin(), ComposedCallback(world.reducer(rank)));
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer, .callbacks = std::move(callbacks),
                     .consensus = world.consensus(rank), .handle_signals = false});
    const auto train = share_of(*toy_data(kSamples), rank, world.size());
    const auto eval = share_of(*toy_data(8, 3), rank, world.size());
    trainer.train(train, eval, {.epochs = 1, .batch_size = kBatch / world.size(), .shuffle = false});
    traced.parameters = copies_of(model->parameters());
    return traced;
}

std::vector<Traced> run_world(int size) {
    FakeWorld world(size);
    std::vector<Traced> ranks(static_cast<std::size_t>(size));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank)
        threads.emplace_back([&, rank] { ranks[static_cast<std::size_t>(rank)] = run_rank(world, rank); });
    for (auto& thread : threads) thread.join();
    return ranks;
}

/// The same numbers by hand: bf16 autocast, the mean over each window, clipping, and no update where it overflows.
std::vector<std::vector<at::Tensor>> plain_loop(std::vector<at::Tensor>& parameters) {
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
            at::autocast::set_autocast_enabled(at::kCPU, true);
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

TEST_CASE("two ranks: the golden sequence is that of one rank, with each rank's own samples", "[trainer][golden]") {
    const auto ranks = run_world(2);
    CHECK(compare_with_golden("step_two_ranks_rank_0", ranks[0].recording->lines()) == "");
    CHECK(ranks[0].recording->names().size() == ranks[1].recording->names().size());
    CHECK(equal_bits(ranks[0].parameters, ranks[1].parameters));
}

TEST_CASE("its gradients are those of a plain loop, on one rank and on two", "[trainer][golden]") {
    std::vector<at::Tensor> parameters;
    const auto expected = plain_loop(parameters);
    const auto one = run_world(1).front();
    const auto two = run_world(2).front();
    REQUIRE(expected.size() == 3);
    REQUIRE(one.gradients->kept.size() == 3);
    REQUIRE(two.gradients->kept.size() == 3);
    for (const std::size_t window : {0u, 2u}) {  // window 1 overflows and is skipped
        // Scaling by a power of two is exact, so only the order of sums differs.
        CHECK(relative_difference(one.gradients->kept[window], expected[window]) < 1e-6);
        CHECK(relative_difference(two.gradients->kept[window], expected[window]) < 2e-2);  // bf16, sums of half the batch
    }
    CHECK(relative_difference(one.parameters, parameters) < 1e-6);
}
