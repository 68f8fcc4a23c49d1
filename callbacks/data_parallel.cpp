#include <torchbus/callbacks/data_parallel.hpp>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <torch/nn/module.h>
#include <torch/utils.h>

#include <torchbus/checkpoint/weights.hpp>
#include <torchbus/data/dataset.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class DataParallel final : public Callback {
public:
    explicit DataParallel(DataParallelOptions options) : options_(std::move(options)) {}
    std::string kind() const override { return "data_parallel"; }
    Declaration declare() const override {
        // Gradients are summed before anybody unscales them.
        return {.listens = {"*", "run_configured", "train_step_start", "backward_start", "gradients_ready", "decision_taken", "eval_epoch_start", "training_run_end", "parameters_changed", "run_failed", "run_closed"},
                .writes = {"window", "root", "gradients.finalize"},
                .before = {"mixed_precision"}, .excludes = {{"micro_batch_halving", "a rank that divides its window would leave the others waiting"}}, .collectives = true};
    }
    std::shared_ptr<Consensus> consensus() override { return is_alone() ? nullptr : options_.world->consensus(); }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) {
            if (!is_alone()) begin(event);
        });
        connections_ += run.bus.intercept<TrainStepStart>([this, &run](TrainStepStart& event) {
            if (!is_alone()) weigh(event.window, run.consensus);
        });
        connections_ += run.bus.intercept<BackwardStart>([this](BackwardStart& event) {
            if (!is_alone() && event.micro_batch.is_last()) event.root = reducer_of(event.micro_batch.update).arm(event.root);
        });
        connections_ += run.bus.observe<DecisionTaken>(Stage::Observe, [this](const DecisionTaken& event) {
            if (event.decision == Decision::SkipBatch) skips_next_ = true;  // one rank's batches weigh nothing
        });
        // Forward has changed them on each rank by its own samples.
        connections_ += run.bus.intercept(Phase::Finalize, [this](GradientsReady& event) {
            if (is_alone()) return;
            if (const auto reduced = reducers_.find(event.update.name); reduced != reducers_.end()) reduced->second.reducer->finish();
            share_buffers();
        });
        connections_ += run.bus.intercept<EvalEpochStart>([this](EvalEpochStart&) { share_buffers(); });
        connections_ += run.bus.intercept<TrainingRunEnd>([this](TrainingRunEnd&) { share_buffers(); });
        connections_ += run.bus.observe<ParametersChanged>(Stage::Observe, [this](const ParametersChanged&) { reducers_.clear(); });
        connections_ += run.bus.observe_all(Stage::Observe, [this, &run](const AnyEvent& event) {
            if (!is_alone() && event.name() != "run_failed") options_.world->note(event.name(), run.moment.position.epoch, run.moment.position.step);
        });
        // The others are not to wait for this rank, nor is anybody here to wait for them.
        connections_ += run.bus.observe<RunFailed>(Stage::Observe, [this](const RunFailed& event) {
            if (!is_alone()) options_.world->leave(event.error);
        });
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) { end(); });
    }
    void detach() override {
        connections_.clear();
        end();
    }

private:
    bool is_alone() const { return !options_.world; }
    void begin(RunConfigured& event) {
        const at::NoGradGuard no_grad;
        model_ = event.model;
        updates_ = &event.updates;
        std::vector<at::Tensor> tensors;
        for (const auto& [name, tensor] : weights_of(model_)) tensors.push_back(tensor.detach());
        options_.world->use_device(tensors.empty() ? event.plan.device : tensors.front().device());
        options_.world->broadcast(std::move(tensors));
        buffers_.clear();
        if (options_.share_buffers)
            for (const auto& [name, buffer] : model_->named_buffers()) buffers_.push_back(buffer);
        // Weights are rank 0's; what is drawn from here on, such as dropout, is to differ.
        if (const int rank = options_.world->rank(); rank > 0 && is_training(event.plan)) torch::manual_seed(SampleSeed{event.plan.seed, 0}.of(-1 - rank));
        reducers_.clear();
        sums_weights_.reset();
        skipped_.reset();
        skips_next_ = false;
    }
    static bool is_training(const RunPlan& plan) { return plan.has(Mode::Train); }
    void share_buffers() {
        if (!buffers_.empty()) options_.world->broadcast(buffers_);
    }
    /// What all ranks have of a window together: as the loaders know it, or summed.
    void weigh(Window& window, Consensus& consensus) {
        if (!sums_weights_) {  // the first window of a run tells
            std::array deviating{options_.sum_weights || !is_as_loaded(window) ? 1.0 : 0.0};
            consensus.sum(deviating);
            sums_weights_ = deviating[0] > 0;
        }
        if (std::exchange(skips_next_, false)) skipped_ = window.range;
        if (*sums_weights_ || skipped_ == window.range) return sum_weights(window, consensus);
        if (!is_as_loaded(window))
            throw ConfigError("data_parallel: the weights of a window are not those that its loader counted, as they were when the run began; give sum_weights where they change on their way");
        window.total_weight = 0;
        for (const Batch& batch : window.batches) window.total_weight += batch.over_ranks.weight;
    }
    static bool is_as_loaded(const Window& window) {
        return std::ranges::all_of(window.batches, [](const Batch& batch) { return batch.weight == batch.over_ranks.own_weight && (batch.tokens == 0 || batch.over_ranks.tokens > 0); });
    }
    static void sum_weights(Window& window, Consensus& consensus) {
        std::vector<double> sums = {window.total_weight};
        for (const Batch& batch : window.batches) {
            sums.push_back(static_cast<double>(batch.valid));
            sums.push_back(static_cast<double>(batch.tokens));
        }
        consensus.sum(sums);
        window.total_weight = sums[0];
        for (std::size_t i = 0; i < window.batches.size(); ++i) {
            BatchOverRanks& whole = window.batches[i].over_ranks;
            whole.samples = static_cast<std::int64_t>(sums[1 + 2 * i]);
            whole.tokens = static_cast<std::int64_t>(sums[2 + 2 * i]);
        }
    }
    void end() {
        reducers_.clear();
        buffers_.clear();
        model_ = {};
        updates_ = nullptr;
    }
    struct Reduced {
        std::vector<const void*> trained;  ///< parameters, by address
        std::unique_ptr<GradientReducer> reducer;
    };
    GradientReducer& reducer_of(std::string_view update) {
        Reduced& reduced = reducers_[std::string(update)];
        std::vector<const void*> trained;
        for (const Update& one : *updates_)
            if (one.name == update)
                for (const at::Tensor& parameter : one.parameters())
                    if (parameter.requires_grad()) trained.push_back(parameter.unsafeGetTensorImpl());
        // Somebody may have frozen or unfrozen some without a word.
        if (!reduced.reducer || reduced.trained != trained) reduced = {std::move(trained), make_reducer(update)};
        return *reduced.reducer;
    }
    /// Of the parameters that are trained now.
    std::unique_ptr<GradientReducer> make_reducer(std::string_view update) const {
        std::vector<at::Tensor> parameters;
        std::vector<std::string> names;
        const auto named = model_->named_parameters();
        for (const Update& one : *updates_) {
            if (one.name != update) continue;
            for (const at::Tensor& parameter : one.parameters()) {
                if (!parameter.requires_grad()) continue;
                const auto found = std::ranges::find_if(named, [&](const auto& entry) { return entry.second.is_same(parameter); });
                names.push_back(found == named.end() ? fmt::format("parameter {} of update '{}'", parameters.size(), update) : found->first);
                parameters.push_back(parameter);
            }
        }
        return std::make_unique<GradientReducer>(options_.world, std::move(parameters), std::move(names), options_.gradients);
    }

    DataParallelOptions options_;
    Model model_;
    std::vector<Update>* updates_ = nullptr;
    std::optional<bool> sums_weights_;  ///< whether loaders do not know what windows weigh over ranks
    bool skips_next_ = false;
    std::optional<BatchRange> skipped_; ///< the window of which one rank's batches are skipped
    std::vector<at::Tensor> buffers_;  ///< of the model, where they are shared
    std::map<std::string, Reduced, std::less<>> reducers_;  ///< by update
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_data_parallel(DataParallelOptions options) {
    const auto require_positive = [](const char* name, double value) {
        if (!(value > 0)) throw ConfigError(fmt::format("data_parallel: {}: {} is no size; give MiB, e.g. 25", name, value));
    };
    require_positive("bucket_mib", options.gradients.bucket_mib);
    require_positive("first_bucket_mib", options.gradients.first_bucket_mib);
    if (!options.world) options.world = World::of_environment(options.waiting);
    return std::make_unique<DataParallel>(std::move(options));
}

std::unique_ptr<Callback> data_parallel_from_json(OptionReader& reader) {
    DataParallelOptions options;
    double join_timeout_s = 300, timeout_s = 600;
    std::string record_folder;
    reader.number("bucket_mib", options.gradients.bucket_mib, "MiB of gradients that travel together", Range::positive())
        .number("first_bucket_mib", options.gradients.first_bucket_mib, "MiB of the bucket that is ready first", Range::positive())
        .boolean("find_unused", options.gradients.find_unused, "whether parameters that a loss does not reach are looked for, every time")
        .boolean("sum_weights", options.sum_weights, "whether the weights of windows are summed before every step, for batches whose weight changes on their way")
        .boolean("share_buffers", options.share_buffers, "whether rank 0's buffers, such as running means, go to all ranks after every window")
        .boolean("bf16", options.gradients.bf16, "whether gradients travel as bfloat16")
        .number("join_timeout", join_timeout_s, "s that the other ranks are waited for at the start", Range::positive())
        .number("timeout", timeout_s, "s within which every exchange must end", Range::positive())
        .text("record_folder", record_folder, "where each rank writes what it did last when it fails, with c10d's flight record; empty: nowhere");
    options.waiting.record_folder = record_folder;
    options.waiting.join_timeout = std::chrono::milliseconds(static_cast<std::int64_t>(join_timeout_s * 1000));
    options.waiting.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(timeout_s * 1000));
    return make_data_parallel(std::move(options));
}

}  // namespace torchbus
