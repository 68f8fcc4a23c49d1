// The numbers are those of a plain LibTorch loop.
#include <ATen/autocast_mode.h>

#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixed_precision.hpp>
#include <torchbus/callbacks/progress_bar.hpp>
#include <torchbus/callbacks/terminate_on_nan.hpp>
#include <torchbus/data/sampler.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/event_trace.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

constexpr std::uint64_t kSeed = 11;

torch::nn::Sequential model_with_dropout() {
    torch::manual_seed(1);
    return torch::nn::Sequential(torch::nn::Linear(6, 16), torch::nn::ReLU(), torch::nn::Dropout(0.3), torch::nn::Linear(16, 3));
}

/// Two epochs by hand: same order, same kernels, same dropout.
std::vector<at::Tensor> plain_loop(const TensorDataset& data, std::int64_t batch_size) {
    auto model = model_with_dropout();
    const auto optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1, .momentum = 0.9});
    torch::manual_seed(kSeed);
    model->train();
    for (std::int64_t epoch = 0; epoch < 2; ++epoch) {
        const at::Tensor order = torch::tensor(make_random_sampler()->order(data.size(), kSeed, epoch));
        for (std::int64_t begin = 0; begin < data.size(); begin += batch_size) {
            const at::Tensor index = order.narrow(0, begin, std::min(batch_size, data.size() - begin));
            const at::Tensor loss = cross_entropy(model->forward(data.inputs().index_select(0, index)), data.targets().index_select(0, index));
            optimizer->zero_grad();
            loss.backward();
            optimizer->step();
        }
    }
    return copies_of(model->parameters());
}

std::vector<at::Tensor> torchbus_run(std::shared_ptr<TensorDataset> data, std::int64_t batch_size, std::vector<ComposedCallback> callbacks) {
    auto model = model_with_dropout();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1, .momentum = 0.9}),
                     .callbacks = std::move(callbacks), .seed = kSeed, .handle_signals = false});
    trainer.train(data, toy_data(10, 4), {.epochs = 2, .batch_size = batch_size});
    return copies_of(model->parameters());
}

/// The gradients of the first update of a window of `count` batches of `size`.
std::vector<at::Tensor> first_gradients(std::shared_ptr<const Dataset> data, std::int64_t size, std::int64_t count, std::int64_t at_update, const Loss& loss) {
    auto model = toy_model();
    std::vector<at::Tensor> gradients;
    Trainer trainer({.model = model, .loss = loss, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.0),
                     .callbacks = {make_gradient_accumulation({count}), callback_of("keeper", [&](Attachment& run, Connections& connections) {
                         connections += run.bus.observe<GradientsReady>(Stage::Observe, [&](const GradientsReady& event) {
                             if (event.position.step == at_update) gradients = copies_of(event.gradients.held());
                         });
                     })}, .handle_signals = false});
    trainer.train(data, {.epochs = 1, .batch_size = size, .shuffle = false});
    return gradients;
}

/// Sequences of one number a token, of different lengths; the loss is a mean over tokens.
class Sequences final : public ItemDataset {
public:
    Sequences() : ItemDataset(collate_padded()) {}
    std::int64_t size() const override { return 12; }
    Item get(std::int64_t index, std::uint64_t) const override {
        auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(index));
        const std::int64_t length = 1 + index % 5;
        return {torch::randn({length, 6}, generator), torch::arange(length) % 3, {}, length};
    }
    bool prefers_threads() const override { return false; }
};

}  // namespace

TEST_CASE("a run is bit-equal to a plain loop that calls the same kernels", "[trainer][bits]") {
    const auto data = toy_data(50);
    CHECK(equal_bits(torchbus_run(data, 8, {}), plain_loop(*data, 8)));
}

TEST_CASE("observers do not change a bit", "[trainer][bits]") {
    const auto data = toy_data(50);
    const auto silent = [](std::string_view) {};
    std::vector<ComposedCallback> observers = {make_metrics({.accuracy = true}), make_terminate_on_nan(),
                                               make_progress_bar({.redraw_seconds = 0, .write = silent, .terminal = true, .columns = 80}),
                                               ComposedCallback(std::make_shared<EventTrace>())};
    CHECK(equal_bits(torchbus_run(data, 8, std::move(observers)), plain_loop(*data, 8)));
}

TEST_CASE("two runs of one seed are equal, of two seeds they are not", "[trainer][bits]") {
    const auto data = toy_data(50);
    CHECK(equal_bits(torchbus_run(data, 8, {}), torchbus_run(data, 8, {})));
    CHECK_FALSE(equal_bits(torchbus_run(data, 8, {}), torchbus_run(data, 7, {})));
}

TEST_CASE("accumulating k batches of b gives the gradient of one batch of k·b", "[trainer][accumulation]") {
    const auto data = toy_data(24);
    for (const std::int64_t update : {0, 1})
        CHECK(relative_difference(first_gradients(data, 4, 3, update, cross_entropy), first_gradients(data, 12, 1, update, cross_entropy)) < 1e-6);
}

TEST_CASE("the short last window of an epoch is weighed by its own samples", "[trainer][accumulation]") {
    const auto data = toy_data(19);  // windows of 12 and 7: the last is one batch of 4 and one of 3
    CHECK(relative_difference(first_gradients(data, 4, 3, 1, cross_entropy), first_gradients(data, 12, 1, 1, cross_entropy)) < 1e-6);
}

TEST_CASE("a loss that is a mean over tokens is weighed by tokens", "[trainer][accumulation]") {
    const auto data = std::make_shared<Sequences>();
    const Loss per_token = [](const Output& output, const Batch& batch) {
        namespace F = torch::nn::functional;
        return F::cross_entropy(output.tensor.flatten(0, 1), batch.targets.flatten(), F::CrossEntropyFuncOptions().ignore_index(-100));
    };
    CHECK(relative_difference(first_gradients(data, 2, 3, 0, per_token), first_gradients(data, 6, 1, 0, per_token)) < 1e-6);
    CHECK(relative_difference(first_gradients(data, 5, 2, 1, per_token), first_gradients(data, 10, 1, 1, per_token)) < 1e-6);
}

TEST_CASE("bf16 autocast is LibTorch's own", "[trainer][mixed-precision]") {
    auto model = toy_model(), plain = toy_model();
    const auto data = toy_data(16);
    std::vector<at::Tensor> gradients;
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                     .callbacks = {make_mixed_precision(), callback_of("keeper", [&](Attachment& run, Connections& connections) {
                         connections += run.bus.observe<GradientsReady>(Stage::Observe, [&](const GradientsReady& event) { gradients = copies_of(event.gradients.held()); });
                     })}, .handle_signals = false});
    trainer.train(data, {.epochs = 1, .batch_size = 16, .shuffle = false});
    CHECK_FALSE(at::autocast::is_autocast_enabled(at::kCPU));  // nothing leaked into the caller

    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_enabled(at::kCPU, true);
    const at::Tensor loss = cross_entropy(plain->forward(data->inputs()), data->targets());
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    loss.backward();
    CHECK(equal_bits(gradients, gradients_of(plain)));
}
