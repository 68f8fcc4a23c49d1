#include <torchbus/callbacks/device_placement.hpp>

#include <c10/core/Device.h>
#include <fmt/format.h>
#include <torch/cuda.h>

#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class DevicePlacement final : public Callback {
public:
    explicit DevicePlacement(c10::Device device) : device_(device) {}
    std::string kind() const override { return "device_placement"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "batch_ready"}, .writes = {"model", "batch.device"}};
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { event.model->to(device_); });
        connections_ += run.bus.intercept<BatchReady>([this](BatchReady& event) {
            event.batch.for_each_tensor([this](at::Tensor& tensor) { tensor = tensor.to(device_, /*non_blocking=*/true); });
        });
    }
    void detach() override { connections_.clear(); }

private:
    c10::Device device_;
    Connections connections_;
};

c10::Device parse_device(const std::string& text) {
    try {
        return c10::Device(text);
    } catch (const c10::Error&) {
        throw ConfigError(fmt::format("device_placement: device: '{}' is not a device; give cpu, cuda or cuda:N", text));
    }
}

}  // namespace

std::unique_ptr<Callback> make_device_placement(DevicePlacementOptions options) {
    const c10::Device device = parse_device(options.device);
    if (device.is_cuda() && !torch::cuda::is_available())
        throw ConfigError(fmt::format("device_placement: device: '{}' was asked for, but no CUDA device can be used here; "
                                      "give cpu, or run where a GPU and the CUDA libraries of LibTorch are", options.device));
    return std::make_unique<DevicePlacement>(device);
}

std::unique_ptr<Callback> device_placement_from_json(OptionReader& reader) {
    DevicePlacementOptions options;
    reader.text("device", options.device, "cpu, cuda or cuda:N");
    return make_device_placement(options);
}

}  // namespace torchbus
