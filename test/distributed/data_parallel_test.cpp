// Ranks as threads of this process: every one trains on its part, and all make the update of one process on the whole.
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include <torchbus/callbacks/data_parallel.hpp>
#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixed_precision.hpp>
#include <torchbus/callbacks/model_ema.hpp>
#include <torchbus/callbacks/nan_policy.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/free_port.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

struct Trained {
    std::vector<at::Tensor> parameters;
    std::vector<std::vector<at::Tensor>> after_step;
    std::map<std::string, double> metrics;
    RunResult result;
    std::int64_t step = 0;
};

using More = std::function<std::vector<ComposedCallback>(int rank)>;

/// 12 samples of 26 an update and rank's part of them; `more` makes what else is composed.
Trained train(int rank, int size, std::shared_ptr<World> world, const More& more, const AnyDataset& data, GradientReducerOptions gradients) {
    static std::mutex drawing;  // weights are drawn from a generator of all threads
    std::unique_lock lock(drawing);
    auto model = toy_model(static_cast<std::uint64_t>(rank + 1));  // another one on each rank: rank 0's counts
    lock.unlock();
    Trained trained;
    std::vector<ComposedCallback> callbacks = more(rank);
    callbacks.emplace_back(make_metrics({.accuracy = true}));
    if (world) callbacks.emplace_back(make_data_parallel({.world = world, .gradients = gradients}));
    callbacks.push_back(callback_of("tap", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd&) { trained.after_step.push_back(copies_of(model->parameters())); });
    }));
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_adamw(model->parameters(), {.learning_rate = 0.02}), .callbacks = std::move(callbacks), .handle_signals = false});
    trained.result = trainer.train(data, toy_data(10, 3), {.epochs = 2, .batch_size = 12 / size});
    trained.parameters = copies_of(model->parameters());
    if (!trainer.history().epochs().empty()) trained.metrics = {trainer.history().epochs().back().metrics.begin(), trainer.history().epochs().back().metrics.end()};
    trained.step = trainer.position().step;
    return trained;
}

std::vector<Trained> train_on(int size, const More& more, const AnyDataset& data = toy_data(26), GradientReducerOptions gradients = {}) {
    std::vector<Trained> trained(static_cast<std::size_t>(size));
    std::vector<std::exception_ptr> failures(trained.size());
    std::vector<std::thread> threads;
    const int port = free_port();
    for (int rank = 0; rank < size; ++rank)
        threads.emplace_back([&, rank] {
            const auto place = static_cast<std::size_t>(rank);
            try {
                Ranks ranks;
                ranks.rank = ranks.local_rank = rank;
                ranks.world_size = ranks.local_world_size = size;
                ranks.master_port = port;
                trained[place] = train(rank, size, World::join(ranks, {.timeout = std::chrono::seconds(20)}), more, data, gradients);
            } catch (...) {
                failures[place] = std::current_exception();
            }
        });
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& failure : failures)
        if (failure) std::rethrow_exception(failure);
    return trained;
}

std::vector<ComposedCallback> nothing(int) { return {}; }

}  // namespace

TEST_CASE("ranks make the same updates, which are those of one process on the whole batch", "[distributed][data_parallel]") {
    struct Case {
        const char* name;
        More more;
        double tolerance = 1e-6;
        GradientReducerOptions gradients = {};
    };
    const std::vector<Case> cases = {
        {"plain", nothing},
        {"accumulation and clipping", [](int) -> std::vector<ComposedCallback> { return {make_gradient_accumulation({2}), make_gradient_clipping({.max_norm = 0.1})}; }},
        {"average of weights", [](int) -> std::vector<ComposedCallback> { return {make_model_ema({.decay = 0.8})}; }},
        {"buckets of one parameter", nothing, 1e-6, {.bucket_mib = 1e-6, .first_bucket_mib = 1e-6}},
        {"bf16 on the way", nothing, 2e-2, {.bf16 = true}},
        {"unused looked for", nothing, 1e-6, {.find_unused = true}},
    };
    for (const Case& one : cases) {
        const Trained alone = train(0, 1, nullptr, one.more, toy_data(26), {});
        for (int size = 1; size <= 4; ++size) {
            INFO(one.name << ", " << size << " ranks");
            const std::vector<Trained> ranks = train_on(size, one.more, toy_data(26), one.gradients);
            for (const Trained& rank : ranks) {
                REQUIRE(rank.after_step.size() == alone.after_step.size());
                for (std::size_t step = 0; step < rank.after_step.size(); ++step) CHECK(equal_bits(rank.after_step[step], ranks[0].after_step[step]));
                CHECK(relative_difference(rank.parameters, alone.parameters) <= one.tolerance);
                REQUIRE(rank.metrics.size() == alone.metrics.size());
                for (const auto& [name, value] : alone.metrics) CHECK(rank.metrics.at(name) == Approx(value).epsilon(one.tolerance));
            }
        }
    }
}

TEST_CASE("an update that one rank cannot make is skipped by all", "[distributed][data_parallel]") {
    const auto clean = toy_data(26);
    at::Tensor inputs = clean->inputs().clone();
    inputs[5][0] = std::numeric_limits<float>::quiet_NaN();
    const auto data = std::make_shared<TensorDataset>(inputs, clean->targets());
    const std::vector<Trained> ranks = train_on(3, [](int) -> std::vector<ComposedCallback> { return {make_nan_policy()}; }, data);
    for (const Trained& rank : ranks) {
        CHECK(rank.step == 4);  // of six, as the sample comes by in both epochs
        CHECK(equal_bits(rank.parameters, ranks[0].parameters));
        CHECK(rank.parameters.front().isfinite().all().item<bool>());
    }
}

TEST_CASE("what one rank asks for ends all of them at the same step", "[distributed][data_parallel]") {
    for (int asking = 0; asking < 3; ++asking) {
        const std::vector<Trained> ranks = train_on(3, [asking](int rank) -> std::vector<ComposedCallback> {
            return {callback_of("asker", [=](Attachment& run, Connections& connections) {
                connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [=, &run](const TrainStepEnd& event) {
                    if (rank == asking && event.position.step == 1) run.asker.ask(Decision::StopRun, "enough");
                });
            })};
        });
        for (const Trained& rank : ranks) {
            CHECK(rank.result.outcome == Outcome::Stopped);
            CHECK(rank.result.requester == "asker");
            CHECK(rank.step == 2);  // the exchange overlaps with a step
        }
    }
}

TEST_CASE("two that say how ranks agree are refused", "[distributed][data_parallel]") {
    class Agrees final : public Callback {
    public:
        std::string kind() const override { return "agrees"; }
        Declaration declare() const override { return {}; }
        void attach(Attachment&) override {}
        void detach() override {}
        std::shared_ptr<Consensus> consensus() override { return std::make_shared<Consensus>(); }
    };
    auto model = toy_model();
    CHECK_THROWS_WITH(Trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                               .callbacks = {ComposedCallback("one", std::make_shared<Agrees>()), ComposedCallback("other", std::make_shared<Agrees>())}, .handle_signals = false}),
                      "both 'one' and 'other' say how ranks agree; leave one out");
    CHECK_THROWS_WITH(make_data_parallel({.gradients = {.bucket_mib = 0}}), "data_parallel: bucket_mib: 0 is no size; give MiB, e.g. 25");
}
