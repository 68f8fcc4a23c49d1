#include <torchbus/callbacks/model_ema.hpp>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/averaged_weights.hpp"
#include "parts/chosen_update.hpp"

namespace torchbus {
namespace {

using Warmup = ModelEmaOptions::Warmup;
using Buffers = ModelEmaOptions::Buffers;

void require(bool holds, const char* name, double value, const char* what) {
    if (!holds) throw ConfigError(fmt::format("model_ema: {}: {} is out of range; give {}", name, value, what));
}

void require_valid(const ModelEmaOptions& options) {
    require(options.decay >= 0 && options.decay < 1, "decay", options.decay, "a number in [0, 1), e.g. 0.9999");
    require(options.min_decay >= 0 && options.min_decay <= options.decay, "min_decay", options.min_decay, "a number between 0 and decay");
    require(options.warmup_gamma > 0, "warmup_gamma", options.warmup_gamma, "a positive number, e.g. 1");
    require(options.warmup_power > 0, "warmup_power", options.warmup_power, "a positive number, e.g. 0.75");
    require(options.start_step >= 0, "start_step", static_cast<double>(options.start_step), "0 or the number of an update");
    require(options.every >= 1, "every", static_cast<double>(options.every), "at least 1 update");
    if (options.view.empty()) throw ConfigError("model_ema: view: it has no name; give one, e.g. ema");
}

class ModelEma final : public Callback {
public:
    explicit ModelEma(ModelEmaOptions options) : options_(std::move(options)) {}
    std::string kind() const override { return "model_ema"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "train_epoch_start", "optimizer_step_end", "train_epoch_end", "parameters_changed", "weights_view_changed"},
                .writes = {"plan.views"}, .views = {options_.view}};
    }
    std::vector<Finding> check(const Outlook& run) const override {
        return check_chosen_update(kind(), options_.update, run.updates);
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { configure(event); });
        // Not before: until here another may still put weights into the model.
        connections_ += run.bus.observe<TrainEpochStart>(Stage::Observe, [this](const TrainEpochStart&) {
            if (!weights_.following()) follow();
            loaded_ = false;
        });
        connections_ += run.bus.observe<OptimizerStepEnd>(Stage::Observe, [this](const OptimizerStepEnd& event) {
            if (is_chosen(options_.update, event.update)) count_step();
        });
        // The run that a state was for is under way, also where it goes on within its last epoch.
        connections_ += run.bus.observe<TrainEpochEnd>(Stage::Observe, [this](const TrainEpochEnd&) { loaded_ = false; });
        connections_ += run.bus.observe<ParametersChanged>(Stage::Observe, [this](const ParametersChanged&) {
            if (model_ && weights_.following()) follow();
        });
        connections_ += run.bus.observe<WeightsViewChanged>(Stage::Observe, [this](const WeightsViewChanged& event) {
            if (event.from == options_.view) hide();
            if (event.to == options_.view) show();
        });
    }
    void detach() override {
        connections_.clear();
        hide();
        model_ = nullptr;
    }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        return change_number(options_, {{"decay", &ModelEmaOptions::decay}}, kind(), option, value,
                             [](const ModelEmaOptions& changed) { require_valid(changed); });
    }
    SavedState state() const override {
        SavedState state{{{"steps", steps_}, {"averages", count_}}};
        for (const auto& [name, average] : weights_.by_name()) state.tensors.emplace(name, average);
        for (const auto& [name, buffer] : buffers_.by_name()) state.tensors.emplace("buffer:" + name, buffer);
        return state;
    }
    void load_state(const SavedState& state) override {
        std::map<std::string, at::Tensor> weights, buffers;
        for (const auto& [name, tensor] : state.tensors)
            name.starts_with("buffer:") ? buffers.emplace(name.substr(7), tensor) : weights.emplace(name, tensor);
        steps_ = state.values.at("steps");
        count_ = state.values.at("averages");
        weights_.load(weights);
        buffers_.load(buffers);
        loaded_ = true;
    }

private:
    void configure(RunConfigured& event) {
        model_ = &event.model;
        const bool trains = event.plan.has(Mode::Train);
        if (trains) begin();
        const bool evaluates = event.plan.has(Mode::Eval);
        const bool planned = std::ranges::count(event.plan.views, options_.view) > 0;
        if (options_.evaluate && evaluates && !planned && (trains || weights_.any())) event.plan.views.push_back(options_.view);
    }
    void begin() {
        if (std::exchange(loaded_, false)) return;
        weights_.forget();
        buffers_.forget();
        steps_ = count_ = 0;
    }
    void follow() {
        weights_.follow((*model_)->named_parameters());
        if (options_.buffers != Buffers::None) buffers_.follow((*model_)->named_buffers());
    }

    void count_step() {
        if (!weights_.following()) follow();  // attached in mid-epoch
        if (++steps_ % options_.every != 0) return;
        const double share = 1.0 - next_decay();
        weights_.add(share);
        options_.buffers == Buffers::Average ? buffers_.add(share) : buffers_.copy();
    }
    /// timm counts from 1, and the first average copies: n = max(0, step − start_step − 1), 0 giving a decay of 0.
    double next_decay() {
        if (steps_ <= options_.start_step) return 0;
        const auto n = static_cast<double>(count_++);
        if (n == 0) return 0;
        switch (options_.warmup) {
            case Warmup::None: return options_.decay;
            case Warmup::Power: return bounded(1 - std::pow(1 + n / options_.warmup_gamma, -options_.warmup_power));
            case Warmup::Exponential: return bounded(options_.decay * (1 - std::exp(-n / options_.warmup_gamma)));
        }
        return options_.decay;
    }
    double bounded(double decay) const { return std::max(std::min(decay, options_.decay), options_.min_decay); }

    void show() {
        if (!model_) return;
        follow();  // the model may have been moved since
        weights_.show();
        buffers_.show();
    }
    void hide() {
        weights_.hide();
        buffers_.hide();
    }

    ModelEmaOptions options_;
    Model* model_ = nullptr;      ///< the run's
    AveragedWeights weights_, buffers_;
    std::int64_t steps_ = 0;      ///< updates heard of
    std::int64_t count_ = 0;      ///< averages taken since start_step
    bool loaded_ = false;         ///< a state waits for the run to come
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_model_ema(ModelEmaOptions options) {
    require_valid(options);
    return std::make_unique<ModelEma>(std::move(options));
}

std::unique_ptr<Callback> model_ema_from_json(OptionReader& reader) {
    ModelEmaOptions options;
    std::string warmup = "none", buffers = "copy";
    reader.number("decay", options.decay, "share that the average keeps at an update; in [0, 1)", Range::from_to_below(0, 1)).changeable()
        .choice("warmup", warmup, {"none", "power", "exponential"}, "how the decay grows to its value")
        .number("warmup_gamma", options.warmup_gamma, "averages that the warm-up is measured in; > 0", Range::positive())
        .number("warmup_power", options.warmup_power, "exponent of the warm-up power; > 0", Range::positive())
        .number("min_decay", options.min_decay, "smallest decay of a warm-up, after the first average", Range::between(0, 1))
        .integer("start_step", options.start_step, "update until which the average is a copy of the weights", Range::at_least(0))
        .integer("every", options.every, "updates between two averages", Range::at_least(1))
        .choice("buffers", buffers, {"copy", "average", "none"}, "what the view shows of the model's buffers")
        .text("view", options.view, "name of the weights view")
        .boolean("evaluate", options.evaluate, "whether evaluations go through the view")
        .text("update", options.update, "name of the update that it follows; empty: each");
    options.warmup = warmup == "none" ? Warmup::None : warmup == "power" ? Warmup::Power : Warmup::Exponential;
    options.buffers = buffers == "copy" ? Buffers::Copy : buffers == "average" ? Buffers::Average : Buffers::None;
    return make_model_ema(std::move(options));
}

}  // namespace torchbus
