#include <torchbus/callbacks/learning_rate_schedule.hpp>

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/optim/optimizer.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/optim/registry.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/group_options.hpp>

#include "entries.hpp"
#include "parts/chosen_update.hpp"

namespace torchbus {
namespace {

void require_factor(double factor) {
    if (!(factor >= 0)) throw ConfigError(fmt::format("learning_rate_schedule: factor: {} is out of range; give a number of at least 0", factor));
}

class LearningRateSchedule final : public Callback {
public:
    explicit LearningRateSchedule(LearningRateScheduleOptions options) : options_(std::move(options)) {}
    std::string kind() const override { return "learning_rate_schedule"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"run_configured", "train_step_start"},
                             .writes = {options_.update.empty() ? "learning_rate" : "learning_rate:" + options_.update},
                             .publishes = {{published_name(), "train_step_start", Stage::Transform}}};
        if (options_.save_around_decay) {
            declared.listens.emplace_back("train_step_end");
            declared.asks = {Decision::SaveNow};
        }
        return declared;
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { remember(event.updates); });
        connections_ += run.bus.intercept<TrainStepStart>([this, &run](TrainStepStart& event) {
            if (!is_chosen(options_.update, event.update)) return;
            const auto& base = base_.of(event.update);  // attached while a run was under way, it is taken here
            auto& groups = event.update.optimizer->param_groups();
            const double common = options_.schedule(run.moment);
            for (std::size_t i = 0; i < groups.size(); ++i) groups[i].options().set_lr(base[i] * factor(i, common, run.moment) * options_.factor);
            run.blackboard.publish(published_name(), groups.front().options().get_lr());
            decays_ = options_.schedule.in_decay(run.moment);
        });
        if (options_.save_around_decay) connections_ += run.bus.observe<TrainStepEnd>(Stage::Observe, [this, &run](const TrainStepEnd& event) {
            if (!is_chosen(options_.update, event.update) || options_.schedule.in_decay(run.moment) == decays_) return;
            run.asker.ask(Decision::SaveNow, decays_ ? "the decay is over" : "the decay begins");
        });
    }
    void detach() override { connections_.clear(); }  // the base stays: it belongs to the optimizer, not to the run
    std::vector<Finding> check(const Outlook& run) const override {
        std::vector<Finding> findings = check_chosen_update(kind(), options_.update, run.updates);
        for (Finding& finding : check_schedule(options_.schedule, run, kind())) findings.push_back(std::move(finding));
        for (const Update& update : run.updates) {
            const std::size_t groups = update.optimizer->param_groups().size();
            if (!is_chosen(options_.update, update) || options_.groups.empty() || options_.groups.size() == groups) continue;
            findings.push_back({Finding::Weight::Error, fmt::format("learning_rate_schedule: groups: {} were given, and the optimizer has {} parameter {}; give one each, or none",
                                                                    options_.groups.size(), groups, groups == 1 ? "group" : "groups")});
        }
        if (options_.save_around_decay && !options_.schedule.has_decay())
            findings.push_back({Finding::Weight::Error, "learning_rate_schedule: save_around_decay: the schedule has no decay to save around; give one of kind warmup_stable_decay, or leave it out"});
        for (const GroupSchedule& group : options_.groups)
            for (Finding& finding : check_schedule(group.schedule, run, kind())) findings.push_back(std::move(finding));
        return findings;
    }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        if (option != "factor") refuse_change(kind(), option, {"factor"});
        const double factor = changed_number(value, kind(), option);
        require_factor(factor);
        return std::exchange(options_.factor, factor);
    }
    SavedState state() const override { return {{{"base_rates", base_.saved()}}}; }
    void load_state(const SavedState& state) override { base_.load(state.values.at("base_rates")); }

private:
    std::string published_name() const { return options_.update.empty() ? "learning_rate" : "learning_rate." + options_.update; }

    double factor(std::size_t group, double common, const Moment& moment) const {
        if (group >= options_.groups.size()) return common;
        const auto& [factor, schedule] = options_.groups[group];
        return factor * (schedule ? schedule(moment) : common);
    }

    void remember(const std::vector<Update>& updates) {
        for (const Update& update : updates)
            if (is_chosen(options_.update, update)) base_.of(update);
    }

    LearningRateScheduleOptions options_;
    BaseValues base_{"learning_rate"};
    bool decays_ = false;  ///< the update under way
    Connections connections_;
};

/// Numbers are factors of the common schedule, objects are schedules.
std::vector<GroupSchedule> groups_from_json(const nlohmann::json& part, const std::string& where) {
    if (!part.is_array()) throw ConfigError(fmt::format("{}: expected an array of factors or schedules, found a {}", where, part.type_name()));
    std::vector<GroupSchedule> groups;
    for (std::size_t i = 0; i < part.size(); ++i) {
        const std::string path = fmt::format("{}[{}]", where, i);
        if (part[i].is_object()) {
            groups.push_back({1, schedule_from_json(part[i], path)});
            continue;
        }
        if (!part[i].is_number() || part[i].get<double>() < 0)
            throw ConfigError(fmt::format("{}: {} is neither a factor of at least 0 nor a schedule", path, part[i].dump()));
        groups.push_back({part[i].get<double>()});
    }
    return groups;
}

}  // namespace

std::unique_ptr<Callback> make_learning_rate_schedule(LearningRateScheduleOptions options) {
    if (!options.schedule) throw ConfigError("learning_rate_schedule: there is no schedule; give a function of the run's moment");
    require_factor(options.factor);
    for (const GroupSchedule& group : options.groups)
        if (!(group.factor >= 0)) throw ConfigError(fmt::format("learning_rate_schedule: groups: {} is out of range; give factors of at least 0", group.factor));
    return std::make_unique<LearningRateSchedule>(std::move(options));
}

std::unique_ptr<Callback> learning_rate_schedule_from_json(OptionReader& reader) {
    LearningRateScheduleOptions options;
    reader.text("update", options.update, "name of the update; empty: all of them")
        .number("factor", options.factor, "of the whole curve", Range::at_least(0)).changeable()
        .boolean("save_around_decay", options.save_around_decay, "whether a save is asked for before a warm-up-stable-decay schedule's decay, and after one that it goes on from");
    const nlohmann::json* part = reader.part("schedule", "object", fmt::format("kind ({}) and its options", fmt::join(schedule_table().kinds(), ", ")));
    options.schedule = schedule_from_json(part ? *part : nlohmann::json::object(), reader.path_of("schedule"));
    if (const nlohmann::json* groups = reader.part("groups", "array of factor or schedule", "for each parameter group a factor of the schedule, or a schedule of its own"))
        options.groups = groups_from_json(*groups, reader.path_of("groups"));
    return make_learning_rate_schedule(std::move(options));
}

}  // namespace torchbus
