#include <torchbus/callbacks/early_stopping.hpp>

#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/measured_weights.hpp"
#include "parts/monitor.hpp"

namespace torchbus {
namespace {

using ThresholdMode = EarlyStoppingOptions::ThresholdMode;

class EarlyStopping final : public Callback {
public:
    explicit EarlyStopping(EarlyStoppingOptions options)
        : options_(std::move(options)), goal_(options_.mode == EarlyStoppingOptions::Mode::Min ? Goal::Min : Goal::Max), weights_(options_.monitor) {}
    std::string kind() const override { return "early_stopping"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"training_run_start", "training_run_epoch_end", "run_closed"},
                             .needs = {{options_.monitor, "training_run_epoch_end", Stage::Report}}, .asks = {Decision::StopRun}};
        if (options_.restore_best) {
            declared.listens.insert(declared.listens.end(), {"training_run_end", "eval_epoch_end"});
            declared.writes = {"parameters"};
        }
        return declared;
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart&) {
            if (beginning_.is_anew()) forget();
        });
        connections_ += run.bus.observe<TrainingRunEpochEnd>(Stage::Report, [this, &run](const TrainingRunEpochEnd& event) { check(event.position, run); });
        if (options_.restore_best) {
            weights_.attach(run);
            connections_ += run.bus.intercept<TrainingRunEnd>([this, &run](TrainingRunEnd&) {
                if (best_) run.run_state.load("model", best_weights_);
            });
        }
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) { beginning_.closed(); });
    }
    void detach() override {
        connections_.clear();
        weights_.detach();
        beginning_ = {};
        forget();
    }
    SavedState state() const override {
        SavedState state{{{"waited", waited_}, {"best_epoch", best_epoch_}}, best_weights_.tensors};
        if (best_) state.values["best"] = *best_;
        return state;
    }
    void load_state(const SavedState& state) override {
        waited_ = state.values.at("waited");
        best_epoch_ = state.values.at("best_epoch");
        best_.reset();
        if (state.values.contains("best")) best_ = state.values.at("best").get<double>();
        best_weights_.tensors.clear();
        if (options_.restore_best) best_weights_ = cloned({{}, state.tensors});
        beginning_.loaded();
    }

private:
    void forget() {
        best_.reset();
        best_epoch_ = waited_ = 0;
        best_weights_ = {};
    }

    bool is_improvement(double value) const {
        if (!std::isfinite(value)) return false;
        if (!best_) return true;
        const double margin = options_.threshold_mode == ThresholdMode::Absolute ? options_.threshold : options_.threshold * std::abs(*best_);
        return is_better(value, goal_ == Goal::Min ? *best_ - margin : *best_ + margin, goal_);
    }

    void check(const Position& at, Attachment& run) {
        const auto value = run.blackboard.number(options_.monitor);
        if (!value) {
            warn(fmt::format("early_stopping: nothing was published as {} in epoch {}; this check is left out", options_.monitor, at.epoch));
            return;
        }
        if (is_improvement(*value)) {
            best_ = *value;
            best_epoch_ = at.epoch;
            waited_ = 0;
            if (options_.restore_best) best_weights_ = cloned(weights_.get());
        } else {
            ++waited_;
        }
        if (const std::string reason = reason_to_stop(*value, at.epoch); !reason.empty()) run.asker.ask(Decision::StopRun, reason);
    }

    std::string reason_to_stop(double value, std::int64_t epoch) const {
        if (options_.check_finite && !std::isfinite(value)) return fmt::format("{} is {} after epoch {}", options_.monitor, value, epoch);
        if (options_.stop_at && !is_better(*options_.stop_at, value, goal_) && std::isfinite(value))
            return fmt::format("{} is {:.6g} after epoch {}, which reaches the bound of {:.6g}", options_.monitor, value, epoch, *options_.stop_at);
        if (waited_ < options_.patience) return {};
        const std::string best = best_ ? fmt::format("the best was {:.6g} after epoch {}", *best_, best_epoch_) : "it never was a finite number";
        return fmt::format("{} has not improved for {} check{}: {}, now it is {:.6g}", options_.monitor, waited_, waited_ == 1 ? "" : "s", best, value);
    }

    EarlyStoppingOptions options_;
    Goal goal_;
    MeasuredWeights weights_;
    RunBeginning beginning_;
    std::optional<double> best_;
    std::int64_t best_epoch_ = 0, waited_ = 0;
    SavedState best_weights_;  ///< clones; with restore_best
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_early_stopping(EarlyStoppingOptions options) {
    if (options.monitor.empty()) throw ConfigError("early_stopping: monitor: there is no name; give that of a published number, e.g. eval.loss");
    if (options.patience < 1) throw ConfigError(fmt::format("early_stopping: patience: {} is too few; give at least 1 check", options.patience));
    if (!(options.threshold >= 0) || std::isinf(options.threshold))
        throw ConfigError(fmt::format("early_stopping: threshold: {} is out of range; give 0 or the smallest improvement that counts, e.g. 0.001", options.threshold));
    if (options.stop_at && !std::isfinite(*options.stop_at))
        throw ConfigError(fmt::format("early_stopping: stop_at: {} is no bound; give a number, or leave it out", *options.stop_at));
    return std::make_unique<EarlyStopping>(std::move(options));
}

std::unique_ptr<Callback> early_stopping_from_json(OptionReader& reader) {
    EarlyStoppingOptions options;
    std::string mode = "min", threshold_mode = "absolute";
    reader.text("monitor", options.monitor, "the number that is watched, as it is published")
        .choice("mode", mode, {"min", "max"}, "which way the number gets better")
        .integer("patience", options.patience, "checks in a row without an improvement, after which the run stops; ≥ 1", Range::at_least(1))
        .number("threshold", options.threshold, "improvements up to this do not count; ≥ 0", Range::at_least(0))
        .choice("threshold_mode", threshold_mode, {"absolute", "relative"}, "whether the threshold is a difference, or a share of the best value")
        .boolean("check_finite", options.check_finite, "whether the run stops when the number is NaN or infinite")
        .boolean("restore_best", options.restore_best, "whether the weights of the best check are kept in memory, and put back at the end");
    if (const nlohmann::json* stop_at = reader.part("stop_at", "number", "the run stops when the number is there or beyond it; left out: never")) {
        if (!stop_at->is_number()) throw ConfigError(fmt::format("{}: {} is not a number; give the bound, e.g. 0.05", reader.path_of("stop_at"), stop_at->dump()));
        options.stop_at = stop_at->get<double>();
    }
    options.mode = mode == "min" ? EarlyStoppingOptions::Mode::Min : EarlyStoppingOptions::Mode::Max;
    options.threshold_mode = threshold_mode == "absolute" ? ThresholdMode::Absolute : ThresholdMode::Relative;
    return make_early_stopping(std::move(options));
}

}  // namespace torchbus
