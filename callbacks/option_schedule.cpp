#include <torchbus/callbacks/option_schedule.hpp>

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/optim/optimizer.h>

#include <torchbus/optim/registry.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/group_options.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class OptionSchedule final : public Callback {
public:
    explicit OptionSchedule(OptionScheduleOptions options) : options_(std::move(options)), base_(options_.option) {}
    std::string kind() const override { return "option_schedule"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "train_step_start"}, .writes = {"optimizer_options:" + options_.option},
                .publishes = {{published_name(), "train_step_start", Stage::Transform}}};
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { remember(event.updates); });
        connections_ += run.bus.intercept<TrainStepStart>([this, &run](TrainStepStart& event) {
            if (!concerns(event.update)) return;
            const auto& base = base_.of(event.update);
            const double factor = options_.schedule(run.moment);
            auto& groups = event.update.optimizer->param_groups();
            for (std::size_t i = 0; i < groups.size(); ++i)
                group_option(groups[i], options_.option) = checked(options_.base.value_or(base[i]) * factor);
            run.blackboard.publish(published_name(), group_option(groups.front(), options_.option));
        });
    }
    void detach() override { connections_.clear(); }  // the base stays: it belongs to the optimizer, not to the run
    std::vector<Finding> check(const Outlook& run) const override { return check_schedule(options_.schedule, run, kind()); }
    SavedState state() const override { return {{{"base_values", base_.saved()}}}; }
    void load_state(const SavedState& state) override { base_.load(state.values.at("base_values")); }

private:
    std::string published_name() const { return options_.update.empty() ? options_.option : options_.option + "." + options_.update; }
    bool concerns(const Update& update) const { return options_.update.empty() || update.name == options_.update; }

    /// A schedule must not lead to values that an optimizer would not take: a β of 1 forgets nothing.
    double checked(double value) const {
        const bool decays = options_.option == "beta1" || options_.option == "beta2" || options_.option == "alpha";
        if (value >= 0 && (!decays || value < 1)) return value;
        throw ConfigError(fmt::format("option_schedule: the schedule sets {} to {}; expected {}", options_.option, value,
                                      decays ? "a number in [0, 1)" : "a number of at least 0"));
    }

    void remember(const std::vector<Update>& updates) {
        if (std::ranges::none_of(updates, [this](const Update& update) { return concerns(update); }))
            throw ConfigError("option_schedule: update: there is no update '" + options_.update + "'");
        for (const Update& update : updates) {
            if (!concerns(update)) continue;
            try {
                base_.of(update);
            } catch (const ConfigError& error) {
                throw ConfigError(fmt::format("option_schedule: option: {}", error.what()));
            }
        }
    }

    OptionScheduleOptions options_;
    BaseValues base_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_option_schedule(OptionScheduleOptions options) {
    if (!options.schedule) throw ConfigError("option_schedule: there is no schedule; give a function of the run's moment");
    if (options.option == "learning_rate") throw ConfigError("option_schedule: option: the learning rate has a callback of its own; take learning_rate_schedule");
    if (options.base && !(*options.base >= 0)) throw ConfigError(fmt::format("option_schedule: base: {} is out of range; give a value of at least 0", *options.base));
    return std::make_unique<OptionSchedule>(std::move(options));
}

std::unique_ptr<Callback> option_schedule_from_json(OptionReader& reader) {
    OptionScheduleOptions options;
    reader.choice("option", options.option, {"weight_decay", "momentum", "beta1", "beta2", "dampening", "epsilon", "alpha", "learning_rate_decay"},
                  "which option of the optimizer's groups")
        .text("update", options.update, "name of the update; empty: all of them");
    if (const nlohmann::json* base = reader.part("base", "number", "value that the factor multiplies; default: what each group came with")) {
        if (!base->is_number()) throw ConfigError(fmt::format("{}: {} is a {}; expected a number", reader.path_of("base"), base->dump(), base->type_name()));
        options.base = base->get<double>();
    }
    const nlohmann::json* part = reader.part("schedule", "object", fmt::format("kind ({}) and its options", fmt::join(schedule_table().kinds(), ", ")));
    options.schedule = schedule_from_json(part ? *part : nlohmann::json::object(), reader.path_of("schedule"));
    return make_option_schedule(std::move(options));
}

}  // namespace torchbus
