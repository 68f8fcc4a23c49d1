// Ranks as threads of this process: every one trains on its part, and all make the update of one process on the whole.
#include <functional>
#include <map>
#include <mutex>
#include <numeric>

#include <torchbus/callbacks/data_parallel.hpp>
#include <torchbus/callbacks/device_placement.hpp>
#include <torchbus/callbacks/freeze.hpp>
#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixed_precision.hpp>
#include <torchbus/callbacks/model_ema.hpp>
#include <torchbus/callbacks/nan_policy.hpp>
#include <torchbus/callbacks/sharpness_aware.hpp>
#include <torchbus/callbacks/sync_batch_norm.hpp>
#include <torchbus/callbacks/terminate_on_nan.hpp>
#include <torchbus/callbacks/zero_redundancy.hpp>
#include <torchbus/distributed/batch_norm_over_ranks.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/ranks_as_threads.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

struct Trained {
    std::vector<at::Tensor> weights;  ///< parameters and buffers
    std::vector<std::vector<at::Tensor>> after_step;
    std::map<std::string, double> metrics;
    RunResult result;
    Position position;
    std::int64_t evaluated = 0;  ///< samples of the last evaluation
    int with_state = 0;          ///< parameters that the optimizer keeps a state of
};

/// The callbacks of a rank beside data_parallel and metrics; without a world it is one process.
using More = std::function<std::vector<ComposedCallback>(const std::shared_ptr<World>& world)>;
std::vector<ComposedCallback> nothing(const std::shared_ptr<World>&) { return {}; }

struct DataParallelSetup {
    More more = nothing;
    AnyDataset data = toy_data(26);
    GradientReducerOptions gradients = {};
    std::function<torch::nn::Sequential(std::uint64_t seed)> make_model = toy_model;
    TrainOptions options = {};
};

/// One sample is no number; it comes by in every epoch.
AnyDataset data_with_nan() {
    const auto clean = toy_data(26);
    at::Tensor inputs = clean->inputs().clone();
    inputs[5][0] = std::numeric_limits<float>::quiet_NaN();
    return std::make_shared<TensorDataset>(inputs, clean->targets());
}

/// Without a bias before the batch norm, whose gradient is nothing but rounding errors, which AdamW makes as large as any.
torch::nn::Sequential normalized_model(std::uint64_t seed) {
    torch::manual_seed(seed);
    return torch::nn::Sequential(torch::nn::Linear(torch::nn::LinearOptions(6, 8).bias(false)), torch::nn::BatchNorm1d(8), torch::nn::ReLU(), torch::nn::Linear(8, 3));
}

/// 12 samples an update, or rank's part of them.
Trained train(const DataParallelSetup& setup, const std::shared_ptr<World>& world, const std::string& device = "cpu") {
    const int rank = world ? world->rank() : 0, size = world ? world->size() : 1;
    static std::mutex drawing;  // weights are drawn from a generator of all threads
    std::unique_lock lock(drawing);
    auto model = setup.make_model(static_cast<std::uint64_t>(rank + 1));  // another one on each rank: rank 0's counts
    lock.unlock();
    Trained trained;
    const auto weights = [&] {
        std::vector<at::Tensor> all = model->parameters();
        for (const at::Tensor& buffer : model->buffers()) all.push_back(buffer);
        for (at::Tensor& tensor : all) tensor = tensor.detach().to(at::kCPU, tensor.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
        return all;
    };
    std::vector<ComposedCallback> callbacks = setup.more(world);
    callbacks.emplace_back(make_device_placement({device}));
    callbacks.emplace_back(make_metrics({.accuracy = true}));
    if (world) callbacks.emplace_back(make_data_parallel({.world = world, .gradients = setup.gradients}));
    callbacks.push_back(callback_of("tap", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd&) { trained.after_step.push_back(weights()); });
        connections += run.bus.observe<EvalEpochEnd>(Stage::Observe, [&](const EvalEpochEnd& event) { trained.evaluated = event.samples; });
    }));
    auto optimizer = make_adamw(model->parameters(), {.learning_rate = 0.02});
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer, .callbacks = std::move(callbacks), .handle_signals = false});
    TrainOptions options = setup.options;
    options.epochs = 2;
    options.batch_size = 12 / size;
    trained.result = trainer.train(setup.data, toy_data(10, 3), options);
    trained.weights = weights();
    trained.with_state = static_cast<int>(optimizer->state().size());
    if (!trainer.history().epochs().empty()) trained.metrics = {trainer.history().epochs().back().metrics.begin(), trainer.history().epochs().back().metrics.end()};
    trained.position = trainer.position();
    return trained;
}

template <class Over>
std::vector<Trained> train_on(int size, const DataParallelSetup& setup) {
    return on_ranks<Trained>(size, [&](const std::shared_ptr<World>& world) { return train(setup, world, Over::device(world->rank())); });
}

}  // namespace

TEMPLATE_TEST_CASE("ranks make the same updates, which are those of one process on the whole batch", "[distributed][data_parallel]", OverGloo, OverNccl) {
    struct Case {
        const char* name;
        DataParallelSetup setup;
        double tolerance = 1e-6;
        int skipped = 0;  ///< updates
    };
    using Callbacks = std::vector<ComposedCallback>;
    const auto with = [](More more) { return DataParallelSetup{.more = std::move(more)}; };
    const auto synchronized = [](const std::shared_ptr<World>& world) { return world ? Callbacks{make_sync_batch_norm({.world = world})} : Callbacks{}; };
    const auto divided = [](const std::shared_ptr<World>& world) { return world ? Callbacks{make_zero_redundancy({.world = world}), make_gradient_clipping({.max_norm = 0.1})} : Callbacks{make_gradient_clipping({.max_norm = 0.1})}; };
    const auto together = [](const auto&) -> Callbacks {
        return {make_gradient_accumulation({2}), make_gradient_clipping({.max_norm = 0.1}), make_model_ema({.decay = 0.8}), make_freeze({.groups = {{.names = {"0.*"}, .unfreeze_at = Interval{1, Interval::Unit::Epoch}}}})};
    };
    const auto and_more = [](Callbacks callbacks, Callbacks more) {
        std::ranges::move(more, std::back_inserter(callbacks));
        return callbacks;
    };
    const auto divided_with_more = [=](const std::shared_ptr<World>& world) { return and_more(divided(world), Callbacks{make_gradient_accumulation({2}), make_freeze({.groups = {{.names = {"0.*"}, .unfreeze_at = Interval{1, Interval::Unit::Epoch}}}})}); };
    const auto synchronized_with_more = [=](const std::shared_ptr<World>& world) { return and_more(synchronized(world), Callbacks{make_gradient_accumulation({2}), make_gradient_clipping({.max_norm = 0.1})}); };
    // On the last rank only; its sum is no number on any.
    const auto overflowing = [](const std::shared_ptr<World>& world, MixedPrecisionOptions::Precision precision) -> Callbacks {
        return {make_mixed_precision({.precision = precision, .scale_loss = true}), callback_of("overflow", [=](Attachment& run, Connections& connections) {
                    connections += run.bus.intercept<BackwardStart>([=](BackwardStart& event) {
                        if (event.position.attempts == 2 && (!world || world->rank() == world->size() - 1)) event.root = event.root * std::numeric_limits<float>::infinity();
                    });
                })};
    };
    const std::vector<Case> cases = {
        {"plain", {}},
        {"accumulation and clipping", with([](const auto&) -> Callbacks { return {make_gradient_accumulation({2}), make_gradient_clipping({.max_norm = 0.1})}; })},
        {"average of weights", with([](const auto&) -> Callbacks { return {make_model_ema({.decay = 0.8})}; })},
        {"layers unfrozen later", with([](const auto&) -> Callbacks { return {make_freeze({.groups = {{.names = {"0.*"}, .unfreeze_at = Interval{1, Interval::Unit::Epoch}}}})}; })},
        {"buckets of one parameter", {.gradients = {.bucket_mib = 1e-6, .first_bucket_mib = 1e-6}}},
        {"bf16 on the way", {.gradients = {.bf16 = true}}, 2e-2},
        {"bf16, an update skipped by its loss scale", with([=](const auto& world) { return overflowing(world, MixedPrecisionOptions::Precision::Bf16); }), 2e-2, 1},
        {"fp16, an update skipped by its loss scale", with([=](const auto& world) { return overflowing(world, MixedPrecisionOptions::Precision::Fp16); }), 2e-2, 1},
        {"updates skipped as a loss is not finite", {.more = [](const auto&) -> Callbacks { return {make_nan_policy()}; }, .data = data_with_nan()}, 1e-6, 2},
        {"unused looked for", {.gradients = {.find_unused = true}}},
        {"the optimizer's state divided, with clipping", with(divided)},
        {"the optimizer's state divided, with accumulation and layers unfrozen later", with(divided_with_more)},
        {"accumulation, clipping, an average of weights and layers unfrozen later", with(together)},
        {"batch norm over ranks", {.more = synchronized, .make_model = normalized_model}, 1e-5},
        {"batch norm over ranks, with accumulation and clipping", {.more = synchronized_with_more, .make_model = normalized_model}, 1e-5},
        {"data sent by rank 0", {.options = {.sharding = Sharding::Dispatch}}},
    };
    const int most = TestType::most_ranks(4);
    for (const Case& one : cases) {
        const Trained alone = train(one.setup, nullptr);
        for (int size = 1; size <= most; ++size) {
            INFO(one.name << ", " << size << " ranks");
            const std::vector<Trained> ranks = train_on<TestType>(size, one.setup);
            for (const Trained& rank : ranks) {
                REQUIRE(rank.after_step.size() == alone.after_step.size());
                for (std::size_t step = 0; step < rank.after_step.size(); ++step) {
                    CHECK(equal_bits(rank.after_step[step], ranks[0].after_step[step]));
                    CHECK(relative_difference(rank.after_step[step], alone.after_step[step]) <= one.tolerance);
                }
                CHECK(relative_difference(rank.weights, alone.weights) <= one.tolerance);
                REQUIRE(rank.metrics.size() == alone.metrics.size());
                for (const auto& [name, value] : alone.metrics) {
                    if (std::isnan(value)) CHECK(std::isnan(rank.metrics.at(name)));
                    else CHECK(rank.metrics.at(name) == Approx(value).epsilon(one.tolerance));
                }
                CHECK(rank.position == alone.position);  // samples are those of all ranks
                CHECK(rank.evaluated == 10);
                CHECK(rank.position.step == rank.position.attempts - one.skipped);
            }
        }
    }
}

TEMPLATE_TEST_CASE("a state divided among ranks is kept once, and updates have the bits of one that is not", "[distributed][zero_redundancy]", OverGloo, OverNccl) {
    const auto divided = [](const std::shared_ptr<World>& world) -> std::vector<ComposedCallback> { return {make_zero_redundancy({.world = world})}; };
    const int most = TestType::most_ranks(4);
    for (int size = 1; size <= most; ++size) {
        const std::vector<Trained> whole = train_on<TestType>(size, {}), ranks = train_on<TestType>(size, {.more = divided});
        int with_state = 0;
        for (const Trained& rank : ranks) {
            CHECK(rank.after_step.size() == whole[0].after_step.size());
            for (std::size_t step = 0; step < rank.after_step.size(); ++step) CHECK(equal_bits(rank.after_step[step], whole[0].after_step[step]));
            with_state += rank.with_state;
        }
        CHECK(with_state == 4);
        CHECK(whole[0].with_state == 4);
        if (size == 4) CHECK(ranks[0].with_state == 1);
    }
}

TEMPLATE_TEST_CASE("ranks that divide an update measure its gradients once, and make of them what each alone makes", "[distributed][zero_redundancy]", OverGloo, OverNccl) {
    using Callbacks = std::vector<ComposedCallback>;
    struct Case {
        const char* name;
        std::function<Callbacks()> more;
        AnyDataset data = toy_data(26);
    };
    const std::vector<Case> cases = {
        {"clipping by norm", [] { return Callbacks{make_gradient_clipping({.max_norm = 0.1})}; }},
        {"clipping by the largest", [] { return Callbacks{make_gradient_clipping({.max_norm = 0.01, .norm_type = std::numeric_limits<double>::infinity()})}; }},
        {"adaptive clipping", [] { return Callbacks{make_gradient_clipping({.by = GradientClippingOptions::By::Adaptive})}; }},
        {"a NaN policy", [] { return Callbacks{make_nan_policy()}; }, data_with_nan()},
        {"a loss scale", [] { return Callbacks{make_mixed_precision({.precision = MixedPrecisionOptions::Precision::Bf16, .scale_loss = true})}; }, data_with_nan()},
        {"sharpness", [] { return Callbacks{make_sharpness_aware()}; }},
        {"sharpness by weights", [] { return Callbacks{make_sharpness_aware({.rho = 0.5, .adaptive = true})}; }},
    };
    const int most = TestType::most_ranks(4);
    for (const Case& one : cases) {
        for (int size = 1; size <= most; ++size) {
            INFO(one.name << ", " << size << " ranks");
            const std::vector<Trained> whole = train_on<TestType>(size, {.more = [&](const auto&) { return one.more(); }, .data = one.data});
            std::vector<int> owned(static_cast<std::size_t>(size)), sums(static_cast<std::size_t>(size)), measured_once(static_cast<std::size_t>(size));
            const auto divided = [&](const std::shared_ptr<World>& world) {
                Callbacks all = one.more();
                all.emplace_back(make_zero_redundancy({.world = world}));
                all.push_back(callback_of("view", [&, rank = static_cast<std::size_t>(world->rank())](Attachment& run, Connections& connections) {
                    connections += run.bus.intercept(Phase::Inspect, [&, rank](GradientsReady& event) {
                        owned[rank] = static_cast<int>(std::ranges::count_if(event.gradients.parameters(), [&](const at::Tensor& parameter) { return event.gradients.is_own(parameter); }));
                        std::vector<at::Tensor> unknown_to_others;
                        for (const at::Tensor& parameter : event.gradients.parameters())
                            unknown_to_others.push_back(event.gradients.is_own(parameter) ? parameter.grad() : torch::full_like(parameter.grad(), std::numeric_limits<float>::quiet_NaN()));
                        for (const double p : {2.0, std::numeric_limits<double>::infinity()}) {
                            const at::Tensor whole_norms = torch::stack(at::_foreach_norm(event.gradients.held(), p));
                            if (!whole_norms.isfinite().all().template item<bool>()) continue;  // of the window that is skipped
                            measured_once[rank] += whole_norms.equal(event.gradients.norms_of(unknown_to_others, p)) && whole_norms.equal(event.gradients.norms(p)) ? 1 : -1000;
                        }
                        sums[rank] = event.gradients.sum_over_owners(torch::ones({}, event.gradients.parameters().front().options().requires_grad(false))).template item<int>();
                    });
                }));
                return all;
            };
            const std::vector<Trained> ranks = train_on<TestType>(size, {.more = divided, .data = one.data});
            for (const Trained& rank : ranks) {
                REQUIRE(rank.after_step.size() == whole[0].after_step.size());
                for (std::size_t step = 0; step < rank.after_step.size(); ++step) CHECK(equal_bits(rank.after_step[step], whole[0].after_step[step]));
                CHECK(rank.position == whole[0].position);
            }
            CHECK(std::accumulate(owned.begin(), owned.end(), 0) == 4);
            CHECK(std::ranges::count(sums, size) == size);
            for (const int times : measured_once) CHECK(times > 2);
        }
    }
}

TEMPLATE_TEST_CASE("buffers of all ranks are those of rank 0 after every step", "[distributed][data_parallel]", OverGloo, OverNccl) {
    if (!fits<TestType>(3)) return;
    const std::vector<Trained> ranks = train_on<TestType>(3, {.data = toy_data(24), .make_model = normalized_model});
    for (const Trained& rank : ranks)
        for (std::size_t step = 0; step < rank.after_step.size(); ++step) CHECK(equal_bits(rank.after_step[step], ranks[0].after_step[step]));
}

TEMPLATE_TEST_CASE("batch norm over ranks leaves instance norm, evaluation, and what is outside of a forward as they are", "[distributed][sync_batch_norm]", OverGloo, OverNccl) {
    if (!fits<TestType>(2)) return;
    const auto outputs = on_ranks<std::vector<at::Tensor>>(2, [](const std::shared_ptr<World>& world) {
        torch::nn::BatchNorm2d norm(torch::nn::BatchNorm2dOptions(3).momentum(0.3));
        const c10::Device device(TestType::device(world->rank()));
        const CurrentDevice current(device);
        world->use_device(device);
        norm->to(device);
        auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
        const at::Tensor whole = torch::randn({5, 3, 2, 2}, generator, at::TensorOptions()).to(device);
        const at::Tensor own = world->rank() == 0 ? whole.narrow(0, 0, 2) : whole.narrow(0, 2, 3);
        std::vector<at::Tensor> found;
        {
            const BatchNormOverRanks over_ranks(world, {own.size(0), own.size(0)});
            found.push_back(norm(own).detach());
            found.push_back(torch::instance_norm(own, {}, {}, {}, {}, true, 0.1, 1e-5, false));
            norm->eval();
            found.push_back(norm(own).detach());
            norm->train();
        }
        found.push_back(norm(own).detach());
        for (at::Tensor& tensor : found) tensor = tensor.cpu();
        return found;
    });
    torch::nn::BatchNorm2d norm(torch::nn::BatchNorm2dOptions(3).momentum(0.3));
    auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
    const at::Tensor whole = torch::randn({5, 3, 2, 2}, generator, at::TensorOptions());
    const auto together = [&](std::size_t place) { return torch::cat({outputs[0][place], outputs[1][place]}); };
    CHECK(torch::allclose(together(0), norm(whole).detach(), 1e-5, 1e-6));
    CHECK(torch::allclose(together(1), torch::instance_norm(whole, {}, {}, {}, {}, true, 0.1, 1e-5, false), 1e-5, 1e-6));
    norm->eval();
    CHECK(torch::allclose(together(2), norm(whole).detach(), 1e-5, 1e-6));  // of the same running statistics
    norm->train();
    CHECK(torch::allclose(outputs[0][3], norm(whole.narrow(0, 0, 2)).detach(), 1e-5, 1e-6));
}

TEMPLATE_TEST_CASE("the order of the data is the same however ranks share it", "[distributed][data_parallel]", OverGloo, OverNccl) {
    if (!fits<TestType>(3)) return;
    // Of the last batch, of two samples, the third rank has none of its own.
    std::map<Sharding, std::vector<std::vector<std::int64_t>>> of_ranks;
    for (const Sharding sharding : {Sharding::Uneven, Sharding::Even, Sharding::Dispatch}) {
        const auto found = on_ranks<std::vector<std::vector<std::int64_t>>>(3, [&](const std::shared_ptr<World>& world) {
            std::vector<std::vector<std::int64_t>> batches;
            auto model = toy_model();
            Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                             .callbacks = {make_device_placement({TestType::device(world->rank())}), make_data_parallel({.world = world}), callback_of("tap", [&](Attachment& run, Connections& connections) {
                                               connections += run.bus.observe<ForwardEnd>(Stage::Observe, [&](const ForwardEnd& event) {
                                                   batches.push_back(event.batch.indices);
                                                   batches.back().push_back(-event.batch.valid);
                                               });
                                           })}, .seed = 4, .handle_signals = false});
            const AnyDataset data = sharding == Sharding::Dispatch && world->rank() > 0 ? AnyDataset() : AnyDataset(toy_data(14));
            trainer.train(data, {.batch_size = 4, .sharding = sharding});
            return batches;
        });
        for (const auto& of_rank : found) of_ranks[sharding].insert(of_ranks[sharding].end(), of_rank.begin(), of_rank.end());
    }
    CHECK(of_ranks[Sharding::Dispatch] == of_ranks[Sharding::Uneven]);
    const auto& even = of_ranks[Sharding::Even];
    const auto& uneven = of_ranks[Sharding::Uneven];
    REQUIRE(even.size() == 6);
    CHECK(even[0] == uneven[0]);
    CHECK(even[1].size() == 2);  // one sample, and how many are valid
    CHECK(even[1].back() == -1);
    CHECK(even[5].front() == even[0].front());  // filled up from the beginning of the epoch
    CHECK(even[5].back() == 0);
    CHECK(uneven[5].back() == 0);
}

TEMPLATE_TEST_CASE("samples that fill up even batches count in no metric", "[distributed][data_parallel]", OverGloo, OverNccl) {
    if (!fits<TestType>(3)) return;
    const auto measured = [](const std::shared_ptr<World>& world, const std::string& device) {
        static std::mutex drawing;
        std::unique_lock lock(drawing);
        auto model = toy_model();
        lock.unlock();
        std::vector<ComposedCallback> callbacks = {make_device_placement({device}), make_metrics({.accuracy = true})};
        if (world) callbacks.emplace_back(make_data_parallel({.world = world}));
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0}), .callbacks = std::move(callbacks), .handle_signals = false});
        trainer.train(toy_data(14), toy_data(14, 3), {.epochs = 1, .batch_size = world ? 4 : 12, .sharding = world ? Sharding::Even : Sharding::Uneven});
        const auto& metrics = trainer.history().epochs().back().metrics;
        return std::map<std::string, double>(metrics.begin(), metrics.end());
    };
    const auto alone = measured(nullptr, "cpu");
    // Of the last batch, of two samples, the third rank takes one again.
    for (const auto& rank : on_ranks<std::map<std::string, double>>(3, [&](const std::shared_ptr<World>& world) { return measured(world, TestType::device(world->rank())); })) {
        CHECK(rank.size() == alone.size());
        for (const auto& [name, value] : alone) CHECK(rank.at(name) == Approx(value).epsilon(1e-6));
    }
}

TEMPLATE_TEST_CASE("predictions of all ranks are in the order of the data, on each of them", "[distributed][data_parallel]", OverGloo, OverNccl) {
    if (!fits<TestType>(3)) return;
    auto alone = toy_model();
    const at::Tensor expected = Trainer({.model = alone, .handle_signals = false}).predict(toy_data(14), {.batch_size = 4});
    for (const bool dispatch : {false, true}) {
        const auto found = on_ranks<at::Tensor>(3, [&](const std::shared_ptr<World>& world) {
            static std::mutex drawing;
            std::unique_lock lock(drawing);
            auto model = toy_model();
            lock.unlock();
            Trainer trainer({.model = model, .callbacks = {make_device_placement({TestType::device(world->rank())}), make_data_parallel({.world = world})}, .handle_signals = false});
            return trainer.predict(toy_data(14), {.batch_size = 2, .dispatch = dispatch}).cpu();
        });
        for (const at::Tensor& outputs : found) CHECK(torch::allclose(outputs, expected, 1e-6, 1e-7));
    }
}

TEMPLATE_TEST_CASE("a parameter that the loss does not reach is an error in the step that leaves it out, unless it is looked for", "[distributed][data_parallel]", OverGloo, OverNccl) {
    if (!fits<TestType>(2)) return;
    const auto train_with_one_too_many = [](bool find_unused) {
        return on_ranks<int>(2, [=](const std::shared_ptr<World>& world) {
            auto model = toy_model();
            auto parameters = model->parameters();
            const std::string device = TestType::device(world->rank());
            parameters.push_back(torch::ones({2}, torch::TensorOptions().device(device).requires_grad(true)));
            Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(parameters, {}), .callbacks = {make_device_placement({device}), make_data_parallel({.world = world, .gradients = {.find_unused = find_unused}})}, .handle_signals = false});
            return trainer.train(toy_data(12), {.max_steps = 1, .batch_size = 4}).exit_code;
        });
    };
    CHECK_THROWS_WITH(train_with_one_too_many(false), Catch::Matchers::Contains("the loss does not reach all parameters of an update") || Catch::Matchers::Contains("connection") || Catch::Matchers::Contains("failed at"));
    CHECK(train_with_one_too_many(true) == std::vector<int>{0, 0});
}

TEMPLATE_TEST_CASE("a loss that is no number on one rank ends all of them", "[distributed][data_parallel]", OverGloo, OverNccl) {
    if (!fits<TestType>(3)) return;
    const auto clean = toy_data(26);
    at::Tensor inputs = clean->inputs().clone();
    inputs[5][0] = std::numeric_limits<float>::quiet_NaN();
    const DataParallelSetup setup{.more = [](const auto&) -> std::vector<ComposedCallback> { return {make_terminate_on_nan({})}; }, .data = std::make_shared<TensorDataset>(inputs, clean->targets())};
    CHECK_THROWS_WITH(train_on<TestType>(3, setup), Catch::Matchers::Contains("terminate_on_nan: the training loss is nan"));
}

TEMPLATE_TEST_CASE("what one rank asks for ends all of them at the same step", "[distributed][data_parallel]", OverGloo, OverNccl) {
    if (!fits<TestType>(3)) return;
    for (int asking = 0; asking < 3; ++asking) {
        const std::vector<Trained> ranks = train_on<TestType>(3, {.more = [asking](const std::shared_ptr<World>& world) -> std::vector<ComposedCallback> {
            return {callback_of("asker", [=](Attachment& run, Connections& connections) {
                connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [=, &run](const TrainStepEnd& event) {
                    if (world->rank() == asking && event.position.step == 1) run.asker.ask(Decision::StopRun, "enough");
                });
            })};
        }});
        for (const Trained& rank : ranks) {
            CHECK(rank.result.outcome == Outcome::Stopped);
            CHECK(rank.result.requester == "asker");
            CHECK(rank.position.step == 2);  // the exchange overlaps with a step
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
