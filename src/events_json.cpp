#include <torchbus/events_json.hpp>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

namespace torchbus {
namespace {

using nlohmann::json;

std::string_view name_of(Mode mode) {
    switch (mode) {
        case Mode::Train: return "train";
        case Mode::Eval: return "eval";
        case Mode::Predict: return "predict";
    }
    return "";
}

template <class T>
json optional_of(const std::optional<T>& value) {
    return value ? json(*value) : json(nullptr);
}

/// A scalar that can be read without waiting for a device.
json scalar(const at::Tensor& value) {
    const bool readable = value.defined() && value.device().is_cpu() && value.numel() == 1;
    return readable ? json(value.item<double>()) : json(nullptr);
}

/// What every event of one micro-batch carries.
template <class Event>
json micro_batch_event(const Event& event) {
    return {{"position", event.position}, {"scope", event.scope}, {"micro_batch", event.micro_batch}};
}

json about(const Batch& batch) {
    return {{"samples", batch.samples}, {"valid", batch.valid}, {"weight", batch.weight}};
}

}  // namespace

void to_json(json& out, const Counts& counts) {
    out = {{"step", counts.step}, {"attempts", counts.attempts}, {"micro_batch", counts.micro_batch},
           {"samples", counts.samples}, {"tokens", counts.tokens}};
}

void to_json(json& out, const Position& position) {
    to_json(out, static_cast<const Counts&>(position));
    out["epoch"] = position.epoch;
    out["in_epoch"] = position.in_epoch;
}

void to_json(json& out, const Scope& scope) {
    out = {{"mode", name_of(scope.mode)}, {"split", scope.split}, {"view", scope.view}};
}

void to_json(json& out, const MicroBatch& micro_batch) {
    out = {{"index", micro_batch.index}, {"count", micro_batch.count}, {"pass", micro_batch.pass},
           {"update", micro_batch.update}, {"is_last", micro_batch.is_last()}};
    if (micro_batch.repeated) out["repeated"] = true;
}

void to_json(json& out, const RunPlan& plan) {
    json splits = json::array();
    for (const SplitPlan& split : plan.splits)
        splits.push_back({{"name", split.name}, {"mode", name_of(split.mode)}, {"batches", optional_of(split.length())}});
    out = {{"epochs", optional_of(plan.epochs)}, {"max_steps", optional_of(plan.max_steps)},
           {"micro_batches_per_step", plan.micro_batches_per_step}, {"max_passes", plan.max_passes},
           {"splits", std::move(splits)}, {"views", plan.views}, {"seed", plan.seed}};
}

void to_json(json& out, const RunResult& result) {
    out = {{"outcome", name_of(result.outcome)}, {"requester", result.requester}, {"reason", result.reason},
           {"exit_code", result.exit_code}};
}

void to_json(json& out, const LeftOut& left_out) {
    const BatchRange& batches = left_out.batches;
    out = {{"epoch", batches.epoch}, {"first", batches.first}, {"count", batches.count}, {"requester", left_out.requester}, {"reason", left_out.reason}};
}

void to_json(json& out, const RunConfigured& event) { out = {{"position", event.position}, {"plan", event.plan}}; }
void to_json(json& out, const TrainingRunStart& event) { out = {{"position", event.position}, {"plan", event.plan}}; }
void to_json(json& out, const TrainEpochStart& event) { out = {{"position", event.position}}; }
void to_json(json& out, const TrainEpochEnd& event) {
    out = {{"position", event.position}, {"epoch", event.epoch}, {"completed", event.completed}};
}
void to_json(json& out, const TrainingRunEpochEnd& event) { out = {{"position", event.position}}; }
void to_json(json& out, const TrainingRunEnd& event) { out = {{"position", event.position}, {"result", event.result}}; }

void to_json(json& out, const TrainStepStart& event) {
    out = {{"position", event.position}, {"update", event.update.name}, {"micro_batches", event.window.count()},
           {"total_weight", event.window.total_weight}};
}
void to_json(json& out, const TrainStepEnd& event) {
    out = {{"position", event.position}, {"update", event.update.name}, {"micro_batches", event.window.count()},
           {"loss", scalar(event.loss)}, {"skipped", event.skipped}};
}

void to_json(json& out, const BatchReady& event) {
    out = micro_batch_event(event);
    out["batch"] = about(event.batch);
}
void to_json(json& out, const ForwardStart& event) { out = micro_batch_event(event); }
void to_json(json& out, const OutputReady& event) { out = micro_batch_event(event); }
void to_json(json& out, const ForwardEnd& event) {
    out = micro_batch_event(event);
    out["loss"] = scalar(event.loss);
}
void to_json(json& out, const BackwardStart& event) {
    out = {{"position", event.position}, {"micro_batch", event.micro_batch}};
}
void to_json(json& out, const BackwardEnd& event) {
    out = {{"position", event.position}, {"micro_batch", event.micro_batch}};
}

void to_json(json& out, const MicroBatchFailed& event) {
    out = {{"position", event.position}, {"micro_batch", event.micro_batch}, {"error", event.error},
           {"out_of_memory", event.out_of_memory}, {"repeat", event.repeat}};
}
void to_json(json& out, const GradientsReady& event) {
    out = {{"position", event.position}, {"update", event.update.name}, {"pass", event.pass},
           {"again", event.repeat}, {"skip_requester", event.skip_requester}, {"skip_reason", event.skip_reason}};
}
void to_json(json& out, const OptimizerStepStart& event) {
    out = {{"position", event.position}, {"update", event.update.name}};
}
void to_json(json& out, const OptimizerStepEnd& event) {
    out = {{"position", event.position}, {"update", event.update.name}};
}
void to_json(json& out, const OptimizerStepSkipped& event) {
    out = {{"position", event.position}, {"update", event.update.name}, {"requester", event.requester},
           {"reason", event.reason}};
}

void to_json(json& out, const StepCheckpoint& event) { out = {{"position", event.position}, {"requester", event.requester}, {"reason", event.reason}}; }
void to_json(json& out, const EpochCheckpoint& event) { out = {{"position", event.position}}; }
void to_json(json& out, const CheckpointSaved& event) { out = {{"position", event.position}, {"path", event.path}}; }

void to_json(json& out, const RollingBack& event) {
    out = {{"position", event.position}, {"requester", event.request.requester}, {"reason", event.request.reason}, {"states", event.states}};
}
void to_json(json& out, const RolledBack& event) {
    out = {{"position", event.position}, {"from", event.from}, {"path", event.path}, {"left_out", event.left_out}, {"count", event.count}};
}
void to_json(json& out, const WindowLeftOut& event) {
    json samples = json::array();
    for (const Batch& batch : event.window.batches)
        for (const std::int64_t index : batch.indices) samples.push_back(index);
    out = {{"position", event.position}, {"left_out", event.left_out}, {"samples", std::move(samples)}};
}

void to_json(json& out, const EvalEpochStart& event) { out = {{"position", event.position}, {"scope", event.scope}}; }
void to_json(json& out, const EvalStepStart& event) {
    out = {{"position", event.position}, {"scope", event.scope}, {"step", event.step}};
}
void to_json(json& out, const EvalStepEnd& event) {
    out = {{"position", event.position}, {"scope", event.scope}, {"step", event.step}, {"loss", scalar(event.loss)}};
}
void to_json(json& out, const EvalEpochEnd& event) {
    out = {{"position", event.position}, {"scope", event.scope}, {"steps", event.steps},
           {"samples", event.samples}, {"completed", event.completed}};
}
void to_json(json& out, const EvaluationRunStart& event) { out = {{"position", event.position}, {"plan", event.plan}}; }
void to_json(json& out, const EvaluationRunEnd& event) { out = {{"position", event.position}, {"result", event.result}}; }
void to_json(json& out, const PredictionRunStart& event) { out = {{"position", event.position}, {"plan", event.plan}}; }
void to_json(json& out, const PredictStepStart& event) {
    out = {{"position", event.position}, {"scope", event.scope}, {"step", event.step}};
}
void to_json(json& out, const PredictStepEnd& event) {
    out = {{"position", event.position}, {"scope", event.scope}, {"step", event.step}, {"batch", about(event.batch)}};
}
void to_json(json& out, const PredictionRunEnd& event) { out = {{"position", event.position}, {"result", event.result}}; }

void to_json(json& out, const ParametersChanged& event) {
    out = {{"position", event.position}, {"added", event.added.size()}};
}
void to_json(json& out, const WeightsViewChanged& event) {
    out = {{"position", event.position}, {"from", event.from}, {"to", event.to}};
}
void to_json(json& out, const DecisionTaken& event) {
    out = {{"position", event.position}, {"decision", name_of(event.decision)}, {"requester", event.request.requester},
           {"reason", event.request.reason}, {"rank", event.request.rank}};
}
void to_json(json& out, const OptionChanged& event) {
    out = {{"position", event.position}, {"subscriber", event.subscriber}, {"option", event.option}, {"from", event.from}, {"to", event.to}, {"requester", event.requester}};
}
void to_json(json& out, const SubscriberAttached& event) { out = {{"id", event.id}, {"requester", event.requester}}; }
void to_json(json& out, const SubscriberDetached& event) { out = {{"id", event.id}, {"requester", event.requester}}; }
void to_json(json& out, const SubscriberFailed& event) {
    out = {{"position", event.position}, {"id", event.id}, {"event", event.event}, {"error", event.error},
           {"detached", event.detached}};
}
void to_json(json& out, const RunFailed& event) {
    out = {{"position", event.position}, {"error", event.error}, {"subscriber", event.subscriber},
           {"event", event.event}};
}
void to_json(json& out, const RunClosed& event) { out = {{"position", event.position}, {"result", event.result}}; }

}  // namespace torchbus
