#include <fstream>

#include <torchbus/callbacks/learning_rate_finder.hpp>
#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

using Options = LearningRateFinderOptions;

/// With dropout and batch norm: generators and buffers have to come back too.
torch::nn::Sequential restless_model() {
    torch::manual_seed(1);
    return torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8), torch::nn::Dropout(0.5), torch::nn::Linear(8, 3));
}

struct Plain {
    torch::nn::Sequential model = restless_model();
    std::shared_ptr<torch::optim::Optimizer> optimizer = make_adamw(model->parameters(), {.learning_rate = 0.01});
    /// One epoch of four steps, from whatever the default generator is at.
    RunResult train(std::vector<ComposedCallback> callbacks = {}, Loss loss = cross_entropy, std::int64_t epochs = 1) {
        Trainer trainer({.model = model, .loss = std::move(loss), .optimizer = optimizer, .callbacks = std::move(callbacks), .handle_signals = false});
        return trainer.train(toy_data(32), {.epochs = epochs, .batch_size = 8});
    }
    std::vector<at::Tensor> all() const {
        auto tensors = copies_of(model->parameters());
        for (const at::Tensor& buffer : model->buffers()) tensors.push_back(buffer.clone());
        return tensors;
    }
    double rate() const { return optimizer->param_groups()[0].options().get_lr(); }
};

ComposedCallback finder(Options options) {
    if (!options.write) options.write = [](std::string_view) {};
    return make_learning_rate_finder(std::move(options));
}

/// A loss whose values are written down, one a step; its gradients are zero.
Loss scripted(std::vector<double> values) {
    return [values = std::move(values), next = std::size_t{0}](const at::Tensor& output, const at::Tensor&) mutable { return output.sum() * 0 + values.at(next++); };
}

}  // namespace

TEST_CASE("the rates rise exponentially from the first to the last, and the run stops there", "[callbacks][learning_rate_finder]") {
    LearningRateRange range;
    std::vector<double> rates;
    Plain plain;
    const RunResult result = plain.train({finder({.first = 1e-3, .last = 10, .steps = 5, .smoothing = 0, .on_result = [&](const LearningRateRange& found) { range = found; }}),
                                          callback_of("tap", [&](Attachment& run, Connections& connections) {
                                              connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) { rates.push_back(event.update.optimizer->param_groups()[0].options().get_lr()); });
                                          })}, scripted({5, 4, 3, 2, 1, 0}), 5);
    CHECK(result.outcome == Outcome::Stopped);
    CHECK(result.reason == "the range test is over: 5 learning rates were tried");
    CHECK(range.losses == std::vector<double>{5, 4, 3, 2, 1});
    REQUIRE(range.rates.size() == 5);
    for (std::size_t i = 0; i < 5; ++i) CHECK(range.rates[i] == Approx(std::pow(10.0, static_cast<double>(i) - 3)));
    CHECK(rates == range.rates);
    CHECK_FALSE(range.diverged);
}

TEST_CASE("the suggestions are the steepest point and a tenth of the minimum's rate", "[callbacks][learning_rate_finder]") {
    // rates 1e-3 … 1e3; central differences over two decades: 2 − 5 = −3 at 1e-1, 1 − 4.5 = −3.5 at 1e0; minimum 0.5 at 1e2
    LearningRateRange range;
    std::string text;
    std::optional<double> published;
    const TemporaryFolder folder("learning-rate-finder");
    Plain plain;
    plain.train({finder({.first = 1e-3, .last = 1e3, .steps = 7, .smoothing = 0, .skip_first = 0, .skip_last = 0, .plot = folder / "range.svg",
                         .on_result = [&](const LearningRateRange& found) { range = found; }, .write = [&](std::string_view line) { text += line; }}),
                 callback_of("tap", [&](Attachment& run, Connections& connections) {
                     connections += run.bus.observe<RunClosed>(Stage::Observe, [&](const RunClosed&) { published = run.blackboard.number("learning_rate_finder.steepest"); });
                 })}, scripted({5, 5, 4.5, 2, 1, 0.5, 1}), 2);
    CHECK(range.steepest.value() == Approx(1.0));
    CHECK(range.minimum_tenth.value() == Approx(10.0));
    CHECK(published == range.steepest);
    CHECK(text == "learning rate range test: 7 of 7 steps; suggestions: steepest 1.00e+00, minimum/10 1.00e+01\n");
    std::ifstream file(folder / "range.svg");
    const std::string svg((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    CHECK_THAT(svg, Catch::Matchers::StartsWith("<svg ") && containing("<polyline") && containing("steepest 1.00e+00") && Catch::Matchers::EndsWith("</svg>\n"));
}

TEST_CASE("the smoothed loss is an exponential average, corrected for its start", "[callbacks][learning_rate_finder]") {
    LearningRateRange range;
    Plain plain;
    plain.train({finder({.steps = 3, .smoothing = 0.5, .on_result = [&](const LearningRateRange& found) { range = found; }})}, scripted({4, 2, 1}));
    // 2/0.5 = 4;  (1 + 1)/0.75;  (1 + 0.5)/0.875
    REQUIRE(range.losses.size() == 3);
    CHECK(range.losses[0] == Approx(4));
    CHECK(range.losses[1] == Approx(2 / 0.75));
    CHECK(range.losses[2] == Approx(1.5 / 0.875));
}

TEST_CASE("a loss that diverges or is not finite ends the test", "[callbacks][learning_rate_finder]") {
    for (const double bad : {9.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        LearningRateRange range;
        Plain plain;
        const RunResult result = plain.train({finder({.first = 1e-3, .last = 1, .steps = 4, .smoothing = 0, .divergence_factor = 4, .on_result = [&](const LearningRateRange& found) { range = found; }})},
                                             scripted({4, 2, bad}), 2);
        CHECK(result.reason == "the range test is over: the loss diverged at a learning rate of 1.00e-01");
        CHECK(range.diverged);
        CHECK(range.losses.size() == (bad == 9.0 ? 3 : 2));
    }
}

TEST_CASE("afterwards everything is as it was: the next run is that of a trainer that never searched", "[callbacks][learning_rate_finder]") {
    for (const bool trained_before : {false, true}) {
        Plain reference, searched;
        for (Plain* plain : {&reference, &searched}) {
            torch::manual_seed(3);
            if (trained_before) plain->train();
        }
        torch::manual_seed(4);
        const auto before = searched.all();
        CHECK(searched.train({finder({.steps = 6, .smoothing = 0, .divergence_factor = 1e9})}, cross_entropy, 3).outcome == Outcome::Stopped);
        CHECK(equal_bits(searched.all(), before));
        CHECK(searched.rate() == 0.01);
        searched.train();  // from the generator that the search has put back
        torch::manual_seed(4);
        reference.train();
        CHECK(equal_bits(searched.all(), reference.all()));
    }
}

TEST_CASE("everything comes back from a run that fails too", "[callbacks][learning_rate_finder]") {
    Plain plain;
    const auto before = plain.all();
    torch::manual_seed(4);
    int calls = 0;
    CHECK_THROWS_WITH(plain.train({finder({.last = 1})}, [&](const at::Tensor& output, const at::Tensor& targets) {
        if (++calls == 4) throw std::runtime_error("no loss today");
        return cross_entropy(output, targets);
    }), "no loss today");
    CHECK(equal_bits(plain.all(), before));
    CHECK(plain.rate() == 0.01);
    CHECK(plain.optimizer->state().empty());
    const at::Tensor drawn = torch::rand({3});
    torch::manual_seed(4);
    CHECK(drawn.equal(torch::rand({3})));
}

TEST_CASE("a trainer that is dropped in the middle of the test leaves the weights of before", "[callbacks][learning_rate_finder]") {
    Plain plain;
    const auto before = plain.all();
    {
        Trainer trainer({.model = plain.model, .loss = cross_entropy, .optimizer = plain.optimizer, .callbacks = {finder({.first = 0.1})}, .handle_signals = false});
        trainer.start_training(toy_data(32), {.batch_size = 8});
        while (trainer.position().step < 3) trainer.advance();
        CHECK_FALSE(equal_bits(plain.all(), before));
    }
    CHECK(equal_bits(plain.all(), before));
    CHECK(plain.rate() == 0.01);
}

TEST_CASE("the finder's rates win over a schedule's, and groups keep their ratios", "[callbacks][learning_rate_finder]") {
    auto model = toy_model();
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(model[0]->parameters(), std::make_unique<torch::optim::SGDOptions>(0.1));
    groups.emplace_back(model[2]->parameters(), std::make_unique<torch::optim::SGDOptions>(0.3));
    const auto optimizer = std::make_shared<torch::optim::SGD>(groups, torch::optim::SGDOptions(0.1));
    std::vector<std::pair<double, double>> rates;
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer, .callbacks = {finder({.first = 1e-3, .last = 1e-2, .steps = 2}),
                     make_learning_rate_schedule({[](const Moment&) { return 100.0; }}), callback_of("tap", [&](Attachment& run, Connections& connections) {
                         connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd&) {
                             rates.emplace_back(optimizer->param_groups()[0].options().get_lr(), optimizer->param_groups()[1].options().get_lr());
                         });
                     })}, .handle_signals = false});
    CHECK(trainer.train(toy_data(32), {.batch_size = 8}).outcome == Outcome::Stopped);
    REQUIRE(rates.size() == 2);
    CHECK(rates[0].first == Approx(1e-3));
    CHECK(rates[0].second == Approx(3e-3));
    CHECK(rates[1].first == Approx(1e-2));
    CHECK(optimizer->param_groups()[1].options().get_lr() == 0.3);
}

TEST_CASE("the finder and a saver in one run are refused: what is saved would be of no use", "[callbacks][learning_rate_finder]") {
    const auto model = toy_model();
    CHECK_THROWS_WITH(Trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                               .callbacks = {finder({}), make_save_training_state()}, .handle_signals = false}),
                      "'learning_rate_finder' and 'save_training_state' cannot be in one run: what one does, the other would take for the run's own; leave "
                      "'save_training_state' out of the run with 'learning_rate_finder'");
}

TEST_CASE("the finder refuses several updates and options out of range", "[callbacks][learning_rate_finder]") {
    auto model = toy_model();
    const auto sgd = [&] { return make_sgd(model->parameters(), {}); };
    Trainer trainer({.model = model, .loss = cross_entropy, .updates = {{"one", sgd(), {}, 1}, {"two", sgd(), {}, 1}}, .callbacks = {finder({})}, .handle_signals = false});
    CHECK_THROWS_WITH(trainer.train(toy_data(8)), "'learning_rate_finder' tests one update, and the run has several; give the trainer one of them alone");
    CHECK_THROWS_WITH(make_learning_rate_finder({.first = 0}), "learning_rate_finder: first: 0 is out of range; give a positive learning rate, e.g. 1e-7");
    CHECK_THROWS_AS(make_learning_rate_finder({.first = 1, .last = 1}), ConfigError);
    CHECK_THROWS_AS(make_learning_rate_finder({.steps = 1}), ConfigError);
    CHECK_THROWS_AS(make_learning_rate_finder({.smoothing = 1}), ConfigError);
    CHECK_THROWS_AS(make_learning_rate_finder({.divergence_factor = 1}), ConfigError);
    CHECK_THROWS_AS(make_learning_rate_finder({.skip_last = -1}), ConfigError);
}
