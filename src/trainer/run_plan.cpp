// What a run is to do: the plan, who may change it, and how long the run will be.
#include <algorithm>

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <nlohmann/json.hpp>
#include <torch/version.h>

#include <torchbus/error.hpp>
#include <torchbus/version.hpp>

#include "run.hpp"

namespace torchbus {

/// What RunConfigured's interceptors must leave as it is.
void Run::check_plan() const {
    const RunPlan& plan = parts_.plan;
    const auto refuse = [](const char* what) { throw ConfigError(std::string("the plan, after RunConfigured: ") + what); };
    if (plan.micro_batches_per_step < 1) refuse("micro_batches_per_step must be at least 1");
    if (plan.max_passes < 1) refuse("max_passes must be at least 1");
    if (plan.max_steps && *plan.max_steps < 1) refuse("max_steps must be at least 1; leave it out to train all epochs");
    if (plan.views.empty()) refuse("an evaluation needs at least one weights view");
    if (plan.splits.size() != parts_.loaders.size()) refuse("splits may be limited, but neither added nor removed");
    if (!is_training_run()) return;
    if (parts_.updates.empty() || std::ranges::none_of(parts_.updates, [](const Update& update) { return update.every == 1; }))
        refuse("one update must be due on every window");
}

const RunPlan& Run::prepare() {
    RunPlan& plan = parts_.plan;
    if (std::exchange(prepared_, true)) return plan;
    for (std::size_t i = 0; i < plan.splits.size(); ++i) plan.splits[i].batches = parts_.loaders[i]->batches();
    learn_lengths();
    if (is_training_run()) parts_.model->set_training(true);  // before who sets single layers apart
    parts_.bus.emit(RunConfigured{position(), plan, parts_.model, parts_.updates});
    check_plan();
    learn_lengths();
    for (const auto& loader : parts_.loaders) loader->deliver_to(plan.device);
    return plan;
}

void Run::emit_start(const std::optional<std::string>& only) {
    const auto emit = [&](auto event) { only ? parts_.bus.emit_to(*only, event) : parts_.bus.emit(event); };
    switch (kind_) {
        case Trigger::StartTraining: return emit(TrainingRunStart{position(), parts_.plan});
        case Trigger::StartEvaluation: return emit(EvaluationRunStart{position(), parts_.plan});
        default: return emit(PredictionRunStart{position(), parts_.plan});
    }
}

void Run::introduce(const std::string& subscriber, const std::function<void(const RunPlan&)>& check) {
    if (state_ == State::Ready) return;  // it will hear what all hear
    const RunPlan before = parts_.plan;
    try {
        parts_.bus.emit_to(subscriber, RunConfigured{position(), parts_.plan, parts_.model, parts_.updates});
        check_plan();
        learn_lengths();
        if (is_training_run()) check(parts_.plan);
        emit_start(subscriber);
    } catch (...) {
        parts_.plan = before;
        learn_lengths();
        throw;
    }
}

void Run::forget_views(const std::vector<std::string>& views) {
    std::erase_if(parts_.plan.views, [&](const std::string& view) { return std::ranges::count(views, view) > 0; });
    if (parts_.plan.views.empty()) parts_.plan.views = {"training"};
}

/// What intervals in epochs or in shares of the run go by.
void Run::learn_lengths() {
    if (!is_training_run()) return;
    const RunPlan& plan = parts_.plan;
    RunLength& length = moment_.length;
    length = {plan.epochs, plan.splits.front().length(), plan.max_steps};
    if (!length.batches_per_epoch || !plan.epochs) return;
    const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
    const std::int64_t windows = ceil_div(*length.batches_per_epoch, plan.micro_batches_per_step) * *plan.epochs;
    std::int64_t steps = 0;
    for (const Update& update : parts_.updates) steps += ceil_div(windows, std::max<std::int64_t>(update.every, 1));
    length.steps = std::min(plan.max_steps.value_or(steps), steps);
}

nlohmann::json Run::configuration() const {
    nlohmann::json updates = nlohmann::json::array();
    for (const Update& update : parts_.updates) updates.push_back({{"name", update.name}, {"every", update.every}});
    const auto max_steps = parts_.plan.max_steps;
    return {{"max_steps", max_steps ? nlohmann::json(*max_steps) : nlohmann::json()}, {"micro_batches_per_step", parts_.plan.micro_batches_per_step}, {"updates", std::move(updates)},
            {"environment", {{"torchbus", kVersion}, {"libtorch", TORCH_VERSION}, {"threads", at::get_num_threads()}, {"cpu_capability", at::get_cpu_capability()}}}};
}

}  // namespace torchbus
