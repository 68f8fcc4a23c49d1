#include <torchbus/callbacks/metrics.hpp>

#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/count_correct.hpp"

namespace torchbus {
namespace {

/// A sum of numbers that lie on the CPU, read at once, or on a device, where they stay until asked for.
class DeferredSum {
public:
    void add(const at::Tensor& value, double factor) {
        if (value.is_cpu()) {
            on_cpu_ += value.item<double>() * factor;
            return;
        }
        const at::Tensor scaled = value.detach().to(at::kDouble) * factor;
        on_device_ = on_device_.defined() ? on_device_ + scaled : scaled;
    }
    void add(double value) { on_cpu_ += value; }
    void set(double value) { on_cpu_ = value, on_device_ = at::Tensor(); }
    double value() const { return on_cpu_ + (on_device_.defined() ? on_device_.item<double>() : 0.0); }

private:
    double on_cpu_ = 0;
    at::Tensor on_device_;
};

struct Sums {
    DeferredSum loss, correct;
    double weight = 0;  ///< of what has a loss
    std::int64_t samples = 0;
    bool running = true;  ///< the pass is not over
};

class MetricsCallback final : public Callback {
public:
    explicit MetricsCallback(MetricsOptions options) : options_(options) {}
    std::string kind() const override { return "metrics"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"train_epoch_start", "eval_epoch_start", "forward_end", "train_epoch_end", "eval_epoch_end"},
                             .reads = {"batch", "output", "loss"}, .collectives = true};
        // The running mean of training is there from the first batch on.
        for (const auto& [role, event] : {std::pair{"train", "forward_end"}, std::pair{"eval", "eval_epoch_end"}}) {
            if (options_.loss) declared.publishes.emplace_back(fmt::format("{}.loss", role), event);
            if (options_.accuracy) declared.publishes.emplace_back(fmt::format("{}.accuracy", role), event);
        }
        return declared;
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.observe<TrainEpochStart>(Stage::Observe, [this](const TrainEpochStart&) { forget("train"); });
        connections_ += run.bus.observe<EvalEpochStart>(Stage::Observe, [this](const EvalEpochStart& event) { forget(prefix_of(event.scope, "")); });
        connections_ += run.bus.observe<ForwardEnd>(Stage::Observe, [this](const ForwardEnd& event) {
            if (event.scope.mode != Mode::Predict && !event.micro_batch.repeated) add(event);
        });
        connections_ += run.bus.observe<TrainEpochEnd>(Stage::Observe, [this](const TrainEpochEnd&) { conclude("train"); });
        connections_ += run.bus.observe<EvalEpochEnd>(Stage::Observe, [this](const EvalEpochEnd& event) { conclude(prefix_of(event.scope, "")); });
    }
    void detach() override {
        connections_.clear();
        if (run_)
            for (const auto& [prefix, sums] : sums_) withdraw(prefix);
        run_ = nullptr;
        sums_.clear();
        last_ = nullptr;
    }

    SavedState state() const override {
        SavedState state;
        for (const auto& [prefix, sums] : sums_)
            state.values[prefix] = {{"loss", sums.loss.value()}, {"correct", sums.correct.value()}, {"weight", sums.weight}, {"samples", sums.samples}, {"running", sums.running}};
        return state;
    }
    void load_state(const SavedState& state) override {
        sums_.clear();
        last_ = nullptr;
        for (const auto& [prefix, saved] : state.values.items()) {
            Sums& sums = sums_[prefix];
            sums.loss.set(saved.at("loss"));
            sums.correct.set(saved.at("correct"));
            sums.weight = saved.at("weight");
            sums.samples = saved.at("samples");
            sums.running = saved.at("running");
            if (run_ && sums.running) publish_running(prefix, sums);
        }
    }
    /// Rank 0 goes on with what all have gathered: at the end of the epoch they are summed.
    void load_states_of_ranks(const std::vector<SavedState>& states) override {
        SavedState sum = states.front();
        const bool is_first = run_->consensus.rank() == 0;
        for (auto& [prefix, values] : sum.values.items())
            for (const char* name : {"loss", "correct", "weight", "samples"}) {
                auto& total = values.at(name) = is_first ? values.at(name) : nlohmann::json(0);
                for (std::size_t rank = 1; is_first && rank < states.size(); ++rank)
                    if (const auto& of_rank = states[rank].values; of_rank.contains(prefix)) total = total.get<double>() + of_rank.at(prefix).at(name).get<double>();
            }
        load_state(sum);
    }

private:
    /// train, eval, eval.noisy, eval.noisy.ema, train.discriminator
    static std::string prefix_of(const Scope& scope, std::string_view update) {
        std::string prefix = scope.mode == Mode::Train ? "train" : "eval";
        if (scope.split != prefix) prefix += fmt::format(".{}", scope.split);
        if (scope.view != "training") prefix += fmt::format(".{}", scope.view);
        if (!update.empty()) prefix += fmt::format(".{}", update);
        return prefix;
    }

    /// Samples that fill up a rank's part of a batch weigh in the update, as its loader says, and not here.
    static double weight_of(const Batch& batch) {
        const auto valid = static_cast<double>(batch.valid);
        const BatchOverRanks& over_ranks = batch.over_ranks;
        const bool is_filled_up = over_ranks.weight > over_ranks.own_weight && over_ranks.own_weight == batch.weight && batch.weight > valid;
        return is_filled_up ? valid : batch.weight;
    }

    void add(const ForwardEnd& event) {
        Sums& sums = sums_of(event);
        const Batch& batch = event.batch;
        if (options_.loss && event.loss.defined()) {
            const double weight = weight_of(batch);
            sums.loss.add(event.loss, weight);
            sums.weight += weight;
        }
        if (options_.accuracy) add_correct(event, sums);
        sums.samples += batch.valid;
    }

    /// The place of an event's sums. Nearly always the one of the event before: names are compared, not built.
    Sums& sums_of(const ForwardEnd& event) {
        const bool same = last_ && last_mode_ == event.scope.mode && last_split_ == event.scope.split &&
                          last_view_ == event.scope.view && last_update_ == event.micro_batch.update;
        if (same) return *last_;
        last_mode_ = event.scope.mode;
        last_split_ = event.scope.split;
        last_view_ = event.scope.view;
        last_update_ = event.micro_batch.update;
        const std::string prefix = prefix_of(event.scope, event.micro_batch.update);
        const auto [place, added] = sums_.try_emplace(prefix);
        last_ = &place->second;
        if (added) publish_running(prefix, *last_);
        return *last_;
    }

    void add_correct(const ForwardEnd& event, Sums& sums) const {
        const at::Tensor& output = event.output.tensor;
        const at::Tensor& targets = event.batch.targets;
        if (output.dim() != 2 || !targets.defined() || targets.dim() != 1 || targets.scalar_type() != at::kLong)
            throw ConfigError(fmt::format("metrics: accuracy needs an output of shape [N, C] and integer targets of shape [N]; "
                                          "got output [{}]{}; turn accuracy off, or publish a metric of your own",
                                          fmt::join(output.sizes(), ", "),
                                          targets.defined() ? fmt::format(" and targets [{}]", fmt::join(targets.sizes(), ", ")) : " and no targets"));
        const bool direct = output.is_cpu() && output.scalar_type() == at::kFloat && output.is_contiguous() && targets.is_contiguous();
        if (direct) {
            sums.correct.add(static_cast<double>(count_correct(output.const_data_ptr<float>(), targets.const_data_ptr<std::int64_t>(),
                                                               event.batch.valid, output.size(1))));
            return;
        }
        const at::NoGradGuard no_grad;
        const at::Tensor hits = output.argmax(1).eq(targets).narrow(0, 0, event.batch.valid);
        sums.correct.add(hits.sum(), 1.0);
    }

    void publish_running(const std::string& prefix, const Sums& sums) {
        if (options_.loss) run_->blackboard.publish_lazy(prefix + ".loss", [&sums] { return sums.loss.value() / sums.weight; });
        if (options_.accuracy)
            run_->blackboard.publish_lazy(prefix + ".accuracy", [&sums] { return sums.correct.value() / static_cast<double>(sums.samples); });
    }
    void withdraw(const std::string& prefix) {
        run_->blackboard.withdraw(prefix + ".loss");
        run_->blackboard.withdraw(prefix + ".accuracy");
    }

    /// Whether sums are those of a prefix; the sums of named updates belong to "train".
    static bool belongs_to(std::string_view name, std::string_view prefix) {
        return name == prefix || (prefix == "train" && name.starts_with("train."));
    }

    /// Starts anew all sums of a prefix.
    void forget(const std::string& prefix) {
        for (auto& [name, sums] : sums_) {
            if (!belongs_to(name, prefix)) continue;
            sums = {};
            publish_running(name, sums);
        }
    }

    /// Sums over ranks, and publishes the epoch's values.
    void conclude(const std::string& prefix) {
        for (auto& [name, sums] : sums_) {
            if (!belongs_to(name, prefix)) continue;
            std::array totals = {sums.loss.value(), sums.weight, sums.correct.value(), static_cast<double>(sums.samples)};
            run_->consensus.sum(totals);
            sums.running = false;
            withdraw(name);  // nothing is published of an epoch in which nothing counted
            if (options_.loss && totals[1] > 0) run_->blackboard.publish(name + ".loss", totals[0] / totals[1]);
            if (options_.accuracy && totals[3] > 0) run_->blackboard.publish(name + ".accuracy", totals[2] / totals[3]);
        }
    }

    MetricsOptions options_;
    Attachment* run_ = nullptr;
    std::map<std::string, Sums> sums_;  ///< by prefix; nodes stay where they are
    Sums* last_ = nullptr;
    Mode last_mode_ = Mode::Train;
    std::string last_split_, last_view_, last_update_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_metrics(MetricsOptions options) {
    if (!options.loss && !options.accuracy) throw ConfigError("metrics: nothing is measured; turn on loss or accuracy");
    return std::make_unique<MetricsCallback>(options);
}

std::unique_ptr<Callback> metrics_from_json(OptionReader& reader) {
    MetricsOptions options;
    reader.boolean("loss", options.loss, "mean loss over the epoch").boolean("accuracy", options.accuracy, "share of samples classified right");
    return make_metrics(options);
}

}  // namespace torchbus
