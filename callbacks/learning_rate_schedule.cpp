#include <torchbus/callbacks/learning_rate_schedule.hpp>

#include <unordered_map>

#include <nlohmann/json.hpp>
#include <torch/optim/optimizer.h>

#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class LearningRateSchedule final : public Callback {
public:
    explicit LearningRateSchedule(LearningRateScheduleOptions options) : options_(std::move(options)) {}
    std::string kind() const override { return "learning_rate_schedule"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "train_step_start"},
                .writes = {options_.update.empty() ? "learning_rate" : "learning_rate:" + options_.update},
                .publishes = {{published_name(), "train_step_start", Stage::Transform}}};
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { remember_base(event.updates); });
        connections_ += run.bus.intercept<TrainStepStart>([this, &run](TrainStepStart& event) {
            if (!options_.update.empty() && event.update.name != options_.update) return;
            const double factor = options_.schedule(run.moment);
            const auto& base = base_rates_.at(event.update.name);
            auto& groups = event.update.optimizer->param_groups();
            for (std::size_t i = 0; i < groups.size(); ++i) groups[i].options().set_lr(base[i] * factor);
            run.blackboard.publish(published_name(), base.front() * factor);
        });
    }
    void detach() override { connections_.clear(); }
    SavedState state() const override { return {{{"base_rates", base_rates_}}}; }
    void load_state(const SavedState& state) override { state.values.at("base_rates").get_to(base_rates_); }

private:
    std::string published_name() const { return options_.update.empty() ? "learning_rate" : "learning_rate." + options_.update; }

    /// The rates that the optimizer came with, taken once: a second run starts from them, not from where the first ended.
    void remember_base(const std::vector<Update>& updates) {
        for (const Update& update : updates) {
            if (base_rates_.contains(update.name)) continue;
            auto& rates = base_rates_[update.name];
            for (const auto& group : update.optimizer->param_groups()) rates.push_back(group.options().get_lr());
        }
        if (!options_.update.empty() && !base_rates_.contains(options_.update))
            throw ConfigError("learning_rate_schedule: update: there is no update '" + options_.update + "'");
    }

    LearningRateScheduleOptions options_;
    std::unordered_map<std::string, std::vector<double>> base_rates_;  ///< by update, one a parameter group
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_learning_rate_schedule(LearningRateScheduleOptions options) {
    if (!options.schedule) throw ConfigError("learning_rate_schedule: there is no schedule; give a function of the run's moment");
    return std::make_unique<LearningRateSchedule>(std::move(options));
}

std::unique_ptr<Callback> learning_rate_schedule_from_json(OptionReader& reader) {
    LearningRateScheduleOptions options;
    reader.text("update", options.update, "name of the update; empty: all of them");
    const nlohmann::json* part = reader.part("schedule", "object", "kind (constant, cosine, linear, step) and its options");
    options.schedule = schedule_from_json(part ? *part : nlohmann::json::object(), reader.path_of("schedule"));
    return make_learning_rate_schedule(std::move(options));
}

}  // namespace torchbus
