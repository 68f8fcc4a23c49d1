#include <torchbus/callbacks/reduce_on_plateau.hpp>

#include <algorithm>
#include <limits>
#include <map>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/optim/optimizer.h>

#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/chosen_update.hpp"

namespace torchbus {
namespace {

/// What a resumed run needs.
struct Plateau {
    double factor = 1;
    std::optional<double> best;
    std::int64_t bad_epochs = 0;
    std::int64_t cooldown_left = 0;
};

class ReduceOnPlateau final : public Callback {
public:
    explicit ReduceOnPlateau(ReduceOnPlateauOptions options) : options_(std::move(options)) {}
    std::string kind() const override { return "reduce_on_plateau"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "train_step_start", "train_step_end", "training_run_epoch_end", "run_failed", "run_closed"},
                .writes = {options_.update.empty() ? "learning_rate" : "learning_rate:" + options_.update},
                .publishes = {{published_name(), "run_configured", Stage::Transform}},
                .needs = {{options_.monitor, "training_run_epoch_end"}},
                .after = {"learning_rate_schedule"}};
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.intercept<RunConfigured>([this, &run](RunConfigured&) {
            plateau_ = std::exchange(loaded_, std::nullopt).value_or(Plateau{});
            under_way_ = true;
            publish(run.blackboard);
        });
        connections_ += run.bus.intercept<TrainStepStart>([this](TrainStepStart& event) {
            if (is_chosen(options_.update, event.update)) multiply(event.update);
        });
        connections_ += run.bus.observe<TrainStepEnd>(Stage::Persist, [this](const TrainStepEnd& event) {
            if (is_chosen(options_.update, event.update)) put_back();
        });
        connections_ += run.bus.observe<TrainingRunEpochEnd>(Stage::Observe, [this, &run](const TrainingRunEpochEnd&) {
            if (const auto value = run.blackboard.number(options_.monitor)) take(*value);
            publish(run.blackboard);
        });
        connections_ += run.bus.observe<RunFailed>(Stage::Observe, [this](const RunFailed&) { put_back(); });  // within a step, and before who saves
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) {
            put_back();
            under_way_ = false;
        });
    }
    std::vector<Finding> check(const Outlook& run) const override { return check_chosen_update(kind(), options_.update, run.updates); }
    void detach() override {
        connections_.clear();
        put_back();
        under_way_ = false;
        loaded_.reset();
        plateau_ = {};
        run_ = nullptr;
    }
    SavedState state() const override {
        const Plateau& now = loaded_ ? *loaded_ : plateau_;
        return {{{"factor", now.factor}, {"best", now.best ? nlohmann::json(*now.best) : nlohmann::json()}, {"bad_epochs", now.bad_epochs},
                 {"cooldown_left", now.cooldown_left}}};
    }
    void load_state(const SavedState& state) override {
        const auto& values = state.values;
        Plateau loaded{values.at("factor"), {}, values.at("bad_epochs"), values.at("cooldown_left")};
        if (!values.at("best").is_null()) loaded.best = values.at("best").get<double>();
        // Before a run it is what the next one begins with.
        if (under_way_) {
            plateau_ = loaded;
            publish(run_->blackboard);
        } else {
            loaded_ = loaded;
        }
    }

private:
    std::string published_name() const { return options_.update.empty() ? "learning_rate_factor" : "learning_rate_factor." + options_.update; }
    void publish(Blackboard& blackboard) const { blackboard.publish(published_name(), plateau_.factor); }

    void multiply(const Update& update) {
        put_back();  // a step that was discarded has no end
        if (plateau_.factor == 1) return;
        held_optimizer_ = update.optimizer;
        for (auto& group : update.optimizer->param_groups()) {
            const double rate = group.options().get_lr();
            held_rates_.push_back(rate);
            group.options().set_lr(std::max(rate * plateau_.factor, std::min(rate, options_.minimum)));
        }
    }
    void put_back() {
        if (const auto optimizer = std::exchange(held_optimizer_, nullptr))
            for (std::size_t i = 0; i < held_rates_.size() && i < optimizer->param_groups().size(); ++i)
                optimizer->param_groups()[i].options().set_lr(held_rates_[i]);
        held_rates_.clear();
    }

    /// NaN is never better, nor is the worst of all as the first value.
    bool is_better(double value) const {
        const double sign = options_.mode == ReduceOnPlateauOptions::Mode::Min ? -1 : 1;
        if (!plateau_.best) return sign * value > -std::numeric_limits<double>::infinity();
        const double best = *plateau_.best;
        const double margin = options_.threshold_mode == ReduceOnPlateauOptions::Threshold::Relative ? best * options_.threshold : options_.threshold;
        return sign < 0 ? value < best - margin : value > best + margin;
    }
    void take(double value) {
        if (is_better(value)) {
            plateau_.best = value;
            plateau_.bad_epochs = 0;
        } else {
            ++plateau_.bad_epochs;
        }
        if (plateau_.cooldown_left > 0) {
            --plateau_.cooldown_left;
            plateau_.bad_epochs = 0;
        }
        if (plateau_.bad_epochs <= options_.patience) return;
        plateau_.factor *= options_.factor;
        plateau_.cooldown_left = options_.cooldown;
        plateau_.bad_epochs = 0;
    }

    ReduceOnPlateauOptions options_;
    Plateau plateau_;
    std::optional<Plateau> loaded_;
    Attachment* run_ = nullptr;
    bool under_way_ = false;
    std::shared_ptr<torch::optim::Optimizer> held_optimizer_;  ///< whose rates are multiplied now
    std::vector<double> held_rates_;                           ///< as they were found, one a group
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_reduce_on_plateau(ReduceOnPlateauOptions options) {
    const auto refuse = [](const char* name, double value, const char* what) {
        throw ConfigError(fmt::format("reduce_on_plateau: {}: {} is out of range; give {}", name, value, what));
    };
    if (options.monitor.empty()) throw ConfigError("reduce_on_plateau: monitor: it is empty; name a number, e.g. eval.loss");
    if (!(options.factor > 0 && options.factor < 1)) refuse("factor", options.factor, "a number between 0 and 1, e.g. 0.1");
    if (options.patience < 0) refuse("patience", static_cast<double>(options.patience), "at least 0 epochs");
    if (!(options.threshold >= 0)) refuse("threshold", options.threshold, "at least 0, e.g. 0.0001");
    if (options.cooldown < 0) refuse("cooldown", static_cast<double>(options.cooldown), "at least 0 epochs");
    if (!(options.minimum >= 0)) refuse("minimum", options.minimum, "a learning rate of at least 0");
    return std::make_unique<ReduceOnPlateau>(std::move(options));
}

std::unique_ptr<Callback> reduce_on_plateau_from_json(OptionReader& reader) {
    ReduceOnPlateauOptions options;
    std::string mode = "min", threshold_mode = "relative";
    reader.text("monitor", options.monitor, "number that is watched, once an epoch")
        .choice("mode", mode, {"min", "max"}, "whether smaller or larger is better")
        .number("factor", options.factor, "of the learning rate at each drop; between 0 and 1", {0, 1, false})
        .integer("patience", options.patience, "epochs without a better value that are let pass", Range::at_least(0))
        .number("threshold", options.threshold, "only a change above it is better", Range::at_least(0))
        .choice("threshold_mode", threshold_mode, {"relative", "absolute"}, "a share of the best value, or in its unit")
        .integer("cooldown", options.cooldown, "epochs after a drop in which none counts as bad", Range::at_least(0))
        .number("minimum", options.minimum, "learning rate that no drop goes below", Range::at_least(0))
        .text("update", options.update, "name of the update; empty: all of them");
    if (mode == "max") options.mode = ReduceOnPlateauOptions::Mode::Max;
    if (threshold_mode == "absolute") options.threshold_mode = ReduceOnPlateauOptions::Threshold::Absolute;
    return make_reduce_on_plateau(std::move(options));
}

}  // namespace torchbus
