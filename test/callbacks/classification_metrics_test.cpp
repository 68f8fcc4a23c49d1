// Values are compared with those of torchmetrics; test/references/metrics.py made them.
#include <fstream>
#include <set>
#include <thread>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/classification_metrics.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/error.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/fake_world.hpp"
#include "support/pass_of_batches.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace torchbus {
std::unique_ptr<Callback> classification_metrics_from_json(OptionReader& reader);
}

namespace {

const json& reference() {
    static const json loaded = [] {
        std::ifstream file(source_root() + "/test/references/metrics.json");
        return json::parse(file);
    }();
    return loaded;
}

struct Case {
    std::string name;
    at::Tensor output, targets;
    const json& values;
    at::Tensor confusion_matrix;
};

std::vector<Case> cases() {
    std::vector<Case> result;
    const auto matrix = [](const json& rows) {
        std::vector<at::Tensor> parts;
        for (const json& row : rows) parts.push_back(torch::tensor(row.get<std::vector<double>>()));
        return torch::stack(parts);
    };
    for (const json& one : reference()["classification"])
        result.push_back({one["name"], matrix(one["output"]).to(torch::kFloat), torch::tensor(one["targets"].get<std::vector<std::int64_t>>()), one["values"],
                          matrix(one["confusion_matrix"])});
    return result;
}

constexpr std::pair<const char*, Average> kAverages[] = {{"macro", Average::Macro}, {"micro", Average::Micro}, {"weighted", Average::Weighted}};
const std::vector<std::string> kFromCounts = {"accuracy", "top_k_accuracy", "precision", "recall", "f_beta"};
const std::vector<std::string> kAreas = {"auroc", "average_precision"};

ClassificationMetricsOptions options_of(std::vector<std::string> metrics, Average average = Average::Macro) {
    return {.metrics = std::move(metrics), .average = average, .top_k = 2, .beta = 0.5};
}

/// One sample after the other, all at once, or 1, 3, 5, …
std::vector<std::vector<std::int64_t>> splits_of(std::int64_t samples) { return {std::vector<std::int64_t>(static_cast<std::size_t>(samples), 1), {samples}, uneven(samples)}; }

}  // namespace

TEST_CASE("metrics from counts equal torchmetrics', however the samples lie in batches", "[callbacks][classification-metrics]") {
    for (const Case& one : cases())
        for (const auto& [word, average] : kAverages)
            for (const auto& sizes : splits_of(one.targets.size(0))) {
                const auto numbers = evaluate_alone(make_classification_metrics(options_of(kFromCounts, average)), one.output, one.targets, sizes);
                CHECK(numbers.size() == kFromCounts.size());
                for (const std::string& metric : kFromCounts) {
                    INFO(one.name << ", " << word << ", " << metric << ", " << sizes.size() << " batches");
                    CHECK(numbers.at("eval." + metric) == Approx(one.values[word][metric].get<double>()).epsilon(1e-6).margin(1e-7));
                }
            }
}

TEST_CASE("exact areas equal torchmetrics', with ties, missing classes and single samples", "[callbacks][classification-metrics]") {
    for (const Case& one : cases())
        for (const auto& [word, average] : kAverages)
            for (const auto& sizes : splits_of(one.targets.size(0))) {
                const auto numbers = evaluate_alone(make_classification_metrics(options_of(kAreas, average)), one.output, one.targets, sizes);
                for (const std::string& metric : kAreas) {
                    if (!one.values[word].contains(metric)) continue;  // metrics.py says where torchmetrics differs
                    INFO(one.name << ", " << word << ", " << metric << ", " << sizes.size() << " batches");
                    CHECK(numbers.at("eval." + metric) == Approx(one.values[word][metric].get<double>()).epsilon(1e-6).margin(1e-7));
                }
            }
}

TEST_CASE("binned areas equal torchmetrics', except that classes without samples have no average precision", "[callbacks][classification-metrics]") {
    for (const Case& one : cases())
        for (const auto& [word, average] : kAverages)
            for (const auto& sizes : splits_of(one.targets.size(0))) {
                auto options = options_of(kAreas, average);
                options.thresholds = reference()["thresholds"];
                const auto numbers = evaluate_alone(make_classification_metrics(options), one.output, one.targets, sizes);
                for (const std::string& metric : kAreas) {
                    INFO(one.name << ", " << word << ", " << metric << ", " << sizes.size() << " batches");
                    double expected = one.values[word]["binned_" + metric];
                    // torchmetrics counts them as 0 here, and leaves them out where it is exact.
                    const auto present = static_cast<double>(std::get<0>(at::_unique(one.targets)).numel());
                    if (metric == "average_precision" && average == Average::Macro) expected *= static_cast<double>(one.output.size(1)) / present;
                    CHECK(numbers.at("eval." + metric) == Approx(expected).epsilon(1e-6).margin(1e-7));
                }
            }
}

TEST_CASE("the confusion matrix is emitted once a pass, targets in rows, and streams as JSON", "[callbacks][classification-metrics]") {
    for (const Case& one : cases()) {
        INFO(one.name);
        AloneOnBus alone(make_classification_metrics({.metrics = {"confusion_matrix"}}));
        std::vector<at::Tensor> seen;
        json streamed;
        auto tap = alone.bus().subscribe("tap");
        const auto connection = tap.observe<ConfusionMatrix>(Stage::Observe, [&](const ConfusionMatrix& event) { seen.push_back(event.counts); to_json(streamed, event); });
        const Scope scope{Mode::Eval, "noisy", "training"};
        alone.bus().moment().mode = Mode::Eval;
        alone.bus().emit(EvalEpochStart{{}, scope});
        for (std::int64_t i = 0; i < one.targets.size(0); ++i) send_batch(alone.bus(), scope, one.output, one.targets, i, 1);
        CHECK(seen.empty());
        alone.bus().emit(EvalEpochEnd{{}, scope, 0, 0, true});
        REQUIRE(seen.size() == 1);
        CHECK(torch::equal(seen[0], one.confusion_matrix));
        CHECK(streamed["name"] == "eval.noisy");
        CHECK(streamed["counts"][0][1] == one.confusion_matrix[0][1].item<std::int64_t>());
        CHECK(alone.blackboard().names().empty());
    }
}

TEST_CASE("padding duplicates and ignored targets do not count", "[callbacks][classification-metrics]") {
    const Case one = cases().front();
    for (const auto& metrics : {kFromCounts, kAreas}) {
        const auto expected = evaluate_alone(make_classification_metrics(options_of(metrics)), one.output, one.targets, {one.targets.size(0)});
        CHECK(evaluate_alone(make_classification_metrics(options_of(metrics)), one.output, one.targets, uneven(one.targets.size(0)), 3) == expected);
        // Every second sample more, ignored.
        const at::Tensor doubled = torch::stack({one.targets, torch::full_like(one.targets, -100)}, 1).flatten();
        CHECK(evaluate_alone(make_classification_metrics(options_of(metrics)), one.output.repeat_interleave(2, 0), doubled, {2 * one.targets.size(0)}) == expected);
    }
}

TEST_CASE("equal scores in top-k are ranked by class, as argmax does, and a NaN is never right", "[callbacks][classification-metrics]") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const at::Tensor output = torch::tensor({{1.0f, 1.0f, 1.0f}, {1.0f, 1.0f, 1.0f}, {1.0f, 1.0f, 1.0f}, {nan, 2.0f, 1.0f}, {nan, 2.0f, 1.0f}});
    const at::Tensor targets = torch::tensor({0, 1, 2, 0, 2});
    const auto numbers = evaluate_alone(make_classification_metrics({.metrics = {"top_k_accuracy"}, .average = Average::Micro, .top_k = 2}), output, targets, {5});
    CHECK(numbers.at("eval.top_k_accuracy") == Approx(2.0 / 5));  // the first two: two stand before class 2, and of the last row too
}

TEST_CASE("positions within a sample count like samples", "[callbacks][classification-metrics]") {
    const Case one = cases().front();
    const std::int64_t half = one.targets.size(0) / 2;
    const at::Tensor output = one.output.narrow(0, 0, 2 * half), targets = one.targets.narrow(0, 0, 2 * half);
    for (const auto& metrics : {kFromCounts, kAreas}) {
        const auto flat = evaluate_alone(make_classification_metrics(options_of(metrics)), output, targets, {2 * half});
        const auto pairs = evaluate_alone(make_classification_metrics(options_of(metrics)), output.view({half, 2, 4}).transpose(1, 2), targets.view({half, 2}), {half});
        CHECK(flat == pairs);  // [N, C, 2] and [N, 2]
    }
}

TEST_CASE("probabilities are taken as they are, and scores through softmax", "[callbacks][classification-metrics]") {
    const Case one = cases().front();
    auto options = options_of(kAreas);
    const auto expected = evaluate_alone(make_classification_metrics(options), one.output, one.targets, {one.targets.size(0)});
    options.probabilities = true;
    CHECK(evaluate_alone(make_classification_metrics(options), one.output.softmax(1), one.targets, {one.targets.size(0)}) == expected);
}

TEST_CASE("in a run, micro accuracy is that of the metrics callback, in training and evaluation", "[callbacks][classification-metrics]") {
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                     .callbacks = {make_metrics({.accuracy = true}), make_classification_metrics({.metrics = {"accuracy"}, .average = Average::Micro, .schedule = {.suffix = "_micro"}})},
                     .handle_signals = false});
    for (int run = 0; run < 2; ++run) {
        trainer.train(toy_data(22), toy_data(7, 3), {.epochs = 3, .batch_size = 4});
        CHECK(trainer.history().epochs().size() == 3);
        for (const EpochRecord& record : trainer.history().epochs())
            for (const std::string role : {"train", "eval"}) CHECK(record.metrics.at(role + ".accuracy_micro") == Approx(record.metrics.at(role + ".accuracy")));
    }
}

TEST_CASE("running numbers are those so far, and of the last batches", "[callbacks][classification-metrics]") {
    AloneOnBus alone(make_classification_metrics({.metrics = {"accuracy", "auroc"}, .average = Average::Micro, .schedule = {.window = 2}}));
    const at::Tensor output = torch::eye(2).index_select(0, torch::tensor({0, 0, 0, 0, 1, 1}));
    const at::Tensor targets = torch::tensor({0, 1, 1, 1, 1, 1});
    const Scope scope{Mode::Train, "train", "training"};
    alone.bus().emit(TrainEpochStart{});
    const auto number = [&](const char* name) { return alone.blackboard().number(name); };
    CHECK_FALSE(number("train.accuracy"));
    std::vector<double> so_far, last_two;
    for (const std::int64_t from : {0, 2, 4}) {
        send_batch(alone.bus(), scope, output, targets, from, 2);
        so_far.push_back(*number("train.accuracy"));
        last_two.push_back(*number("train.running.accuracy"));
    }
    CHECK(so_far == std::vector<double>{0.5, 0.25, 0.5});    // 1/2, 1/4, 3/6
    CHECK(last_two == std::vector<double>{0.5, 0.25, 0.5});  // 1/2, 1/4, 2/4
    CHECK_FALSE(number("train.auroc"));                      // exact: at the end only
    send_batch(alone.bus(), scope, output, targets, 4, 2, 0, /*pass=*/1);
    CHECK(*number("train.accuracy") == 0.5);  // a repeated window counts once
    alone.bus().emit(TrainEpochEnd{{}, {}, true});
    CHECK(*number("train.accuracy") == 0.5);
    CHECK(number("train.auroc"));
    alone.bus().emit(TrainEpochStart{});
    CHECK(alone.blackboard().names().empty());
}

TEST_CASE("every counts one training batch an interval, and all of an evaluation", "[callbacks][classification-metrics]") {
    auto model = toy_model();
    double train = 0, eval = 0;
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.0),
                     .callbacks = {make_classification_metrics({.metrics = {"confusion_matrix"}, .schedule = {.every = 3}})}, .handle_signals = false});
    auto tap = trainer.subscribe("tap");
    const auto connection = tap.observe<ConfusionMatrix>(Stage::Observe, [&](const ConfusionMatrix& event) { (event.name == "train" ? train : eval) = event.counts.sum().item<double>(); });
    trainer.train(toy_data(40), toy_data(10, 3), {.batch_size = 4});
    CHECK(train == 12);  // of the batches after steps 0 to 9, those after 3, 6 and 9
    CHECK(eval == 10);
}

TEST_CASE("splits that are not named are not measured, and an unknown one is refused", "[callbacks][classification-metrics]") {
    const auto trained = [](std::vector<std::string> splits) {
        auto model = toy_model();
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                         .callbacks = {make_classification_metrics({.metrics = {"recall"}, .schedule = {.splits = std::move(splits)}})}, .handle_signals = false});
        trainer.train(toy_data(8), toy_data(8, 3), {.batch_size = 4});
        return trainer.history().epochs().back().metrics;
    };
    CHECK(trained({"eval"}).contains("eval.recall"));
    CHECK_FALSE(trained({"eval"}).contains("train.recall"));
    CHECK_FALSE(trained({"train"}).contains("eval.recall"));
    CHECK_THROWS_WITH(trained({"evla"}), containing("'classification_metrics' measures the split 'evla', which this run does not have; did you mean 'eval'?; name one of its splits"));
}

TEST_CASE("what an epoch has gathered goes through a saved state", "[callbacks][classification-metrics]") {
    const Case one = cases().front();
    const std::int64_t samples = one.targets.size(0), first = 11;
    const Scope scope{Mode::Train, "train", "training"};
    const auto options = [] {
        auto result = options_of({"accuracy", "recall", "auroc"});
        result.schedule.window = 3;
        return result;
    };
    const auto send = [&](AloneOnBus& alone, std::int64_t from, std::int64_t to) {
        for (; from < to; from += 2) send_batch(alone.bus(), scope, one.output, one.targets, from, std::min<std::int64_t>(2, to - from));
    };
    const auto numbers_of = [](AloneOnBus& alone) {
        alone.bus().emit(TrainEpochEnd{{}, {}, true});
        std::map<std::string, double> numbers;
        for (const std::string& name : alone.blackboard().names()) numbers[name] = *alone.blackboard().number(name);
        return numbers;
    };
    AloneOnBus whole(make_classification_metrics(options()));
    whole.bus().emit(TrainEpochStart{});
    send(whole, 0, first);
    const SavedState saved = whole.callback().state();
    AloneOnBus resumed(make_classification_metrics(options()));
    resumed.callback().load_state({json::parse(saved.values.dump()), saved.tensors});
    Position position;
    position.in_epoch.micro_batch = 6;
    resumed.bus().emit(TrainEpochStart{position});  // told again or not: the epoch goes on
    for (AloneOnBus* alone : {&whole, &resumed}) send(*alone, first, samples);
    const auto expected = numbers_of(whole);
    CHECK(expected.size() == 5);  // three, and two of them running
    CHECK(numbers_of(resumed) == expected);
    CHECK(whole.callback().state().values.size() == 3);  // the epoch is told; its last batches still run

    AloneOnBus other(make_classification_metrics({.metrics = {"confusion_matrix"}}));
    CHECK_THROWS_AS(other.callback().load_state(saved), CheckpointError);
}

TEST_CASE("ranks with different shares, even without a batch, publish the numbers of one process", "[callbacks][classification-metrics]") {
    const auto data = toy_data(11, 3);
    auto options = options_of({"accuracy", "recall", "auroc", "average_precision"});
    options.thresholds = 50;
    // Rows of the evaluation of each rank; the rank without any has a share that is all padding.
    const auto run = [&](std::vector<std::vector<std::int64_t>> shares) {
        const int size = static_cast<int>(shares.size());
        FakeWorld world(size);
        std::vector<std::map<std::string, double>> results(shares.size());
        std::vector<std::thread> threads;
        auto seeded = toy_model();
        const at::Tensor output = [&] { const at::NoGradGuard no_grad; return seeded->forward(data->inputs()); }();
        for (int rank = 0; rank < size; ++rank)
            threads.emplace_back([&, rank] {
                AloneOnBus alone(make_classification_metrics(options), world.consensus(rank));
                const Scope scope{Mode::Eval, "eval", "training"};
                alone.bus().moment().mode = Mode::Eval;
                alone.bus().emit(EvalEpochStart{{}, scope});
                for (const std::int64_t row : shares[static_cast<std::size_t>(rank)]) send_batch(alone.bus(), scope, output, data->targets(), row, 1);
                alone.bus().emit(EvalEpochEnd{{}, scope, 0, 0, true});
                for (const std::string& name : alone.blackboard().names()) results[static_cast<std::size_t>(rank)][name] = *alone.blackboard().number(name);
            });
        for (auto& thread : threads) thread.join();
        return results;
    };
    const auto alone = run({{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}})[0];
    CHECK(alone.size() == 4);
    for (const auto& result : run({{0, 2, 4, 5, 6, 8, 10}, {1, 3, 7, 9}})) CHECK(result == alone);
    for (const auto& result : run({{}, {10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}, {}})) CHECK(result == alone);
}

TEST_CASE("exact areas are refused over ranks", "[callbacks][classification-metrics]") {
    FakeWorld world(2);
    CHECK_THROWS_WITH(AloneOnBus(make_classification_metrics({.metrics = {"auroc"}}), world.consensus(0)),
                      "classification_metrics: auroc and average_precision need all scores in one place where they are exact; give thresholds, e.g. 200, and this run has 2 ranks");
}

TEST_CASE("shapes and targets that do not fit are refused with what was found", "[callbacks][classification-metrics]") {
    const auto evaluate = [](const at::Tensor& output, const at::Tensor& targets, ClassificationMetricsOptions options = {}) {
        evaluate_alone(make_classification_metrics(std::move(options)), output, targets, {targets.size(0)});
    };
    CHECK_THROWS_WITH(evaluate(torch::zeros({4, 3}), torch::zeros({4, 3})),
                      containing("classification_metrics: needs an output of shape [N, C, …] and targets of integers of shape [N, …]; got output [4, 3] and targets [4, 3] of Float"));
    CHECK_THROWS_WITH(evaluate(torch::zeros({4, 1}), torch::zeros({4}, torch::kLong)), containing("the output [4, 1] has one class; give it one column for each class"));
    CHECK_THROWS_WITH(evaluate(torch::zeros({4, 3}), torch::tensor({0, 1, 3, -1})),
                      containing("classification_metrics: 2 targets lie outside of the output's 3 classes (0 to 2); look at the data, or name the one to leave out with ignore_index"));
    CHECK_THROWS_WITH(evaluate(torch::zeros({4, 3}), torch::zeros({4}, torch::kLong), {.classes = 10}),
                      containing("classes is 10, and the output [4, 3] has 3; give 3, or 0 to read it from the output"));
    CHECK_THROWS_WITH(evaluate(torch::zeros({4, 3}), torch::zeros({4}, torch::kLong), {.metrics = {"top_k_accuracy"}}),
                      containing("classification_metrics: top_k is 5, and the output has 3 classes; give at most 3"));
}

TEST_CASE("options out of range are refused, with suggestions", "[callbacks][classification-metrics]") {
    const auto made = [](const char* text) {
        const json options = json::parse(text);
        OptionReader reader(options, "run.json: callbacks[0]");
        return classification_metrics_from_json(reader);
    };
    CHECK(made(R"({"metrics": ["accuracy", "auroc"], "average": "weighted", "thresholds": 20, "every": "10step", "splits": ["eval"], "window": 5})"));
    CHECK_THROWS_WITH(made(R"({"metrics": ["acuracy"]})"), Catch::Matchers::StartsWith("classification_metrics: metrics: 'acuracy' is not known; did you mean 'accuracy'?"));
    CHECK_THROWS_WITH(made(R"({"metrics": []})"), Catch::Matchers::StartsWith("classification_metrics: metrics: nothing is measured; name some of accuracy, "));
    CHECK_THROWS_WITH(made(R"({"average": "marco"})"), Catch::Matchers::StartsWith("run.json: callbacks[0].average: 'marco' is not known; did you mean 'macro'?"));
    CHECK_THROWS_WITH(made(R"({"thresholds": 1})"), "classification_metrics: thresholds: 1 is out of range; give at least 2, e.g. 200, or 0 for exact areas");
    CHECK_THROWS_WITH(make_classification_metrics({.beta = 0}), "classification_metrics: beta: 0 is not positive; give the weight of recall, e.g. 1.0");
    CHECK_THROWS_WITH(make_classification_metrics({.schedule = {.window = -1}}),
                      "classification_metrics: window: -1 is negative; give the number of batches that train.running covers, or 0");
}

TEST_CASE("classification metrics declare what they connect, survive a detach, and leave nothing behind", "[callbacks][classification-metrics]") {
    AloneOnBus alone(make_classification_metrics());
    std::set<std::string> connected;
    for (const ConnectedSlot& slot : alone.bus().slots()) connected.insert(slot.event);
    const auto listens = alone.callback().declare().listens;
    CHECK(connected == std::set<std::string>(listens.begin(), listens.end()));
    const Scope scope{Mode::Train, "train", "training"};
    send_batch(alone.bus(), scope, torch::eye(3), torch::arange(3), 0, 3);
    CHECK(alone.blackboard().names().size() == 3);
    alone.callback().detach();
    CHECK(alone.blackboard().names().empty());
    CHECK(alone.bus().slots().empty());
    alone.attach();
    send_batch(alone.bus(), scope, torch::eye(3), torch::arange(3), 0, 3);
    CHECK(*alone.blackboard().number("train.recall") == 1.0);
}
