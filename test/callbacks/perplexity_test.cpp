// Values are compared with those of torchmetrics; test/references/metrics.py made them.
#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/perplexity.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"
#include "support/pass_of_batches.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

struct Tokens {
    at::Tensor output, targets, padded;  ///< [4, 6, 5], [4, 6], [4, 6]
    json values;
};
Tokens tokens() {
    std::ifstream file(source_root() + "/test/references/metrics.json");
    const json reference = json::parse(file)["tokens"];
    const auto in_order = [](const json& nested) {  // flatten() sorts by path: fewer than ten of each keep their order
        std::vector<double> values;
        const json flat = nested.flatten();
        for (const auto& [path, value] : flat.items()) values.push_back(value);
        return torch::tensor(values);
    };
    return {in_order(reference["output"]).view({4, 6, 5}).to(torch::kFloat), in_order(reference["targets"]).view({4, 6}).to(torch::kLong),
            in_order(reference["padded"]).view({4, 6}).to(torch::kLong), reference};
}

double perplexity_of(const at::Tensor& output, const at::Tensor& targets, std::vector<std::int64_t> sizes, PerplexityOptions options = {}) {
    return evaluate_alone(make_perplexity(std::move(options)), output, targets, std::move(sizes)).at("eval.perplexity");
}

}  // namespace

TEST_CASE("perplexity equals torchmetrics', padded or not, however the samples lie in batches", "[callbacks][perplexity]") {
    const Tokens all = tokens();
    for (const auto& sizes : {std::vector<std::int64_t>{4}, {1, 3}, {1, 1, 1, 1}}) {
        CHECK(perplexity_of(all.output, all.targets, sizes) == Approx(all.values["perplexity"].get<double>()).epsilon(1e-6));
        // A mean of the batches' perplexities would differ: their counts of tokens do.
        CHECK(perplexity_of(all.output, all.padded, sizes) == Approx(all.values["perplexity_without_padding"].get<double>()).epsilon(1e-6));
        CHECK(perplexity_of(all.output.transpose(1, 2), all.padded, sizes, {.classes_last = false}) ==
              Approx(all.values["perplexity_without_padding"].get<double>()).epsilon(1e-6));
    }
}

TEST_CASE("an ignored token may have any output, and a wrong class is refused", "[callbacks][perplexity]") {
    const float infinite = std::numeric_limits<float>::infinity();
    const at::Tensor output = torch::tensor({{0.0f, 0.0f}, {-infinite, 0.0f}, {std::numeric_limits<float>::quiet_NaN(), 0.0f}});
    CHECK(perplexity_of(output, torch::tensor({1, -100, -100}), {3}) == Approx(2.0));  // of two equal classes
    CHECK(std::isinf(perplexity_of(output, torch::tensor({1, 0, -100}), {3})));
    CHECK_THROWS_WITH(perplexity_of(output, torch::tensor({1, 2, -100}), {3}), containing("perplexity: 1 targets lie outside of the output's 2 classes (0 to 1)"));
    CHECK_THROWS_WITH(perplexity_of(torch::zeros({2, 5, 7}), torch::zeros({2, 7}, torch::kLong), {2}),
                      containing("perplexity: needs an output of shape [N, …, C] and targets of integers of shape [N, …]; got output [2, 5, 7] and targets [2, 7] of Long"));
}

TEST_CASE("perplexity is exp of the mean loss of a run", "[callbacks][perplexity]") {
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                     .callbacks = {make_perplexity()}, .handle_signals = false});
    const auto data = toy_data(10, 3);
    trainer.train(toy_data(22), data, {.epochs = 2, .batch_size = 4});
    const at::NoGradGuard no_grad;
    CHECK(trainer.history().latest("eval.perplexity").value() == Approx(std::exp(cross_entropy(model->forward(data->inputs()), data->targets()).item<double>())).epsilon(1e-5));
    CHECK(trainer.history().latest("train.perplexity").value() > 1);
}
