#pragma once
/// The typed events of a run. This page is the map of the house:
///
///     RunConfigured                        the plan may still be changed
///     TrainingRunStart
///     for every epoch:
///         TrainEpochStart
///         for every window of batches:     (one that a roll-back leaves out: WindowLeftOut, and nothing else)
///             for every update (most runs have one):
///                 TrainStepStart           the window is known, nothing has gone forward
///                 for every micro-batch:
///                     BatchReady           the batch may be replaced: device, mixup
///                     ForwardStart         ── wrappers of Forward enter
///                     OutputReady          the output may be changed, a loss supplied
///                     ForwardEnd           ── after the wrappers of Forward have left
///                     BackwardStart        the root of backward may be scaled
///                     BackwardEnd
///                                          (a failure: MicroBatchFailed; answered `again`: the window starts over)
///                 GradientsReady           once, in phases: finalize, inspect, change, decide
///                                          (answered `again`: back to ForwardStart with the next pass)
///                 OptimizerStepStart, OptimizerStepEnd   or   OptimizerStepSkipped
///                 TrainStepEnd             gradients are still there
///             <evaluation>, StepCheckpoint    where decided
///             RollingBack, RolledBack         where decided: the run goes on from a saved state
///         TrainEpochEnd
///         <evaluation>
///         TrainingRunEpochEnd
///         EpochCheckpoint                  always after evaluation
///     TrainingRunEnd
///     RunClosed                            always last, whatever happened
///
///     <evaluation>, for every weights view and evaluation split:
///         EvalEpochStart
///         for every batch: EvalStepStart, BatchReady, ForwardStart, OutputReady, ForwardEnd, EvalStepEnd
///         EvalEpochEnd
///
/// `torchbus events` prints for each: when it fires, how often, on which ranks, what may be changed.
/// In JSON an event is called by its name in snake_case.
/// Every event is emitted on the training thread; its references are good until the emission returns.

#include <tuple>
#include <type_traits>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/batch.hpp>
#include <torchbus/decision.hpp>
#include <torchbus/gradients_view.hpp>
#include <torchbus/host_read.hpp>
#include <torchbus/model.hpp>
#include <torchbus/position.hpp>
#include <torchbus/run_plan.hpp>
#include <torchbus/update.hpp>

namespace torchbus {

/// On what data and with which weights.
struct Scope {
    Mode mode = Mode::Train;
    std::string_view split;  ///< "train", "eval", or the name of an evaluation split
    std::string_view view;   ///< weights view: "training", "ema", …
};

/// Which part of a window.
struct MicroBatch {
    std::int64_t index = 0;
    std::int64_t count = 1;
    int pass = 0;             ///< grows when GradientsReady was answered `again`
    std::string_view update;  ///< name of the update; empty for the unnamed one
    bool repeated = false;    ///< its samples were told in this step before: metrics count them once
    bool is_last() const { return index + 1 == count; }
};

// ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────
struct RunConfigured {
    Position position;
    RunPlan& plan;
    Model& model;                  ///< may be moved to a device, converted or wrapped
    std::vector<Update>& updates;
};
struct TrainingRunStart { Position position; const RunPlan& plan; };
struct TrainEpochStart { Position position; };
struct TrainEpochEnd { Position position; Counts epoch; bool completed; };  ///< completed: no decision cut it short
struct TrainingRunEpochEnd { Position position; };
struct TrainingRunEnd { Position position; const RunResult& result; };

// ── one step: one optimizer update ───────────────────────────────────────────────────────────────────────────────
struct TrainStepStart { Position position; Update& update; Window& window; };
struct TrainStepEnd {
    Position position;
    const Update& update;
    const Window& window;
    const at::Tensor& loss;  ///< mean over the window. Shapes: []
    bool skipped;
};

// ── one micro-batch: training, evaluation and prediction alike ───────────────────────────────────────────────────
struct BatchReady { Position position; Scope scope; MicroBatch micro_batch; Batch& batch; };
struct ForwardStart { Position position; Scope scope; MicroBatch micro_batch; const Batch& batch; };
struct OutputReady {
    Position position;
    Scope scope;
    MicroBatch micro_batch;
    const Batch& batch;
    Output& output;
    at::Tensor& loss;  ///< undefined until someone supplies it; then the loss function is not called
};
struct ForwardEnd {
    Position position;
    Scope scope;
    MicroBatch micro_batch;
    const Batch& batch;
    const Output& output;
    const at::Tensor& loss;  ///< mean over the batch; undefined in prediction. Shapes: []
};
struct BackwardStart {
    Position position;
    MicroBatch micro_batch;
    at::Tensor& root;  ///< what backward starts from: the loss, weighed by its share of the window
};
struct BackwardEnd { Position position; MicroBatch micro_batch; };
/// Forward or backward of a training micro-batch threw, and it was no subscriber that did.
struct MicroBatchFailed {
    Position position;
    MicroBatch micro_batch;
    Window& window;             ///< its batches may be replaced by others of the same samples and total weight
    std::string error;
    bool out_of_memory = false;
    bool repeat = false;        ///< gradients are cleared, and the window starts over; otherwise the run fails

    void again() { repeat = true; }
};

// ── gradients and update ─────────────────────────────────────────────────────────────────────────────────────────
/// The gradient of the whole window. Interceptors run in phases: see Phase in bus.hpp.
struct GradientsReady {
    Position position;
    const Update& update;
    const Window& window;
    const GradientsView& gradients;
    int pass = 0;
    std::string skip_requester = {};  ///< not empty: the update will be skipped
    std::string skip_reason = {};
    bool repeat = false;              ///< the window goes forward and backward again
    HostRead host_read = {};          ///< the numbers that phase decide goes by

    void skip(std::string requester, std::string reason) {
        if (!skip_requester.empty()) return;
        skip_requester = std::move(requester);
        skip_reason = std::move(reason);
    }
    void again() { repeat = true; }
};
struct OptimizerStepStart { Position position; const Update& update; };
struct OptimizerStepEnd { Position position; const Update& update; };
struct OptimizerStepSkipped {
    Position position;
    const Update& update;
    std::string_view requester;
    std::string_view reason;
};

// ── savers ───────────────────────────────────────────────────────────────────────────────────────────────────────
struct StepCheckpoint { Position position; std::string_view requester; std::string_view reason; };
struct EpochCheckpoint { Position position; };
struct CheckpointSaved { Position position; std::string path; };

// ── going back ───────────────────────────────────────────────────────────────────────────────────────────────────
struct RollingBack {
    Position position;                ///< which is given up
    const Request& request;
    std::vector<std::string> states;  ///< folders of training states of this run, newest first: savers add theirs
};
struct RolledBack {
    Position position;  ///< where the run goes on
    Position from;      ///< where it was
    std::string path;   ///< of the state that was put back
    LeftOut left_out;
    std::int64_t count; ///< how often this run was rolled back, this time included
};
/// A window whose batches a roll-back has left out came by: no forward, no update, and it is not in the position.
struct WindowLeftOut { Position position; const Window& window; const LeftOut& left_out; };

// ── evaluation and prediction ────────────────────────────────────────────────────────────────────────────────────
struct EvalEpochStart { Position position; Scope scope; };
struct EvalStepStart { Position position; Scope scope; std::int64_t step; };
struct EvalStepEnd { Position position; Scope scope; std::int64_t step; const at::Tensor& loss; };
struct EvalEpochEnd { Position position; Scope scope; std::int64_t steps; std::int64_t samples; bool completed; };
struct EvaluationRunStart { Position position; const RunPlan& plan; };
struct EvaluationRunEnd { Position position; const RunResult& result; };
struct PredictionRunStart { Position position; const RunPlan& plan; };
struct PredictStepStart { Position position; Scope scope; std::int64_t step; };
struct PredictStepEnd { Position position; Scope scope; std::int64_t step; const Batch& batch; const Output& output; };
struct PredictionRunEnd { Position position; const RunResult& result; };

// ── what happens beside the loop ─────────────────────────────────────────────────────────────────────────────────
/// The set of trainable parameters has changed. Announced by who changed it, before the next forward.
struct ParametersChanged { Position position; std::vector<at::Tensor> added; };
/// A number that steers the run was changed while it ran, e.g. the option max_norm of a callback.
/// Where it was refused `error` says why, and all is as before.
struct OptionChanged { Position position; std::string subscriber; std::string option; std::string from; std::string to; std::string requester; std::string error; };
struct WeightsViewChanged { Position position; std::string_view from; std::string_view to; };
struct DecisionTaken { Position position; Decision decision; Request request; };
struct SubscriberAttached { std::string id; std::string requester; };  ///< requester: who asked for it while a run was under way
struct SubscriberDetached { std::string id; std::string requester; };
struct SubscriberFailed { Position position; std::string id; std::string event; std::string error; bool detached; };
struct RunFailed { Position position; std::string error; std::string subscriber; std::string event; };
struct RunClosed { Position position; const RunResult& result; };

namespace detail {

template <class T, class Tuple>
inline constexpr bool is_one_of = false;
template <class T, class... Ts>
inline constexpr bool is_one_of<T, std::tuple<Ts...>> = (std::is_same_v<T, Ts> || ...);

}  // namespace detail

/// All events of the library, in the order of the map above.
using TrainerEvents = std::tuple<
    RunConfigured, TrainingRunStart, TrainEpochStart, TrainStepStart, BatchReady, ForwardStart, OutputReady,
    ForwardEnd, BackwardStart, BackwardEnd, MicroBatchFailed, GradientsReady, OptimizerStepStart, OptimizerStepEnd,
    OptimizerStepSkipped, TrainStepEnd, StepCheckpoint, RollingBack, RolledBack, WindowLeftOut, TrainEpochEnd, EvalEpochStart, EvalStepStart, EvalStepEnd,
    EvalEpochEnd, TrainingRunEpochEnd, EpochCheckpoint, TrainingRunEnd, EvaluationRunStart, EvaluationRunEnd,
    PredictionRunStart, PredictStepStart, PredictStepEnd, PredictionRunEnd, ParametersChanged, OptionChanged, WeightsViewChanged,
    DecisionTaken, SubscriberAttached, SubscriberDetached, SubscriberFailed, CheckpointSaved, RunFailed, RunClosed>;

/// Those by which subscribers announce what they did; a subscriber may emit them.
using AnnouncedEvents = std::tuple<ParametersChanged, OptionChanged, CheckpointSaved>;

// ── spans: what `around` can wrap. Each lies within one transition, so nothing thread-local leaks to the caller ──
struct Forward { Scope scope; MicroBatch micro_batch; };   ///< model, OutputReady and loss of one batch
struct Backward { MicroBatch micro_batch; };               ///< backward of one batch
struct OptimizerStep { const Update& update; };            ///< the optimizer's step
using TrainerSpans = std::tuple<Forward, Backward, OptimizerStep>;

}  // namespace torchbus

#include <torchbus/events_json.hpp>
