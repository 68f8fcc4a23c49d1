#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/cutmix.hpp>
#include <torchbus/callbacks/label_smoothing.hpp>
#include <torchbus/callbacks/mixup.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/error.hpp>

#include "support/alone_on_bus.hpp"
#include "support/catch.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

TEST_CASE("the smoothed loss is that of torch's cross_entropy", "[callbacks][label-smoothing]") {
    const json reference = json::parse(std::ifstream(source_root() + "/test/references/averaging.json"));
    std::vector<at::Tensor> rows;
    for (const json& row : reference["logits"]) rows.push_back(torch::tensor(row.get<std::vector<double>>(), torch::kFloat));
    Batch batch;
    batch.targets = torch::tensor(reference["targets"].get<std::vector<std::int64_t>>());
    for (const json& expected : reference["label_smoothing"]) {
        AloneOnBus alone(make_label_smoothing({.smoothing = expected.at("smoothing")}));
        Output output(torch::stack(rows));
        at::Tensor loss;
        alone.bus().emit(OutputReady{{}, {Mode::Train, "train", "training"}, {}, batch, output, loss});
        CHECK(loss.item<double>() == Approx(expected.at("loss").get<double>()).epsilon(1e-6));
    }
}

TEST_CASE("training is smoothed and evaluation is not", "[callbacks][label-smoothing]") {
    auto model = toy_model();
    auto optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.0);  // the weights stay
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer, .callbacks = {make_metrics(), make_label_smoothing({.smoothing = 0.3})},
                     .handle_signals = false});
    const auto data = toy_data(12);
    trainer.train(data, data, {.batch_size = 4});
    const at::NoGradGuard no_grad;
    const at::Tensor output = model->forward(data->inputs());
    const auto smoothed = torch::nn::functional::CrossEntropyFuncOptions().label_smoothing(0.3);
    CHECK(trainer.history().latest("train.loss").value() == Approx(torch::nn::functional::cross_entropy(output, data->targets(), smoothed).item<double>()).epsilon(1e-6));
    CHECK(trainer.history().latest("eval.loss").value() == Approx(cross_entropy(output, data->targets()).item<double>()).epsilon(1e-6));
}

TEST_CASE("a loss that is supplied already is not replaced in silence", "[callbacks][label-smoothing]") {
    auto model = toy_model();
    Update update{"", std::make_shared<torch::optim::SGD>(model->parameters(), 0.1), [&](const Batch& batch) {
        const at::Tensor output = model->forward(batch.inputs);
        return StepOutput{output, cross_entropy(output, batch.targets)};
    }};
    Trainer trainer({.model = model, .updates = {update}, .callbacks = {make_label_smoothing()}, .handle_signals = false});
    CHECK_THROWS_WITH(trainer.train(toy_data(4)), containing("label_smoothing: the loss is supplied already, by a step function or by a callback before it"));
    for (const auto make : {+[]() -> std::unique_ptr<Callback> { return make_mixup({}); }, +[]() -> std::unique_ptr<Callback> { return make_cutmix({}); }}) {
        const std::string other = make()->kind();
        CHECK_THROWS_WITH(Trainer({.model = model, .loss = cross_entropy, .callbacks = {make_label_smoothing(), make()}, .handle_signals = false}),
                          "'label_smoothing' and '" + other + "' cannot be in one run: both supply the loss, and it has an option label_smoothing of its own; leave '" + other + "' out of the run with 'label_smoothing'");
    }
    CHECK_THROWS_WITH(make_label_smoothing({.smoothing = 1}), "label_smoothing: smoothing: 1 is out of range; give a number in [0, 1), e.g. 0.1");
}
