#include <torchbus/callbacks/device_placement.hpp>

#include <optional>

#include <torchbus/device.hpp>
#include <torchbus/distributed/ranks.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class DevicePlacement final : public Callback {
public:
    explicit DevicePlacement(c10::Device device) : device_(device) {}
    std::string kind() const override { return "device_placement"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "batch_ready", "run_closed"}, .writes = {"model", "batch.device"}, .before = {"data_parallel", "mixed_precision"}};
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) {
            current_.emplace(device_);
            event.model->to(device_);
            event.plan.device = device_;
        });
        // Those that loaders have brought there stay as they are.
        connections_ += run.bus.intercept<BatchReady>([this](BatchReady& event) {
            event.batch.for_each_tensor([this](at::Tensor& tensor) { tensor = tensor.to(device_, /*non_blocking=*/true); });
        });
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) { current_.reset(); });
    }
    void detach() override {
        connections_.clear();
        current_.reset();
    }

private:
    c10::Device device_;
    std::optional<CurrentDevice> current_;  ///< of the training thread, during a run
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_device_placement(DevicePlacementOptions options) {
    const auto ranks = ranks_from_environment();
    return std::make_unique<DevicePlacement>(device_from_text(options.device, ranks ? ranks->local_rank : 0, "device_placement: device"));
}

std::unique_ptr<Callback> device_placement_from_json(OptionReader& reader) {
    DevicePlacementOptions options;
    reader.text("device", options.device, "cpu; cuda: on each rank of a machine the device of its local rank; cuda:N; or auto: cuda where there is one");
    return make_device_placement(options);
}

}  // namespace torchbus
