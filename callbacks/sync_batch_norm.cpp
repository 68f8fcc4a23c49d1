#include <torchbus/callbacks/sync_batch_norm.hpp>

#include <optional>

#include <torch/types.h>

#include <torchbus/distributed/batch_norm_over_ranks.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class SyncBatchNorm final : public Callback {
public:
    explicit SyncBatchNorm(SyncBatchNormOptions options) : options_(std::move(options)) {}
    std::string kind() const override { return "sync_batch_norm"; }
    Declaration declare() const override {
        return {.listens = {"batch_ready", "forward_start", "forward"}, .writes = {"batch"}, .before = {"mixup", "cutmix"}, .after = {"data_parallel"}, .collectives = true};
    }
    void attach(Attachment& run) override {
        if (options_.world && run.consensus.world_size() != options_.world->size())
            throw ConfigError("sync_batch_norm: nobody sums the gradients of the ranks; add the callback data_parallel");
        connections_ += run.bus.intercept<BatchReady>([this](BatchReady& event) {
            if (options_.world) double_lone_sample(event.batch);
        }, in(Mode::Train));
        connections_ += run.bus.observe<ForwardStart>(Stage::Observe, [this](const ForwardStart& event) { counts_ = {event.batch.samples, event.batch.valid}; }, in(Mode::Train));
        connections_ += run.bus.around<Forward>([this](const Forward& forward) {
            if (options_.world && forward.scope.mode == Mode::Train) over_ranks_.emplace(options_.world, counts_);
        }, [this] { over_ranks_.reset(); });
    }
    void detach() override { connections_.clear(); }

private:
    /// LibTorch's modules refuse a single value a channel, though there are more on other ranks. The mean over a sample and
    /// the same sample again is that of the sample.
    static void double_lone_sample(Batch& batch) {
        if (batch.samples != 1) return;
        batch.for_each_tensor([](at::Tensor& tensor) {
            if (tensor.dim() > 0 && tensor.size(0) == 1) tensor = torch::cat({tensor, tensor});
        });
        if (!batch.indices.empty()) batch.indices.push_back(batch.indices.front());
        batch.samples = 2;
    }

    SyncBatchNormOptions options_;
    BatchNormOverRanks::Samples counts_;
    std::optional<BatchNormOverRanks> over_ranks_;  ///< within a forward
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_sync_batch_norm(SyncBatchNormOptions options) {
    if (!options.world) options.world = World::of_environment(options.waiting);
    return std::make_unique<SyncBatchNorm>(std::move(options));
}

std::unique_ptr<Callback> sync_batch_norm_from_json(OptionReader&) { return make_sync_batch_norm(); }

}  // namespace torchbus
