#pragma once
/// The fields that an event has outside of this process, each once: its JSON, the text of that and its schema are made from them.
/// What holds tensors is left out, except scalars that lie on the CPU: nobody waits for a device here.

#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <torchbus/events.hpp>

namespace torchbus {

/// A field of what `get` takes. `about` says what it is and in which unit, where the name does not.
template <class Get>
struct EventField {
    const char* name;
    std::string_view key;  ///< as it stands in an object's text: ,"name":
    Get get;
    const char* about = "";
};
template <class Get>
EventField(const char*, std::string_view, Get) -> EventField<Get>;
template <class Get>
EventField(const char*, std::string_view, Get, const char*) -> EventField<Get>;

/// `kFields`: a tuple of the fields of a T.
template <class T>
struct FieldsOf;

template <class T>
concept HasFields = requires { FieldsOf<std::remove_cvref_t<T>>::kFields; };

/// What a field may be, besides numbers and what has fields itself.
template <class T>
concept IsText = std::convertible_to<const T&, std::string_view>;
template <class T>
concept IsOptional = requires(const T& value) { value.has_value(); *value; };
template <class T>
concept IsList = !IsText<T> && requires(const T& value) { value.begin(); value.end(); };

std::string_view name_of(Mode mode);
/// Nothing where it would have to be waited for.
std::optional<double> readable_scalar(const at::Tensor& value);
/// Indices of a window's samples.
std::vector<std::int64_t> samples_of(const Window& window);

#define TORCHBUS_FIELD(NAME, EXPRESSION, ...) \
    EventField { NAME, ",\"" NAME "\":", [](const Type& it) -> decltype(auto) { return EXPRESSION; } __VA_OPT__(, ) __VA_ARGS__ }
#define TORCHBUS_FIELDS(TYPE, ...) \
    template <>                    \
    struct FieldsOf<TYPE> {        \
        using Type = TYPE;         \
        static constexpr auto kFields = std::make_tuple(__VA_ARGS__); \
    };

// ── parts of events ──────────────────────────────────────────────────────────────────────────────────────────────
TORCHBUS_FIELDS(Counts, TORCHBUS_FIELD("step", (it.step), "updates made"), TORCHBUS_FIELD("attempts", (it.attempts), "updates made or skipped"),
                TORCHBUS_FIELD("micro_batch", (it.micro_batch), "batches that went forward and backward"),
                TORCHBUS_FIELD("samples", (it.samples), "valid samples of those batches, of all ranks"),
                TORCHBUS_FIELD("tokens", (it.tokens), "tokens of those batches, where the data declares them, of all ranks"))
TORCHBUS_FIELDS(Position, TORCHBUS_FIELD("epoch", (it.epoch), "epochs finished"), TORCHBUS_FIELD("step", (it.step), "updates made"),
                TORCHBUS_FIELD("attempts", (it.attempts), "updates made or skipped"), TORCHBUS_FIELD("micro_batch", (it.micro_batch), "batches that went forward and backward"),
                TORCHBUS_FIELD("samples", (it.samples), "valid samples of those batches, of all ranks"),
                TORCHBUS_FIELD("tokens", (it.tokens), "tokens of those batches, where the data declares them, of all ranks"),
                TORCHBUS_FIELD("in_epoch", (it.in_epoch), "the same since the epoch began"))
TORCHBUS_FIELDS(Scope, TORCHBUS_FIELD("mode", name_of(it.mode), "train, eval or predict"), TORCHBUS_FIELD("split", (it.split)),
                TORCHBUS_FIELD("view", (it.view), "weights view: training, ema, …"))
TORCHBUS_FIELDS(MicroBatch, TORCHBUS_FIELD("index", (it.index), "within its window, from 0"), TORCHBUS_FIELD("count", (it.count), "of the window"),
                TORCHBUS_FIELD("pass", (it.pass), "grows where gradients_ready was answered again"), TORCHBUS_FIELD("update", (it.update), "empty for the unnamed one"),
                TORCHBUS_FIELD("is_last", it.is_last()), TORCHBUS_FIELD("repeated", (it.repeated), "its samples were told in this step before"))
TORCHBUS_FIELDS(SplitPlan, TORCHBUS_FIELD("name", (it.name)), TORCHBUS_FIELD("mode", name_of(it.mode), "train, eval or predict"),
                TORCHBUS_FIELD("batches", it.length(), "of a pass; null where the data has no length"))
TORCHBUS_FIELDS(RunPlan, TORCHBUS_FIELD("epochs", (it.epochs)), TORCHBUS_FIELD("max_steps", (it.max_steps), "updates after which the run ends; null: none"),
                TORCHBUS_FIELD("micro_batches_per_step", (it.micro_batches_per_step)), TORCHBUS_FIELD("max_passes", (it.max_passes), "how often a window may be repeated"),
                TORCHBUS_FIELD("splits", (it.splits)), TORCHBUS_FIELD("views", (it.views), "weights views that an evaluation goes through"),
                TORCHBUS_FIELD("device", it.device.str(), "where batches are brought"), TORCHBUS_FIELD("seed", (it.seed), "of the data's order"))
TORCHBUS_FIELDS(RunResult, TORCHBUS_FIELD("outcome", name_of(it.outcome), "finished, stopped, signalled or failed"),
                TORCHBUS_FIELD("requester", (it.requester), "who asked for the end; empty for finished"), TORCHBUS_FIELD("reason", (it.reason)), TORCHBUS_FIELD("exit_code", (it.exit_code)))
TORCHBUS_FIELDS(LeftOut, TORCHBUS_FIELD("epoch", (it.batches.epoch)), TORCHBUS_FIELD("first", (it.batches.first), "batch within the epoch"), TORCHBUS_FIELD("count", (it.batches.count), "batches"),
                TORCHBUS_FIELD("requester", (it.requester)), TORCHBUS_FIELD("reason", (it.reason)))
TORCHBUS_FIELDS(Batch, TORCHBUS_FIELD("samples", (it.samples)), TORCHBUS_FIELD("valid", (it.valid), "samples that count"), TORCHBUS_FIELD("weight", (it.weight), "in the mean of its window"))

// ── events, in the order of events.hpp ───────────────────────────────────────────────────────────────────────────
#define TORCHBUS_POSITION TORCHBUS_FIELD("position", (it.position))
#define TORCHBUS_OF_MICRO_BATCH TORCHBUS_POSITION, TORCHBUS_FIELD("scope", (it.scope)), TORCHBUS_FIELD("micro_batch", (it.micro_batch))
#define TORCHBUS_UPDATE TORCHBUS_FIELD("update", (it.update.name), "empty for the unnamed one")
#define TORCHBUS_REQUESTER TORCHBUS_FIELD("requester", (it.requester)), TORCHBUS_FIELD("reason", (it.reason))

TORCHBUS_FIELDS(RunConfigured, TORCHBUS_POSITION, TORCHBUS_FIELD("plan", (it.plan)))
TORCHBUS_FIELDS(TrainingRunStart, TORCHBUS_POSITION, TORCHBUS_FIELD("plan", (it.plan)))
TORCHBUS_FIELDS(TrainEpochStart, TORCHBUS_POSITION)
TORCHBUS_FIELDS(TrainEpochEnd, TORCHBUS_POSITION, TORCHBUS_FIELD("epoch", (it.epoch), "counts of the epoch"), TORCHBUS_FIELD("completed", (it.completed), "no decision cut it short"))
TORCHBUS_FIELDS(TrainingRunEpochEnd, TORCHBUS_POSITION)
TORCHBUS_FIELDS(TrainingRunEnd, TORCHBUS_POSITION, TORCHBUS_FIELD("result", (it.result)))
TORCHBUS_FIELDS(TrainStepStart, TORCHBUS_POSITION, TORCHBUS_UPDATE, TORCHBUS_FIELD("micro_batches", it.window.count()),
                TORCHBUS_FIELD("total_weight", (it.window.total_weight), "samples or tokens of the window, of all ranks"))
TORCHBUS_FIELDS(TrainStepEnd, TORCHBUS_POSITION, TORCHBUS_UPDATE, TORCHBUS_FIELD("micro_batches", it.window.count()),
                TORCHBUS_FIELD("loss", readable_scalar(it.loss), "this rank's part of the mean over the window; null where it lies on a device"), TORCHBUS_FIELD("skipped", (it.skipped)))
TORCHBUS_FIELDS(BatchReady, TORCHBUS_OF_MICRO_BATCH, TORCHBUS_FIELD("batch", std::as_const(it.batch)))
TORCHBUS_FIELDS(ForwardStart, TORCHBUS_OF_MICRO_BATCH)
TORCHBUS_FIELDS(OutputReady, TORCHBUS_OF_MICRO_BATCH)
TORCHBUS_FIELDS(ForwardEnd, TORCHBUS_OF_MICRO_BATCH, TORCHBUS_FIELD("loss", readable_scalar(it.loss), "mean over the batch; null in prediction, and where it lies on a device"))
TORCHBUS_FIELDS(BackwardStart, TORCHBUS_POSITION, TORCHBUS_FIELD("micro_batch", (it.micro_batch)))
TORCHBUS_FIELDS(BackwardEnd, TORCHBUS_POSITION, TORCHBUS_FIELD("micro_batch", (it.micro_batch)))
TORCHBUS_FIELDS(MicroBatchFailed, TORCHBUS_POSITION, TORCHBUS_FIELD("micro_batch", (it.micro_batch)), TORCHBUS_FIELD("error", (it.error)), TORCHBUS_FIELD("out_of_memory", (it.out_of_memory)),
                TORCHBUS_FIELD("repeat", (it.repeat), "the window starts over"))
TORCHBUS_FIELDS(GradientsReady, TORCHBUS_POSITION, TORCHBUS_UPDATE, TORCHBUS_FIELD("pass", (it.pass)), TORCHBUS_FIELD("again", (it.repeat), "the window goes forward and backward again"),
                TORCHBUS_FIELD("skip_requester", (it.skip_requester), "not empty: the update will be skipped"), TORCHBUS_FIELD("skip_reason", (it.skip_reason)))
TORCHBUS_FIELDS(OptimizerStepStart, TORCHBUS_POSITION, TORCHBUS_UPDATE)
TORCHBUS_FIELDS(OptimizerStepEnd, TORCHBUS_POSITION, TORCHBUS_UPDATE)
TORCHBUS_FIELDS(OptimizerStepSkipped, TORCHBUS_POSITION, TORCHBUS_UPDATE, TORCHBUS_REQUESTER)
TORCHBUS_FIELDS(StepCheckpoint, TORCHBUS_POSITION, TORCHBUS_REQUESTER)
TORCHBUS_FIELDS(EpochCheckpoint, TORCHBUS_POSITION)
TORCHBUS_FIELDS(CheckpointSaved, TORCHBUS_POSITION, TORCHBUS_FIELD("path", (it.path)))
TORCHBUS_FIELDS(RollingBack, TORCHBUS_POSITION, TORCHBUS_FIELD("requester", (it.request.requester)), TORCHBUS_FIELD("reason", (it.request.reason)),
                TORCHBUS_FIELD("states", (it.states), "folders of training states, newest first"))
TORCHBUS_FIELDS(RolledBack, TORCHBUS_POSITION, TORCHBUS_FIELD("from", (it.from), "where the run was"), TORCHBUS_FIELD("path", (it.path), "of the state that was put back"), TORCHBUS_FIELD("left_out", (it.left_out)),
                TORCHBUS_FIELD("count", (it.count), "how often this run was rolled back"))
TORCHBUS_FIELDS(WindowLeftOut, TORCHBUS_POSITION, TORCHBUS_FIELD("left_out", (it.left_out)), TORCHBUS_FIELD("samples", samples_of(it.window), "indices in the data set"))
TORCHBUS_FIELDS(EvalEpochStart, TORCHBUS_POSITION, TORCHBUS_FIELD("scope", (it.scope)))
TORCHBUS_FIELDS(EvalStepStart, TORCHBUS_POSITION, TORCHBUS_FIELD("scope", (it.scope)), TORCHBUS_FIELD("step", (it.step), "batch of this evaluation"))
TORCHBUS_FIELDS(EvalStepEnd, TORCHBUS_POSITION, TORCHBUS_FIELD("scope", (it.scope)), TORCHBUS_FIELD("step", (it.step), "batch of this evaluation"),
                TORCHBUS_FIELD("loss", readable_scalar(it.loss), "mean over the batch; null where it lies on a device"))
TORCHBUS_FIELDS(EvalEpochEnd, TORCHBUS_POSITION, TORCHBUS_FIELD("scope", (it.scope)), TORCHBUS_FIELD("steps", (it.steps), "batches"), TORCHBUS_FIELD("samples", (it.samples), "of all ranks"),
                TORCHBUS_FIELD("completed", (it.completed), "no decision cut it short"))
TORCHBUS_FIELDS(EvaluationRunStart, TORCHBUS_POSITION, TORCHBUS_FIELD("plan", (it.plan)))
TORCHBUS_FIELDS(EvaluationRunEnd, TORCHBUS_POSITION, TORCHBUS_FIELD("result", (it.result)))
TORCHBUS_FIELDS(PredictionRunStart, TORCHBUS_POSITION, TORCHBUS_FIELD("plan", (it.plan)))
TORCHBUS_FIELDS(PredictStepStart, TORCHBUS_POSITION, TORCHBUS_FIELD("scope", (it.scope)), TORCHBUS_FIELD("step", (it.step), "batch of this prediction"))
TORCHBUS_FIELDS(PredictStepEnd, TORCHBUS_POSITION, TORCHBUS_FIELD("scope", (it.scope)), TORCHBUS_FIELD("step", (it.step), "batch of this prediction"), TORCHBUS_FIELD("batch", (it.batch)))
TORCHBUS_FIELDS(PredictionRunEnd, TORCHBUS_POSITION, TORCHBUS_FIELD("result", (it.result)))
TORCHBUS_FIELDS(ParametersChanged, TORCHBUS_POSITION, TORCHBUS_FIELD("added", static_cast<std::int64_t>(it.added.size()), "parameters"))
TORCHBUS_FIELDS(OptionChanged, TORCHBUS_POSITION, TORCHBUS_FIELD("subscriber", (it.subscriber)), TORCHBUS_FIELD("option", (it.option)), TORCHBUS_FIELD("from", (it.from), "as in a run file"),
                TORCHBUS_FIELD("to", (it.to), "as in a run file"), TORCHBUS_FIELD("requester", (it.requester)), TORCHBUS_FIELD("error", (it.error), "why it was refused; empty: it was changed"))
TORCHBUS_FIELDS(WeightsViewChanged, TORCHBUS_POSITION, TORCHBUS_FIELD("from", (it.from)), TORCHBUS_FIELD("to", (it.to)))
TORCHBUS_FIELDS(DecisionTaken, TORCHBUS_POSITION, TORCHBUS_FIELD("decision", name_of(it.decision)), TORCHBUS_FIELD("requester", (it.request.requester)),
                TORCHBUS_FIELD("reason", (it.request.reason)), TORCHBUS_FIELD("rank", (it.request.rank), "whose request it was"))
TORCHBUS_FIELDS(SubscriberAttached, TORCHBUS_FIELD("id", (it.id)), TORCHBUS_FIELD("requester", (it.requester), "who asked for it while a run was under way"))
TORCHBUS_FIELDS(SubscriberDetached, TORCHBUS_FIELD("id", (it.id)), TORCHBUS_FIELD("requester", (it.requester), "who asked for it while a run was under way"))
TORCHBUS_FIELDS(SubscriberFailed, TORCHBUS_POSITION, TORCHBUS_FIELD("id", (it.id)), TORCHBUS_FIELD("event", (it.event)), TORCHBUS_FIELD("error", (it.error)), TORCHBUS_FIELD("detached", (it.detached)))
TORCHBUS_FIELDS(RunFailed, TORCHBUS_POSITION, TORCHBUS_FIELD("error", (it.error)), TORCHBUS_FIELD("subscriber", (it.subscriber), "who failed, where it was one"),
                TORCHBUS_FIELD("event", (it.event), "at which it failed"))
TORCHBUS_FIELDS(RunClosed, TORCHBUS_POSITION, TORCHBUS_FIELD("result", (it.result)))

#undef TORCHBUS_POSITION
#undef TORCHBUS_OF_MICRO_BATCH
#undef TORCHBUS_UPDATE
#undef TORCHBUS_REQUESTER
#undef TORCHBUS_FIELD
#undef TORCHBUS_FIELDS

}  // namespace torchbus
