#include <torchbus/callbacks/stochastic_weight_averaging.hpp>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/averaged_weights.hpp"
#include "parts/batch_statistics.hpp"

namespace torchbus {
namespace {

using Options = StochasticWeightAveragingOptions;

/// Fractions such as 0.75run are not exact in binary.
constexpr double kTolerance = 1e-9;

class StochasticWeightAveraging final : public Callback {
public:
    explicit StochasticWeightAveraging(Options options) : options_(std::move(options)) {}
    std::string kind() const override { return "stochastic_weight_averaging"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "train_epoch_start", "forward_end", "optimizer_step_end", "train_epoch_end", "weights_view_changed"},
                .writes = {"plan.views"}, .views = {options_.view}, .collectives = true};
    }
    std::vector<Finding> check(const Outlook& run) const override {
        std::vector<Finding> findings;
        for (const Interval interval : {options_.start, options_.every}) {
            const bool of_run = interval.unit == Interval::Unit::Run;
            if (of_run && !run.length.epochs && !run.length.steps)
                findings.push_back({Finding::Weight::Error, fmt::format("stochastic_weight_averaging: '{}' needs a run of known length; give epochs or max_steps, "
                                                                        "or an interval in steps or epochs", to_string(interval))});
        }
        const auto length = options_.start.unit == Interval::Unit::Epoch ? run.length.epochs : options_.start.unit == Interval::Unit::Step ? run.length.steps : std::nullopt;
        if (length && static_cast<double>(*length) < options_.start.amount)
            findings.push_back({Finding::Weight::Warning, fmt::format("'stochastic_weight_averaging' starts at {}, after the run's end; no average will be taken: let it start earlier, "
                                                                      "or leave it out", to_string(options_.start))});
        return findings;
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { configure(event); });
        connections_ += run.bus.observe<TrainEpochStart>(Stage::Observe, [this](const TrainEpochStart&) { begin_epoch(); });
        connections_ += run.bus.observe<ForwardEnd>(Stage::Observe, [this](const ForwardEnd& event) {
            if (event.scope.mode == Mode::Train && !event.micro_batch.repeated) keep(event.batch);
        });
        connections_ += run.bus.observe<OptimizerStepEnd>(Stage::Observe, [this](const OptimizerStepEnd&) { average_if_due(); });
        connections_ += run.bus.observe<TrainEpochEnd>(Stage::Observe, [this](const TrainEpochEnd&) {
            loaded_ = false;  // the run that the state was for is under way, also where it was resumed within its last epoch
            average_if_due();
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
        run_ = nullptr;
    }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        const auto before = change_interval(options_.every, "every", kind(), option, value);
        ticks_ = ticks_now();
        return before;
    }
    SavedState state() const override {
        SavedState state{{{"averages", count_}, {"ticks", ticks_}, {"batches", kept_.size()}}};
        for (const auto& [name, average] : weights_.by_name()) state.tensors.emplace(name, average);
        for (std::size_t i = 0; i < kept_.size(); ++i) {
            const std::string prefix = fmt::format("batch:{}:", i);
            if (kept_[i].inputs.defined()) state.tensors.emplace(prefix + "inputs", kept_[i].inputs);
            if (kept_[i].targets.defined()) state.tensors.emplace(prefix + "targets", kept_[i].targets);
            for (const auto& [name, extra] : kept_[i].extras)
                if (extra.defined()) state.tensors.emplace(prefix + "extras." + name, extra);
        }
        for (std::size_t i = 0; i < statistics_.size(); ++i) state.tensors.emplace(fmt::format("statistic:{}", i), statistics_[i]);
        state.values["statistics"] = statistics_.size();
        return state;
    }
    void load_state(const SavedState& state) override {
        count_ = state.values.at("averages");
        ticks_ = state.values.at("ticks");
        std::map<std::string, at::Tensor> weights;
        std::deque<Batch> kept(state.values.at("batches").get<std::size_t>());
        statistics_.assign(state.values.at("statistics").get<std::size_t>(), {});
        for (const auto& [name, tensor] : state.tensors) {
            if (name.starts_with("batch:")) put_back(kept, name, tensor);
            else if (name.starts_with("statistic:")) statistics_.at(std::stoul(name.substr(10))) = tensor.detach().clone();
            else weights.emplace(name, tensor);
        }
        kept_ = std::move(kept);
        weights_.load(weights);
        loaded_ = true;
    }

private:
    void configure(RunConfigured& event) {
        model_ = &event.model;
        needs_batches_ = options_.batches > 0 && BatchStatistics(*model_).any();
        const bool trains = event.plan.has(Mode::Train);
        if (trains && !std::exchange(loaded_, false)) forget();
        const bool evaluates = event.plan.has(Mode::Eval);
        const bool planned = std::ranges::count(event.plan.views, options_.view) > 0;
        if (options_.evaluate && evaluates && !planned && (trains || count_ > 0)) event.plan.views.push_back(options_.view);
    }
    void forget() {
        weights_.forget();
        kept_.clear();
        statistics_.clear();
        count_ = ticks_ = 0;
    }
    void begin_epoch() {
        loaded_ = false;
    }
    bool started() const {
        const double at = measure(options_.start.unit, run_->moment);
        return at * (1 + kTolerance) >= options_.start.amount;
    }
    std::int64_t ticks_now() const { return static_cast<std::int64_t>(std::floor(measure(options_.every.unit, run_->moment) / options_.every.amount + kTolerance)); }
    void keep(const Batch& batch) {
        if (!needs_batches_ || !started()) return;
        kept_.push_back(clone_of(batch));
        if (kept_.size() > static_cast<std::size_t>(options_.batches)) kept_.pop_front();
    }
    static void put_back(std::deque<Batch>& kept, const std::string& name, const at::Tensor& tensor) {
        const auto colon = name.find(':', 6);
        Batch& batch = kept.at(std::stoul(name.substr(6, colon - 6)));
        const std::string part = name.substr(colon + 1);
        at::Tensor& place = part == "inputs" ? batch.inputs : part == "targets" ? batch.targets : batch.extras[part.substr(7)];
        place = tensor.detach().clone();
        if (part == "inputs") batch.samples = batch.valid = tensor.dim() > 0 ? tensor.size(0) : 0;
    }

    /// At the end of an epoch, and after each update: the point where floor(position / every) has grown.
    void average_if_due() {
        if (!model_ || !started()) return;
        const std::int64_t now = ticks_now();
        if (count_ > 0 && now <= ticks_) return;
        ticks_ = now;
        // What follows has its first average where it is first followed: a copy.
        if (count_++ == 0) weights_.forget();
        weights_.follow((*model_)->named_parameters());
        weights_.add(1.0 / static_cast<double>(count_));
        statistics_.clear();
    }

    void show() {
        if (!model_ || count_ == 0) return;
        weights_.follow((*model_)->named_parameters());
        weights_.show();
        BatchStatistics batch_statistics(*model_);
        if (options_.batches == 0 || !batch_statistics.any()) return;
        const at::NoGradGuard no_grad;
        buffers_.clear();
        for (const auto& [name, buffer] : (*model_)->named_buffers())
            if (buffer.defined()) buffers_.push_back(buffer.detach());
        for (const at::Tensor& buffer : buffers_) aside_.push_back(buffer.clone());
        if (statistics_.empty()) {
            batch_statistics.compute(kept_, run_->consensus);
            statistics_ = batch_statistics.copies();
        } else {
            batch_statistics.put(statistics_);
        }
    }
    void hide() {
        const at::NoGradGuard no_grad;
        weights_.hide();
        if (!aside_.empty()) at::_foreach_copy_(buffers_, aside_);
        aside_.clear();
        buffers_.clear();
    }

    Options options_;
    Attachment* run_ = nullptr;
    Model* model_ = nullptr;              ///< the run's
    AveragedWeights weights_;
    std::int64_t count_ = 0, ticks_ = 0;  ///< averages taken; floor(position / every) at the last one
    std::deque<Batch> kept_;
    std::vector<at::Tensor> statistics_;  ///< those of the average as it is; empty where they are to be computed
    std::vector<at::Tensor> buffers_, aside_;
    bool needs_batches_ = false;
    bool loaded_ = false;                 ///< a state waits for the run to come
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_stochastic_weight_averaging(Options options) {
    if (!(options.every.amount > 0))
        throw ConfigError(fmt::format("stochastic_weight_averaging: every: '{}' is not positive; give e.g. 1epoch", to_string(options.every)));
    if (options.batches < 0) throw ConfigError(fmt::format("stochastic_weight_averaging: batches: {} is negative; give at least 0", options.batches));
    if (options.view.empty()) throw ConfigError("stochastic_weight_averaging: view: it has no name; give one, e.g. swa");
    return std::make_unique<StochasticWeightAveraging>(std::move(options));
}

std::unique_ptr<Callback> stochastic_weight_averaging_from_json(OptionReader& reader) {
    Options options;
    reader.interval("start", options.start, "where the first average is taken")
        .interval("every", options.every, "between two averages; > 0").changeable()
        .integer("batches", options.batches, "training batches kept to compute the statistics of batch norm", Range::at_least(0))
        .text("view", options.view, "name of the weights view")
        .boolean("evaluate", options.evaluate, "whether evaluations go through the view");
    return make_stochastic_weight_averaging(std::move(options));
}

}  // namespace torchbus
