// Values are compared with those of torchmetrics; test/references/metrics.py made them.
#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/regression_metrics.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"
#include "support/pass_of_batches.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

/// [N] or [N, D]
at::Tensor tensor_of(const json& values) {
    if (!values[0].is_array()) return torch::tensor(values.get<std::vector<float>>());
    std::vector<at::Tensor> rows;
    for (const json& row : values) rows.push_back(torch::tensor(row.get<std::vector<float>>()));
    return torch::stack(rows);
}

}  // namespace

TEST_CASE("regression metrics equal torchmetrics', however the samples lie in batches", "[callbacks][regression-metrics]") {
    std::ifstream file(source_root() + "/test/references/metrics.json");
    const json reference = json::parse(file);
    for (const json& one : reference["regression"]) {
        const at::Tensor output = tensor_of(one["output"]), targets = tensor_of(one["targets"]);
        const std::int64_t samples = targets.size(0);
        for (const auto& sizes : {std::vector<std::int64_t>(static_cast<std::size_t>(samples), 1), {samples}, uneven(samples)})
            for (const std::int64_t padding : {0, 3}) {
                const auto numbers = evaluate_alone(make_regression_metrics(), output, targets, sizes, padding);
                for (const auto& [metric, value] : one["values"].items()) {
                    INFO(one["name"] << ", " << metric << ", " << sizes.size() << " batches");
                    CHECK(numbers.at("eval." + metric) == Approx(value.get<double>()).epsilon(1e-6).margin(1e-7));
                }
                if (samples == 1) CHECK(std::isnan(numbers.at("eval.r2")));  // torchmetrics refuses it
            }
    }
}

TEST_CASE("a column beside a vector is no outer product", "[callbacks][regression-metrics]") {
    const at::Tensor targets = torch::tensor({1.0f, 2.0f, 4.0f});
    const auto numbers = evaluate_alone(make_regression_metrics(), targets.unsqueeze(1) + 0.5, targets, {2, 1});
    CHECK(numbers.at("eval.mean_squared_error") == 0.25);
    CHECK(numbers.at("eval.mean_absolute_error") == 0.5);
    CHECK_THROWS_WITH(evaluate_alone(make_regression_metrics(), torch::zeros({4, 2}), torch::zeros({4}), {4}),
                      containing("regression_metrics: needs an output and targets of one shape; got output [4, 2] and targets [4]; nothing is broadcast"));
}

TEST_CASE("classes are compared as one-hot rows", "[callbacks][regression-metrics]") {
    const at::Tensor output = torch::tensor({{0.5f, 0.0f, 0.0f}, {0.0f, 0.0f, 1.0f}});
    const auto numbers = evaluate_alone(make_regression_metrics({.metrics = {"mean_squared_error"}}), output, torch::tensor({0, 2}), {2});
    CHECK(numbers.at("eval.mean_squared_error") == Approx(0.25 / 6));
}

TEST_CASE("r2 holds up where the mean is large against the spread, and for small targets", "[callbacks][regression-metrics]") {
    const at::Tensor targets = torch::tensor({0.0, 1.0, 2.0, 3.0}), output = torch::tensor({0.5, 1.0, 2.0, 3.0});
    const double expected = 1 - 0.25 / 5;  // Σ(y − ȳ)² = 2.25 + 0.25 + 0.25 + 2.25
    const auto r2 = [](const at::Tensor& of, const at::Tensor& beside) { return evaluate_alone(make_regression_metrics({.metrics = {"r2"}}), of, beside, {3, 1}).at("eval.r2"); };
    CHECK(r2(output + 1e4, targets + 1e4) == Approx(expected).epsilon(1e-6));
    CHECK(r2(output * 1e-6, targets * 1e-6) == Approx(expected).epsilon(1e-6));  // an absolute tolerance would call it 1
    CHECK(std::isnan(r2(torch::full({4}, std::numeric_limits<double>::quiet_NaN()), torch::ones({4}))));
}

TEST_CASE("regression metrics are published of training and evaluation, run after run", "[callbacks][regression-metrics]") {
    torch::manual_seed(4);
    torch::nn::Linear model(6, 1);
    Trainer trainer({.model = model, .loss = [](const at::Tensor& output, const at::Tensor& targets) { return torch::mse_loss(output, targets); },
                     .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.05),
                     .callbacks = {make_regression_metrics({.schedule = {.window = 2}})}, .handle_signals = false});
    const at::Tensor inputs = torch::randn({24, 6});
    const auto data = std::make_shared<TensorDataset>(inputs, inputs.sum(1, true));
    for (int run = 0; run < 2; ++run) {
        trainer.train(data, data, {.epochs = 2, .batch_size = 5});
        const at::NoGradGuard no_grad;
        const auto& metrics = trainer.history().epochs().back().metrics;
        CHECK(metrics.at("eval.mean_squared_error") == Approx(torch::mse_loss(model->forward(inputs), data->targets()).item<double>()).epsilon(1e-5));
        CHECK(metrics.at("eval.root_mean_squared_error") == Approx(std::sqrt(metrics.at("eval.mean_squared_error"))));
        CHECK(metrics.contains("train.r2"));
        CHECK(metrics.contains("train.running.r2"));
    }
}

TEST_CASE("unknown regression metrics are refused with a suggestion", "[callbacks][regression-metrics]") {
    CHECK_THROWS_WITH(make_regression_metrics({.metrics = {"r3"}}), Catch::Matchers::StartsWith("regression_metrics: metrics: 'r3' is not known; did you mean 'r2'?"));
    CHECK_THROWS_WITH(make_regression_metrics({.metrics = {"r2", "r2"}}), "regression_metrics: metrics: 'r2' is named twice; name it once");
    CHECK_THROWS_WITH(make_regression_metrics({.metrics = {}}), Catch::Matchers::StartsWith("regression_metrics: metrics: nothing is measured; name some of mean_absolute_error"));
}
