#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/mixed_precision.hpp>
#include <torchbus/callbacks/nan_policy.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

using Options = NanPolicyOptions;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Losses and gradients that a test breaks. Unshuffled batches of four: forward n has the samples 4n to 4n + 3.
struct NanPolicySetup {
    torch::nn::Sequential model = toy_model();
    std::map<int, double> loss_factors;                                ///< by forward
    std::map<std::int64_t, std::pair<int, double>> gradient_factors;   ///< by attempt: which parameter, and the factor
    int forwards = 0;
    std::vector<std::string> skipped;
    std::shared_ptr<Callback> policy;
    Trainer trainer;
    explicit NanPolicySetup(NanPolicyOptions options, std::vector<ComposedCallback> more = {})
        : policy(make_nan_policy(std::move(options))),
          trainer({.model = model, .loss = [this](const at::Tensor& output, const at::Tensor& targets) {
                       const auto factor = loss_factors.find(forwards++);
                       const at::Tensor loss = cross_entropy(output, targets);
                       return factor == loss_factors.end() ? loss : loss * factor->second;
                   }, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.01}), .callbacks = [&] {
                       more.emplace_back(policy);
                       more.push_back(callback_of("tap", [this](Attachment& run, Connections& connections) { tap(run, connections); }));
                       return std::move(more);
                   }(), .handle_signals = false}) {}
    void tap(Attachment& run, Connections& connections) {
        connections += run.bus.intercept(Phase::Finalize, [this](GradientsReady& event) {
            const auto found = gradient_factors.find(event.position.attempts);
            if (found != gradient_factors.end()) model->parameters()[static_cast<std::size_t>(found->second.first)].mutable_grad().mul_(found->second.second);
        });
        connections += run.bus.observe<OptimizerStepSkipped>(Stage::Observe, [this](const OptimizerStepSkipped& event) {
            skipped.push_back(std::string(event.requester) + ": " + std::string(event.reason));
        });
    }
    RunResult train(std::int64_t samples = 40) {
        forwards = 0;
        skipped.clear();
        return trainer.train(toy_data(samples), {.batch_size = 4, .shuffle = false});
    }
    double faults() const { return trainer.blackboard().number("nan_policy.faults").value(); }
    bool is_finite() const {
        return std::ranges::all_of(model->parameters(), [](const at::Tensor& p) { return p.isfinite().all().item<bool>(); });
    }
};

}  // namespace

TEST_CASE("an update with a NaN loss is skipped, and its samples and gradients are named", "[callbacks][nan_policy]") {
    NanPolicySetup setup({});
    setup.loss_factors[2] = kNan;
    CHECK(setup.train().outcome == Outcome::Finished);
    CHECK(setup.skipped == std::vector<std::string>{"nan_policy: the training loss is nan in epoch 1 after step 2; not finite: the gradients of 0.weight, 0.bias, 2.weight, "
                                                    "2.bias; samples 8, 9, 10, 11"});
    CHECK(setup.is_finite());
    CHECK(setup.trainer.position().step == 9);
    CHECK(setup.faults() == 1);
}

TEST_CASE("a gradient that is not finite is named where the loss is finite", "[callbacks][nan_policy]") {
    NanPolicySetup setup({});
    setup.gradient_factors[1] = {2, kInfinity};
    setup.train();
    REQUIRE(setup.skipped.size() == 1);
    CHECK_THAT(setup.skipped[0], containing("the gradient norm is") && Catch::Matchers::EndsWith("not finite: the gradient of 2.weight; samples 4, 5, 6, 7"));
    CHECK(setup.is_finite());
}

TEST_CASE("of a window only the micro-batch that is not finite is named", "[callbacks][nan_policy]") {
    NanPolicySetup setup({}, {make_gradient_accumulation({2})});
    setup.loss_factors[3] = kInfinity;  // the second of the second window
    setup.train();
    REQUIRE(setup.skipped.size() == 1);
    CHECK_THAT(setup.skipped[0], containing("the training loss is inf in epoch 1 after step 1") && Catch::Matchers::EndsWith("samples 12, 13, 14, 15"));
}

TEST_CASE("long lists of samples are cut in words, and whole in the record", "[callbacks][nan_policy]") {
    const TemporaryFolder folder("nan-policy");
    NanPolicySetup setup({.record = (folder / "faults.jsonl").string()}, {make_gradient_accumulation({5})});
    setup.gradient_factors[0] = {0, kNan};
    setup.train();
    REQUIRE(setup.skipped.size() == 1);
    CHECK_THAT(setup.skipped[0], Catch::Matchers::EndsWith("samples 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 and 4 more"));
    std::ifstream file(folder / "faults.jsonl");
    const auto line = nlohmann::json::parse(file);
    CHECK(line["samples"].size() == 20);
    CHECK(line["grad_norm"] == "nan");
    CHECK(line["loss"].is_number());
    CHECK(line["step"] == 0);
    CHECK(line["gradients"] == "not finite: the gradient of 0.weight");
}

TEST_CASE("a loss far above the median is a spike, once there is a history", "[callbacks][nan_policy]") {
    NanPolicySetup setup({.spike = Options::Action::Skip, .spike_factor = 5, .window = 4, .warmup = 4});
    setup.loss_factors = {{1, 100.0}, {6, 100.0}, {8, 4.0}};  // the first comes before the warm-up is over, the last is below the bound
    setup.train();
    REQUIRE(setup.skipped.size() == 1);
    CHECK_THAT(setup.skipped[0], Catch::Matchers::StartsWith("nan_policy: the training loss is ") && containing(" times the usual ") && containing("in epoch 1 after step 6; the largest gradient is that of ") &&
                                     Catch::Matchers::EndsWith("samples 24, 25, 26, 27"));
}

TEST_CASE("a gradient norm far above the usual is a spike, and its largest gradient is named", "[callbacks][nan_policy]") {
    for (const auto usual : {Options::Usual::Median, Options::Usual::MovingAverage}) {
        NanPolicySetup setup({.spike = Options::Action::Skip, .spike_factor = 8, .usual = usual, .window = 8, .warmup = 3});
        setup.gradient_factors[5] = {3, 1000.0};
        setup.train();
        REQUIRE(setup.skipped.size() == 1);
        CHECK_THAT(setup.skipped[0], containing("the gradient norm is ") && containing("the largest gradient is that of 2.bias, with norm ") && Catch::Matchers::EndsWith("samples 20, 21, 22, 23"));
    }
}

TEST_CASE("what is let through with a warning is made, and counts into what is usual", "[callbacks][nan_policy]") {
    NanPolicySetup setup({.spike_factor = 5, .window = 2, .warmup = 2});
    for (int forward = 4; forward < 10; ++forward) setup.loss_factors[forward] = 100;  // the loss has risen for good
    CHECK(setup.train().outcome == Outcome::Finished);
    CHECK(setup.skipped.empty());
    CHECK(setup.trainer.position().step == 10);
    CHECK(setup.faults() == 1);  // the median of the old and the new loss is half of the new, so the second is no spike
}

TEST_CASE("a fault may stop the run or fail it", "[callbacks][nan_policy]") {
    NanPolicySetup stops({.non_finite = Options::Action::Stop});
    stops.loss_factors[2] = kNan;
    const RunResult result = stops.train();
    CHECK(result.outcome == Outcome::Stopped);
    CHECK_THAT(result.reason, Catch::Matchers::StartsWith("the training loss is nan in epoch 1 after step 2"));
    CHECK(stops.is_finite());
    NanPolicySetup fails({.non_finite = Options::Action::Fail});
    fails.loss_factors[2] = kNan;
    CHECK_THROWS_WITH(fails.train(), Catch::Matchers::StartsWith("nan_policy: the training loss is nan in epoch 1 after step 2"));
    CHECK(fails.is_finite());
    NanPolicySetup warns({.non_finite = Options::Action::Warn});
    warns.loss_factors[2] = kNan;
    CHECK(warns.train().outcome == Outcome::Finished);
    CHECK_FALSE(warns.is_finite());
}

TEST_CASE("too many skipped updates in a row fail the run", "[callbacks][nan_policy]") {
    NanPolicySetup setup({.max_in_a_row = 3});
    for (const int forward : {0, 1, 3, 4, 5}) setup.loss_factors[forward] = kNan;
    CHECK_THROWS_WITH(setup.train(), Catch::Matchers::StartsWith("nan_policy: 3 updates were skipped in a row; the last: the training loss is nan"));
    CHECK(setup.trainer.position().attempts == 6);
    CHECK(setup.trainer.position().step == 1);
}

TEST_CASE("an update that loss scaling has skipped is not judged", "[callbacks][nan_policy]") {
    MixedPrecisionOptions scaled;
    scaled.scale_loss = true;
    NanPolicySetup setup({.non_finite = Options::Action::Fail}, {callback_of("overflow", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept<BackwardStart>([](BackwardStart& event) { if (event.position.attempts == 1) event.root = event.root * kInfinity; });
    }), make_mixed_precision(scaled)});
    CHECK(setup.train().outcome == Outcome::Finished);
    REQUIRE(setup.skipped.size() == 1);
    CHECK_THAT(setup.skipped[0], Catch::Matchers::StartsWith("mixed_precision: "));
    CHECK(setup.faults() == 0);
}

TEST_CASE("what is usual goes through the state, and a new run forgets it", "[callbacks][nan_policy]") {
    NanPolicySetup setup({.spike = Options::Action::Skip, .spike_factor = 5, .window = 4, .warmup = 4});
    setup.train(16);  // four updates
    const SavedState state = setup.policy->state();
    NanPolicySetup resumed({.spike = Options::Action::Skip, .spike_factor = 5, .window = 4, .warmup = 4});
    resumed.policy->load_state({nlohmann::json::parse(state.values.dump()), {}});
    CHECK(resumed.policy->state().values == state.values);
    resumed.loss_factors[0] = 100;
    resumed.train(16);
    CHECK(resumed.skipped.size() == 1);
    resumed.train(16);
    CHECK(resumed.skipped.empty());
}

TEST_CASE("nan_policy refuses options out of range", "[callbacks][nan_policy]") {
    CHECK_THROWS_WITH(make_nan_policy({.spike_factor = 1}), "nan_policy: spike_factor: 1 is out of range; give a factor above 1, e.g. 10, or 0 to look for no spikes");
    CHECK_NOTHROW(make_nan_policy({.spike_factor = 0}));
    CHECK_THROWS_AS(make_nan_policy({.window = 0}), ConfigError);
    CHECK_THROWS_AS(make_nan_policy({.warmup = 0}), ConfigError);
    CHECK_THROWS_AS(make_nan_policy({.max_in_a_row = 0}), ConfigError);
}
