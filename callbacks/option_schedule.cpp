#include <torchbus/callbacks/option_schedule.hpp>

#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/optim/optimizer.h>

#include <torchbus/optim/registry.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/group_options.hpp>

#include "entries.hpp"
#include "parts/chosen_update.hpp"

namespace torchbus {
namespace {

const std::vector<std::string> kGroupOptions = {"weight_decay", "momentum", "beta1", "beta2", "dampening", "epsilon", "alpha", "learning_rate_decay"};

/// gradient_clipping.max_norm → gradient_clipping, max_norm. Options of groups have no dot.
std::optional<std::pair<std::string, std::string>> of_callback(const std::string& option) {
    const auto dot = option.rfind('.');
    if (dot == std::string::npos) return std::nullopt;
    return std::pair{option.substr(0, dot), option.substr(dot + 1)};
}

class OptionSchedule final : public Callback {
public:
    explicit OptionSchedule(OptionScheduleOptions options) : options_(std::move(options)), callback_(of_callback(options_.option)), base_(options_.option) {}
    std::string kind() const override { return "option_schedule"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "train_step_start"}, .writes = {(callback_ ? "callback_options:" : "optimizer_options:") + options_.option},
                .publishes = {{published_name(), "train_step_start", Stage::Transform}}};
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { callback_ ? void(set_callback()) : remember(event.updates); });
        connections_ += run.bus.intercept<TrainStepStart>([this](TrainStepStart& event) {
            if (!is_chosen(options_.update, event.update)) return;
            run_->blackboard.publish(published_name(), callback_ ? set_callback() : set_groups(event.update));
        });
    }
    void detach() override {
        connections_.clear();
        run_ = nullptr;  // the base stays: it belongs to the optimizer, not to the run
    }
    std::vector<Finding> check(const Outlook& run) const override {
        std::vector<Finding> findings = check_chosen_update(kind(), options_.update, run.updates);
        for (Finding& finding : check_schedule(options_.schedule, run, kind())) findings.push_back(std::move(finding));
        if (callback_) return findings;
        for (const Update& update : run.updates) {
            try {
                if (is_chosen(options_.update, update)) group_option(update.optimizer->param_groups().front(), options_.option);
            } catch (const ConfigError& error) {
                findings.push_back({Finding::Weight::Error, fmt::format("option_schedule: option: {}", error.what())});
            }
        }
        return findings;
    }
    SavedState state() const override { return {{{"base_values", base_.saved()}}}; }
    void load_state(const SavedState& state) override { base_.load(state.values.at("base_values")); }

private:
    std::string published_name() const { return options_.update.empty() ? options_.option : options_.option + "." + options_.update; }

    double set_groups(const Update& update) {
        const auto& base = base_.of(update);
        const double factor = options_.schedule(run_->moment);
        auto& groups = update.optimizer->param_groups();
        for (std::size_t i = 0; i < groups.size(); ++i)
            group_option(groups[i], options_.option) = checked(options_.base.value_or(base[i]) * factor);
        return group_option(groups.front(), options_.option);
    }
    double set_callback() const {
        const double value = *options_.base * options_.schedule(run_->moment);
        run_->set_option(callback_->first, callback_->second, value);
        return value;
    }

    /// A schedule must not lead to values that an optimizer would not take: a β of 1 forgets nothing.
    double checked(double value) const {
        const bool decays = options_.option == "beta1" || options_.option == "beta2" || options_.option == "alpha";
        if (value >= 0 && (!decays || value < 1)) return value;
        throw ConfigError(fmt::format("option_schedule: the schedule sets {} to {}; expected {}", options_.option, value,
                                      decays ? "a number in [0, 1)" : "a number of at least 0"));
    }

    void remember(const std::vector<Update>& updates) {
        for (const Update& update : updates) {
            try {
                if (is_chosen(options_.update, update)) base_.of(update);
            } catch (const ConfigError&) {  // an option that the optimizer does not have: check() tells
            }
        }
    }

    OptionScheduleOptions options_;
    std::optional<std::pair<std::string, std::string>> callback_;  ///< whose option it is, where not the optimizer's
    BaseValues base_;
    Attachment* run_ = nullptr;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_option_schedule(OptionScheduleOptions options) {
    if (!options.schedule) throw ConfigError("option_schedule: there is no schedule; give a function of the run's moment");
    if (options.option == "learning_rate") throw ConfigError("option_schedule: option: the learning rate has a callback of its own; take learning_rate_schedule");
    if (of_callback(options.option)) {
        if (!options.base) throw ConfigError(fmt::format("option_schedule: base: is missing; give the value of {} that the schedule's factor multiplies", options.option));
        if (!options.update.empty()) throw ConfigError(fmt::format("option_schedule: update: '{}' has no part in {}, an option of a callback; leave it out", options.update, options.option));
    }
    if (options.base && !(*options.base >= 0)) throw ConfigError(fmt::format("option_schedule: base: {} is out of range; give a value of at least 0", *options.base));
    return std::make_unique<OptionSchedule>(std::move(options));
}

std::unique_ptr<Callback> option_schedule_from_json(OptionReader& reader) {
    OptionScheduleOptions options;
    reader.text("option", options.option, fmt::format("of the optimizer's groups: {}; or ID.OPTION of a callback, e.g. gradient_clipping.max_norm", fmt::join(kGroupOptions, ", ")))
        .text("update", options.update, "name of the update; empty: all of them");
    if (!of_callback(options.option) && options.option != "learning_rate" && std::ranges::find(kGroupOptions, options.option) == kGroupOptions.end())
        throw ConfigError(fmt::format("{}: '{}' is not known{} ({}, or ID.OPTION of a callback)", reader.path_of("option"), options.option,
                                      did_you_mean(options.option, kGroupOptions), fmt::join(kGroupOptions, ", ")));
    if (const nlohmann::json* base = reader.part("base", "number", "value that the factor multiplies; default: what each group came with")) {
        if (!base->is_number()) throw ConfigError(fmt::format("{}: {} is a {}; expected a number", reader.path_of("base"), base->dump(), base->type_name()));
        options.base = base->get<double>();
    }
    const nlohmann::json* part = reader.part("schedule", "object", fmt::format("kind ({}) and its options", fmt::join(schedule_table().kinds(), ", ")));
    options.schedule = schedule_from_json(part ? *part : nlohmann::json::object(), reader.path_of("schedule"));
    return make_option_schedule(std::move(options));
}

}  // namespace torchbus
