// Rank 0 reads, and sends every rank its part of each batch.
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/data/loader.hpp>
#include <torchbus/device.hpp>

#include "../checkpoint/safetensors_header.hpp"
#include "../checkpoint/tensor_file.hpp"
#include "../data/device_copies.hpp"
#include "../data/shard_part.hpp"
#include "groups.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

constexpr const char* kName = "a batch of rank 0";
constexpr std::string_view kExtra = "extra.";

std::string packed(const Batch& batch) {
    std::vector<NamedTensor> tensors;
    if (batch.inputs.defined()) tensors.emplace_back("inputs", batch.inputs);
    if (batch.targets.defined()) tensors.emplace_back("targets", batch.targets);
    for (const auto& [name, tensor] : batch.extras)
        if (tensor.defined()) tensors.emplace_back(std::string(kExtra) + name, tensor);
    const json counts = {{"indices", batch.indices}, {"samples", batch.samples}, {"valid", batch.valid}, {"tokens", batch.tokens}, {"weight", batch.weight},
                         {"over_ranks", {batch.over_ranks.samples, batch.over_ranks.tokens, batch.over_ranks.weight, batch.over_ranks.own_weight}}};
    return bytes_of_tensors(tensors, {{"counts", counts.dump()}}, kName);
}

Batch unpacked(std::string_view bytes) {
    const json counts = json::parse(parse_safetensors_header(bytes, kName).metadata.at("counts"));
    Batch batch;
    batch.indices = counts.at("indices").get<std::vector<std::int64_t>>();
    batch.samples = counts.at("samples");
    batch.valid = counts.at("valid");
    batch.tokens = counts.at("tokens");
    batch.weight = counts.at("weight");
    const json& whole = counts.at("over_ranks");
    batch.over_ranks = {whole[0], whole[1], whole[2], whole[3]};
    for (auto& [name, tensor] : tensors_of_file(bytes, kName)) {
        if (name == "inputs") batch.inputs = tensor;
        if (name == "targets") batch.targets = tensor;
        if (name.starts_with(kExtra)) batch.extras[name.substr(kExtra.size())] = tensor;
    }
    return batch;
}

/// Rank `rank`'s of a batch. One without a sample of its own gets another's, which counts nothing.
Batch share_of(const Batch& batch, int rank, int ranks) {
    const auto [begin, count, own] = part_of_shard({rank, ranks}, batch.samples);
    Batch part = part_of(batch, begin, count, "sharding 'dispatch'");
    if (own == 0) part.valid = part.tokens = 0, part.weight = 0;
    part.over_ranks = {batch.valid, batch.tokens, batch.weight, part.weight};
    return part;
}

class DispatchingLoader final : public Loader {
public:
    DispatchingLoader(std::shared_ptr<World> world, std::unique_ptr<Loader> of_first) : owner_(std::move(world)), world_(owner_->groups()), loader_(std::move(of_first)) {
        std::int64_t batches = loader_ ? loader_->batches().value_or(-1) : 0;
        batches = std::stoll(broadcast_over(world_, *world_.data_backend, std::to_string(batches)));
        if (batches >= 0) batches_ = batches;
    }
    void begin(LoaderPosition at) override {
        position_ = at;
        if (loader_) loader_->begin(at);
    }
    /// Rank 0 keeps the others waiting until it has the window, and meanwhile looks for signals itself.
    Fetch next(std::int64_t count, std::chrono::milliseconds wait, Window& window) override {
        window.batches.clear();
        Window whole;
        if (loader_ && loader_->next(count, wait, whole) == Fetch::Pending) return Fetch::Pending;
        const std::int64_t found = std::stoll(broadcast_over(world_, *world_.data_backend, std::to_string(whole.count())));
        for (std::int64_t i = 0; i < found; ++i) window.batches.push_back(scatter(loader_ ? &whole.batches[static_cast<std::size_t>(i)] : nullptr));
        position_.batches += found;
        return found > 0 ? Fetch::Ready : Fetch::Exhausted;
    }
    LoaderPosition position() const override { return position_; }
    std::optional<std::int64_t> batches() const override { return batches_; }
    void deliver_to(c10::Device device) override {
        copies_.reset();
        if (is_accelerator(device)) copies_.emplace(device);
    }

private:
    Batch scatter(const Batch* whole) {
        std::vector<std::string> parts;
        for (int rank = 0; whole && rank < world_.ranks.world_size; ++rank) parts.push_back(packed(share_of(*whole, rank, world_.ranks.world_size)));
        Batch batch = unpacked(scatter_over(world_, *world_.data_backend, std::move(parts)));
        if (copies_) copies_->await(copies_->begin(batch), batch);
        return batch;
    }

    std::shared_ptr<World> owner_;
    World::Groups& world_;
    std::unique_ptr<Loader> loader_;  ///< on rank 0
    std::optional<DeviceCopies> copies_;
    std::optional<std::int64_t> batches_;
    LoaderPosition position_;
};

}  // namespace

std::unique_ptr<Loader> make_dispatching_loader(std::shared_ptr<World> world, std::unique_ptr<Loader> of_first) {
    return std::make_unique<DispatchingLoader>(std::move(world), std::move(of_first));
}

}  // namespace torchbus
