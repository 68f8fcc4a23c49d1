// Values are compared with those of torchmetrics; test/references/metrics.py made them.
#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/mean_iou.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"
#include "support/pass_of_batches.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

double mean_iou_of(const at::Tensor& output, const at::Tensor& targets, std::vector<std::int64_t> sizes, MeanIouOptions options = {}, std::int64_t padding = 0) {
    return evaluate_alone(make_mean_iou(std::move(options)), output, targets, std::move(sizes), padding).at("eval.mean_iou");
}

}  // namespace

TEST_CASE("mean IoU equals torchmetrics' macro Jaccard index, with a class without pixels and ignored borders", "[callbacks][mean-iou]") {
    std::ifstream file(source_root() + "/test/references/metrics.json");
    const json reference = json::parse(file)["segmentation"];
    const auto tensor = [&](const char* name) {  // flatten() sorts by path: fewer than ten of each keep their order
        std::vector<double> values;
        const json flat = reference[name].flatten();
        for (const auto& [path, value] : flat.items()) values.push_back(value);
        return torch::tensor(values);
    };
    const at::Tensor output = tensor("output").view({3, 4, 5, 6}).to(torch::kFloat);
    const at::Tensor targets = tensor("targets").view({3, 5, 6}).to(torch::kLong), ignored = tensor("targets_with_255").view({3, 5, 6}).to(torch::kLong);
    for (const auto& sizes : {std::vector<std::int64_t>{3}, {1, 2}, {1, 1, 1}})
        for (const std::int64_t padding : {0, 2}) {
            CHECK(mean_iou_of(output, targets, sizes, {}, padding) == Approx(reference["mean_iou"].get<double>()).epsilon(1e-6));
            CHECK(mean_iou_of(output, ignored, sizes, {}, padding) == Approx(reference["mean_iou_without_255"].get<double>()).epsilon(1e-6));
            CHECK(mean_iou_of(output, ignored.to(torch::kByte), sizes, {.classes = 4}, padding) == Approx(reference["mean_iou_without_255"].get<double>()).epsilon(1e-6));
        }
}

TEST_CASE("mean IoU of four pixels, by hand", "[callbacks][mean-iou]") {
    // Predictions 0 0 1 1, targets 0 1 1 1: class 0 is 1 of 2, class 1 is 2 of 3, class 2 does not occur.
    const at::Tensor output = torch::one_hot(torch::tensor({0, 0, 1, 1}), 3).t().reshape({1, 3, 2, 2}).to(torch::kFloat);
    CHECK(mean_iou_of(output, torch::tensor({0, 1, 1, 1}).view({1, 2, 2}), {1}) == Approx((1.0 / 2 + 2.0 / 3) / 2));
    CHECK_THROWS_WITH(mean_iou_of(output, torch::zeros({1, 4}, torch::kLong), {1}),
                      containing("mean_iou: needs an output of shape [N, C, …] and targets of integers of shape [N, …]; got output [1, 3, 2, 2] and targets [1, 4] of Long"));
    CHECK_THROWS_WITH(make_mean_iou({.classes = 1}), "mean_iou: classes: 1 is out of range; give at least 2, or 0 to read it from the output");
}

TEST_CASE("mean IoU is published by a run, of classification too", "[callbacks][mean-iou]") {
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                     .callbacks = {make_mean_iou()}, .handle_signals = false});
    for (int run = 0; run < 2; ++run) {
        trainer.train(toy_data(22), toy_data(22), {.epochs = 2, .batch_size = 4});
        CHECK(trainer.history().latest("eval.mean_iou").value() > 0);
        CHECK(trainer.history().latest("train.mean_iou").value() <= 1);
    }
}
