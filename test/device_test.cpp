// Where there is no GPU, on an accelerator that is imagined: what computes before a copy has arrived computes with wrong numbers.
#include <torch/torch.h>

#include <torchbus/callbacks/device_placement.hpp>
#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/throughput_monitor.hpp>
#include <torchbus/data/loader.hpp>
#include <torchbus/device.hpp>
#include <torchbus/error.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/imagined_device.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

/// Fails every third batch, on a worker.
struct Broken final : ItemDataset {
    std::int64_t size() const override { return 12; }
    Item get(std::int64_t index, std::uint64_t) const override {
        if (index == 8) throw std::runtime_error("the disk has gone");
        return {torch::full({2}, index), torch::tensor(index)};
    }
};

/// Two layers, whose weights are where they are to be: LibTorch's modules cannot be moved to a device of others.
class TwoLayers final : public ModelInterface {
public:
    explicit TwoLayers(c10::Device device) {
        const auto modules = toy_model();
        for (const at::Tensor& parameter : modules->parameters()) weights.push_back(parameter.detach().to(device).requires_grad_());
    }
    Output forward(const Batch& batch) override { return (batch.inputs.matmul(weights[0].t()) + weights[1]).tanh().matmul(weights[2].t()) + weights[3]; }
    std::vector<NamedTensor> named_parameters() const override { return {{"0", weights[0]}, {"1", weights[1]}, {"2", weights[2]}, {"3", weights[3]}}; }
    std::vector<NamedTensor> named_buffers() const override { return {}; }
    void set_training(bool) override {}
    void to(c10::Device device) override { CHECK(device == weights[0].device()); }
    std::vector<at::Tensor> weights;
};

ImaginedDevice* imagined() {
    ImaginedDevice* const device = ImaginedDevice::get();
    if (!device) WARN("skipped: LibTorch has a real accelerator here, beside which none can be imagined");
    return device;
}

}  // namespace

TEST_CASE("a text names a device, or what is wrong with it", "[device]") {
    CHECK(device_from_text("cpu", 3, "here") == c10::Device(c10::kCPU));
    CHECK(device_from_text("meta", 0, "here") == c10::Device(c10::kMeta));
    CHECK_THROWS_WITH(device_from_text("gpu", 0, "here"), "here: 'gpu' is not a device; give cpu, cuda, cuda:N or auto");
    CHECK_THROWS_WITH(device_from_text("cuda:-1", 0, "here"), "here: 'cuda:-1' is not a device; give cpu, cuda, cuda:N or auto");
    CHECK_THROWS_WITH(device_from_text("xpu", 0, "here"), "here: 'xpu' was asked for, which LibTorch does not know here; give cpu, cuda, cuda:N or auto");
    CHECK_FALSE(is_accelerator(c10::kCPU));
    CHECK_FALSE(is_accelerator(c10::kMeta));
}

TEST_CASE("a CUDA device that cannot be used is refused with the reason", "[device]") {
    if (torch::cuda::is_available()) return;
    for (const char* text : {"cuda", "cuda:0", "cuda:7"})
        CHECK_THROWS_WITH(device_from_text(text, 0, "here"), Catch::Matchers::StartsWith(std::string("here: '") + text + "' was asked for, but ") && Catch::Matchers::EndsWith("; or give cpu"));
    CHECK(device_from_text("auto", 0, "here") == c10::Device(c10::kCPU));
}

TEST_CASE("batches are copied ahead from pinned memory, on a stream of its own, and have arrived when they are delivered", "[device][loader]") {
    ImaginedDevice* const device = imagined();
    if (!device) return;
    const auto data = toy_data(26);
    data->add("mask", torch::ones({26}));
    for (const auto workers : {std::optional<int>(), std::optional<int>(0), std::optional<int>(3)}) {
        const auto loader = make_loader(data, {.batch_size = 4, .workers = workers}), plain = make_loader(data, {.batch_size = 4, .workers = 0});
        loader->deliver_to(device->device());
        device->take_log();
        loader->begin({});
        plain->begin({});
        Window window, expected;
        std::int64_t batches = 0;
        DeviceLog all;
        while (loader->next(1, std::chrono::hours(1), window) == Fetch::Ready) {
            plain->next(1, {}, expected);
            const DeviceLog log = device->take_log();
            all.copies += log.copies, all.copies_of_unpinned += log.copies_of_unpinned, all.on_current_stream += log.on_current_stream, all.waits += log.waits, all.recorded += log.recorded;
            const Batch &batch = window.batches[0], &own = expected.batches[0];
            CHECK(batch.inputs.device() == device->device());
            CHECK(batch.inputs.cpu().equal(own.inputs));
            CHECK(batch.targets.cpu().equal(own.targets));
            CHECK(batch.extras.find("mask")->cpu().equal(*own.extras.find("mask")));
            CHECK(batch.valid == own.valid);
            ++batches;
        }
        INFO(workers.value_or(-1) << " workers");
        CHECK(batches == 7);
        CHECK(all.copies == 3 * batches);
        CHECK(all.copies_of_unpinned == 0);
        CHECK(all.on_current_stream == 0);
        CHECK(all.waits == batches);
        CHECK(all.recorded == 3 * batches);
        CHECK(loader->position().batches == 7);
    }
}

TEST_CASE("a loader that brings batches to a device fails as one that does not, and can be sent back", "[device][loader]") {
    ImaginedDevice* const device = imagined();
    if (!device) return;
    const auto loader = make_loader(std::make_shared<Broken>(), {.batch_size = 4});
    loader->deliver_to(device->device());
    loader->begin({});
    Window window;
    CHECK(loader->next(2, std::chrono::hours(1), window) == Fetch::Ready);
    CHECK_THROWS_WITH(loader->next(1, std::chrono::hours(1), window), "the disk has gone");
    loader->deliver_to(c10::kCPU);
    loader->begin({});
    CHECK(loader->next(1, std::chrono::hours(1), window) == Fetch::Ready);
    CHECK(window.batches[0].inputs.is_cpu());
}

TEST_CASE("a run on a device makes the updates of one on the CPU", "[device][device-placement]") {
    ImaginedDevice* const device = imagined();
    if (!device) return;
    const auto train = [&](const std::string& where) {
        const auto model = std::make_shared<TwoLayers>(device_from_text(where, 0, "here"));
        double rates = 0, accuracy = 0, peak = 0;
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->weights, torch::optim::SGDOptions(0.1).momentum(0.9)),
                         .callbacks = {make_device_placement({where}), make_gradient_accumulation({2}), make_gradient_clipping({.max_norm = 0.5}),
                                       make_metrics({.accuracy = true}), make_throughput_monitor({.window = 1}),
                                       callback_of("tap", [&](Attachment& run, Connections& connections) {
                                           connections += run.bus.observe<TrainStepEnd>(Stage::Report, [&, &numbers = run.blackboard](const TrainStepEnd&) {
                                               peak = numbers.number("memory.device_peak_bytes").value_or(-1);
                                               rates = numbers.number("memory.device_free_bytes").value_or(-1);
                                           });
                                       })}, .handle_signals = false});
        trainer.train(toy_data(26), toy_data(10, 3), {.epochs = 2, .batch_size = 4});
        accuracy = trainer.blackboard().number("eval.accuracy").value_or(-1);
        std::vector<at::Tensor> weights;
        for (const at::Tensor& parameter : model->weights) weights.push_back(parameter.detach().cpu());
        return std::tuple(weights, accuracy, peak, rates);
    };
    const auto [on_cpu, accuracy, no_peak, no_memory] = train("cpu");
    const auto [on_device, same_accuracy, peak, free] = train("imagined");
    CHECK(relative_difference(on_device, on_cpu) <= 1e-6);
    CHECK(same_accuracy == accuracy);
    CHECK(no_peak == -1);
    CHECK(no_memory == -1);
    CHECK(peak > 0);
    CHECK(free == 3 << 20);
}
