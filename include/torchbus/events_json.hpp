#pragma once
/// The JSON form of the events, found by argument-dependent lookup. Fields that hold tensors are left out,
/// except scalars that lie on the CPU.

#include <nlohmann/json_fwd.hpp>

#include <torchbus/events.hpp>

namespace torchbus {

void to_json(nlohmann::json& out, const Counts& counts);
void to_json(nlohmann::json& out, const Position& position);
void to_json(nlohmann::json& out, const Scope& scope);
void to_json(nlohmann::json& out, const MicroBatch& micro_batch);
void to_json(nlohmann::json& out, const RunPlan& plan);
void to_json(nlohmann::json& out, const RunResult& result);
void to_json(nlohmann::json& out, const LeftOut& left_out);
void to_json(nlohmann::json& out, const RunConfigured& event);
void to_json(nlohmann::json& out, const TrainingRunStart& event);
void to_json(nlohmann::json& out, const TrainEpochStart& event);
void to_json(nlohmann::json& out, const TrainEpochEnd& event);
void to_json(nlohmann::json& out, const TrainingRunEpochEnd& event);
void to_json(nlohmann::json& out, const TrainingRunEnd& event);
void to_json(nlohmann::json& out, const TrainStepStart& event);
void to_json(nlohmann::json& out, const TrainStepEnd& event);
void to_json(nlohmann::json& out, const BatchReady& event);
void to_json(nlohmann::json& out, const ForwardStart& event);
void to_json(nlohmann::json& out, const OutputReady& event);
void to_json(nlohmann::json& out, const ForwardEnd& event);
void to_json(nlohmann::json& out, const BackwardStart& event);
void to_json(nlohmann::json& out, const BackwardEnd& event);
void to_json(nlohmann::json& out, const MicroBatchFailed& event);
void to_json(nlohmann::json& out, const GradientsReady& event);
void to_json(nlohmann::json& out, const OptimizerStepStart& event);
void to_json(nlohmann::json& out, const OptimizerStepEnd& event);
void to_json(nlohmann::json& out, const OptimizerStepSkipped& event);
void to_json(nlohmann::json& out, const StepCheckpoint& event);
void to_json(nlohmann::json& out, const EpochCheckpoint& event);
void to_json(nlohmann::json& out, const CheckpointSaved& event);
void to_json(nlohmann::json& out, const RollingBack& event);
void to_json(nlohmann::json& out, const RolledBack& event);
void to_json(nlohmann::json& out, const WindowLeftOut& event);
void to_json(nlohmann::json& out, const EvalEpochStart& event);
void to_json(nlohmann::json& out, const EvalStepStart& event);
void to_json(nlohmann::json& out, const EvalStepEnd& event);
void to_json(nlohmann::json& out, const EvalEpochEnd& event);
void to_json(nlohmann::json& out, const EvaluationRunStart& event);
void to_json(nlohmann::json& out, const EvaluationRunEnd& event);
void to_json(nlohmann::json& out, const PredictionRunStart& event);
void to_json(nlohmann::json& out, const PredictStepStart& event);
void to_json(nlohmann::json& out, const PredictStepEnd& event);
void to_json(nlohmann::json& out, const PredictionRunEnd& event);
void to_json(nlohmann::json& out, const ParametersChanged& event);
void to_json(nlohmann::json& out, const OptionChanged& event);
void to_json(nlohmann::json& out, const WeightsViewChanged& event);
void to_json(nlohmann::json& out, const DecisionTaken& event);
void to_json(nlohmann::json& out, const SubscriberAttached& event);
void to_json(nlohmann::json& out, const SubscriberDetached& event);
void to_json(nlohmann::json& out, const SubscriberFailed& event);
void to_json(nlohmann::json& out, const RunFailed& event);
void to_json(nlohmann::json& out, const RunClosed& event);

}  // namespace torchbus
