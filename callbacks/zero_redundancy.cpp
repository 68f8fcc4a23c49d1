#include <torchbus/callbacks/zero_redundancy.hpp>

#include <algorithm>
#include <unordered_map>

#include <fmt/format.h>
#include <torch/optim/optimizer.h>

#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

/// Parameters, each with the rank that updates it.
class Shares final : public GradientOwners {
public:
    explicit Shares(std::shared_ptr<World> world) : world_(std::move(world)), load_(static_cast<std::size_t>(world_->size())) {}
    bool is_own(const at::Tensor& parameter) const override {
        const auto known = owners_.find(parameter.unsafeGetTensorImpl());
        return known != owners_.end() && known->second == world_->rank();
    }
    void sum(at::Tensor& values) const override { world_->sum(values); }

    int owner_of(const at::Tensor& parameter) const { return owners_.at(parameter.unsafeGetTensorImpl()); }
    /// The largest first, each to the rank that has least: alike on all ranks. Those that were dealt out before stay.
    void deal_out(const Update& update) {
        std::vector<at::Tensor> parameters;
        for (const at::Tensor& parameter : update.parameters())
            if (!owners_.contains(parameter.unsafeGetTensorImpl())) parameters.push_back(parameter);
        std::ranges::stable_sort(parameters, std::ranges::greater(), [](const at::Tensor& parameter) { return parameter.numel(); });
        for (const at::Tensor& parameter : parameters) {
            const auto least = std::ranges::min_element(load_);
            *least += parameter.numel();
            owners_.emplace(parameter.unsafeGetTensorImpl(), static_cast<int>(least - load_.begin()));
        }
    }
    /// Each rank's updated parameters, to all.
    void send(const Update& update) const {
        std::vector<std::vector<at::Tensor>> by_owner(load_.size());
        for (const at::Tensor& parameter : update.parameters())
            if (parameter.grad().defined()) by_owner[static_cast<std::size_t>(owner_of(parameter))].push_back(parameter.detach());
        for (std::size_t rank = 0; rank < by_owner.size(); ++rank)
            if (!by_owner[rank].empty()) world_->broadcast(std::move(by_owner[rank]), static_cast<int>(rank));
    }

private:
    std::shared_ptr<World> world_;
    std::unordered_map<const void*, int> owners_;  ///< ranks, by parameter
    std::vector<std::int64_t> load_;               ///< elements that each rank updates
};

class ZeroRedundancy final : public Callback {
public:
    explicit ZeroRedundancy(ZeroRedundancyOptions options) : options_(std::move(options)) {}
    std::string kind() const override { return "zero_redundancy"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "training_run_start", "train_step_start", "optimizer_step", "optimizer_step_end", "rolled_back", "run_closed"}, .writes = {"parameters"}, .before = {"early_stopping", "learning_rate_finder", "save_best", "sharpness_aware"}, .after = {"data_parallel"}, .collectives = true};
    }
    void attach(Attachment& run) override {
        if (options_.world && run.consensus.world_size() != options_.world->size())
            throw ConfigError("zero_redundancy: nobody sums the gradients of the ranks; add the callback data_parallel");
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) {
            if (options_.world) begin(event.updates);
        });
        // What was put back is of all ranks.
        connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart&) { drop_states(); });
        connections_ += run.bus.observe<RolledBack>(Stage::Observe, [this](const RolledBack&) { drop_states(); });
        // Somebody may have added parameters.
        connections_ += run.bus.intercept<TrainStepStart>([this](TrainStepStart& event) {
            if (updates_) shares_->deal_out(event.update);
        });
        connections_ += run.bus.around<OptimizerStep>([this](const OptimizerStep& step) {
            if (updates_) hide_gradients(step.update);
        }, [this] { show_gradients(); });
        connections_ += run.bus.intercept<OptimizerStepEnd>([this](OptimizerStepEnd& event) {
            if (updates_) shares_->send(event.update);
        });
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) { end(); });
    }
    void detach() override {
        connections_.clear();
        end();
        shares_ = nullptr;
    }

private:
    /// Who was dealt what in an earlier run keeps it, and its state.
    void begin(std::vector<Update>& updates) {
        updates_ = &updates;
        if (!shares_) shares_ = std::make_shared<Shares>(options_.world);
        for (Update& update : updates) {
            shares_->deal_out(update);
            update.owners = shares_;
        }
    }
    void end() {
        if (!updates_) return;
        for (Update& update : *updates_) update.owners = nullptr;
        updates_ = nullptr;
    }

    /// The optimizer passes over what has no gradient.
    void hide_gradients(const Update& update) {
        shares_->deal_out(update);  // somebody may have added parameters since the step began
        for (const at::Tensor& parameter : update.parameters())
            if (!shares_->is_own(parameter) && parameter.grad().defined()) hidden_.emplace_back(parameter, std::exchange(parameter.mutable_grad(), at::Tensor()));
    }
    void show_gradients() {
        for (auto& [parameter, gradient] : hidden_) parameter.mutable_grad() = std::move(gradient);
        hidden_.clear();
    }
    void drop_states() {
        if (!updates_) return;
        for (const Update& update : *updates_) {
            shares_->deal_out(update);
            for (const at::Tensor& parameter : update.parameters())
                if (!shares_->is_own(parameter)) update.optimizer->state().erase(parameter.unsafeGetTensorImpl());
        }
    }

    ZeroRedundancyOptions options_;
    std::vector<Update>* updates_ = nullptr;
    std::shared_ptr<Shares> shares_;
    std::vector<std::pair<at::Tensor, at::Tensor>> hidden_;  ///< parameters of others and their gradients, within the optimizer's step
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_zero_redundancy(ZeroRedundancyOptions options) {
    if (!options.world) options.world = World::of_environment(options.waiting);
    return std::make_unique<ZeroRedundancy>(std::move(options));
}

std::unique_ptr<Callback> zero_redundancy_from_json(OptionReader& reader) {
    std::int64_t stage = 1;
    reader.integer("stage", stage, "of ZeRO: 1, the optimizer's state is divided among ranks", Range::at_least(1));
    if (stage != 1)
        throw ConfigError(fmt::format("{}: ZeRO stage {} is not supported; give 1, which divides the optimizer's state: 2 would divide gradients and 3 parameters, too", reader.path_of("stage"), stage));
    return make_zero_redundancy();
}

}  // namespace torchbus
