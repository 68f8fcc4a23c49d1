#include <torchbus/callbacks/learning_rate_monitor.hpp>

#include <map>
#include <optional>

#include <fmt/format.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include "entries.hpp"

namespace torchbus {
namespace {

std::optional<double> momentum_of(const torch::optim::OptimizerOptions& options) {
    if (const auto* sgd = dynamic_cast<const torch::optim::SGDOptions*>(&options)) return sgd->momentum();
    if (const auto* adam = dynamic_cast<const torch::optim::AdamOptions*>(&options)) return std::get<0>(adam->betas());
    if (const auto* adamw = dynamic_cast<const torch::optim::AdamWOptions*>(&options)) return std::get<0>(adamw->betas());
    if (const auto* rmsprop = dynamic_cast<const torch::optim::RMSpropOptions*>(&options)) return rmsprop->momentum();
    return std::nullopt;
}

class LearningRateMonitor final : public Callback {
public:
    explicit LearningRateMonitor(LearningRateMonitorOptions options) : options_(options) {}
    std::string kind() const override { return "learning_rate_monitor"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"run_configured", "train_step_start"}, .reads = {"learning_rate"}};
        if (groups_.empty()) declared.publishes.emplace_back("rate.0", "train_step_start");  // what most runs have
        for (const auto& [update, groups] : groups_)
            for (const Group& group : groups) {
                declared.publishes.emplace_back(group.rate_name, "train_step_start");
                if (group.has_momentum) declared.publishes.emplace_back(group.momentum_name, "train_step_start");
            }
        return declared;
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.observe<RunConfigured>(Stage::Observe, [this](const RunConfigured& event) {
            forget();
            for (const Update& update : event.updates) learn(update);
        });
        connections_ += run.bus.observe<TrainStepStart>(Stage::Observe, [this](const TrainStepStart& event) { publish(event.update); });
    }
    void detach() override {
        connections_.clear();
        if (run_) forget();
        run_ = nullptr;
    }

private:
    struct Group {
        std::string rate_name, momentum_name;
        bool has_momentum = false;
    };

    /// Groups may be added while a run is under way: those that are not known yet are learnt.
    std::vector<Group>& learn(const Update& update) {
        auto& known = groups_[update.name];
        const auto& groups = update.optimizer->param_groups();
        while (known.size() < groups.size()) {
            const std::string suffix = update.name.empty() ? fmt::format(".{}", known.size()) : fmt::format(".{}.{}", update.name, known.size());
            known.push_back({"rate" + suffix, "momentum" + suffix, options_.momentum && momentum_of(groups[known.size()].options())});
        }
        return known;
    }

    /// Also what has not changed: a curve of it has a point for every step.
    void publish(const Update& update) {
        auto& known = learn(update);
        const auto& groups = update.optimizer->param_groups();
        for (std::size_t i = 0; i < groups.size(); ++i) {
            run_->blackboard.publish(known[i].rate_name, groups[i].options().get_lr());
            if (known[i].has_momentum) run_->blackboard.publish(known[i].momentum_name, *momentum_of(groups[i].options()));
        }
    }

    void forget() {
        for (const auto& [update, groups] : groups_)
            for (const Group& group : groups) {
                run_->blackboard.withdraw(group.rate_name);
                run_->blackboard.withdraw(group.momentum_name);
            }
        groups_.clear();
    }

    LearningRateMonitorOptions options_;
    Attachment* run_ = nullptr;
    std::map<std::string, std::vector<Group>, std::less<>> groups_;  ///< by update
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_learning_rate_monitor(LearningRateMonitorOptions options) { return std::make_unique<LearningRateMonitor>(options); }

std::unique_ptr<Callback> learning_rate_monitor_from_json(OptionReader& reader) {
    LearningRateMonitorOptions options;
    reader.boolean("momentum", options.momentum, "publish the momentum (Adam: beta1) of every group too");
    return make_learning_rate_monitor(options);
}

}  // namespace torchbus
