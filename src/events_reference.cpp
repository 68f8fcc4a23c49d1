#include <torchbus/events_reference.hpp>

#include <array>

namespace torchbus {
namespace {

constexpr std::string_view kAll = "all ranks, at the same step";
constexpr std::string_view kLocal = "the rank it concerns";

constexpr auto kEvents = std::to_array<EventReference>({
    {"run_configured", "once a run, before anything else happens", kAll, "the plan, the model (moved, converted, wrapped), the updates"},
    {"training_run_start", "once a training run", kAll, ""},
    {"train_epoch_start", "once an epoch", kAll, ""},
    {"train_step_start", "once an update, when its window of batches is known and nothing has gone forward", kAll, "the window's total weight; learning rates"},
    {"batch_ready", "once a micro-batch; not again when GradientsReady was answered `again`, nor for a second update on the same window", kAll, "the batch"},
    {"forward_start", "once a micro-batch and pass", kAll, ""},
    {"output_ready", "once a micro-batch and pass, between model and loss, within the wrappers of Forward", kAll, "the output; a loss may be supplied"},
    {"forward_end", "once a micro-batch and pass, after the wrappers of Forward have left", kAll, ""},
    {"backward_start", "once a micro-batch and pass, in training", kAll, "the root that backward starts from"},
    {"backward_end", "once a micro-batch and pass, in training", kAll, ""},
    {"micro_batch_failed", "when forward or backward of a training micro-batch threw, and it was no subscriber that did", kLocal, "the window's batches; again"},
    {"gradients_ready", "once an update and pass, however many micro-batches; interceptors run in phases finalize, inspect, change, decide", kAll, "the gradients; skip; again"},
    {"optimizer_step_start", "once an update that is made", kAll, ""},
    {"optimizer_step_end", "once an update that was made", kAll, ""},
    {"optimizer_step_skipped", "once an update that was skipped", kAll, ""},
    {"train_step_end", "once an update, made or skipped; its gradients are still there", kAll, ""},
    {"step_checkpoint", "where a save was decided, between two updates or within an evaluation", kAll, ""},
    {"rolling_back", "where a roll-back was decided, before a state is read", kAll, "the states that may be put back"},
    {"rolled_back", "after a state was put back; the run goes on from there", kAll, ""},
    {"window_left_out", "once a window whose batches a roll-back has left out, in place of its events", kAll, ""},
    {"train_epoch_end", "once an epoch, also one that a decision ended", kAll, ""},
    {"eval_epoch_start", "once a weights view and evaluation split", kAll, ""},
    {"eval_step_start", "once a batch of an evaluation", kAll, ""},
    {"eval_step_end", "once a batch of an evaluation", kAll, ""},
    {"eval_epoch_end", "once a weights view and evaluation split", kAll, ""},
    {"training_run_epoch_end", "once a completed epoch, after its evaluation", kAll, ""},
    {"epoch_checkpoint", "once a completed epoch, after training_run_epoch_end", kAll, ""},
    {"training_run_end", "once a training run that did not fail", kAll, ""},
    {"evaluation_run_start", "once an evaluation run", kAll, ""},
    {"evaluation_run_end", "once an evaluation run that did not fail", kAll, ""},
    {"prediction_run_start", "once a prediction run", kAll, ""},
    {"predict_step_start", "once a batch of a prediction", kAll, ""},
    {"predict_step_end", "once a batch of a prediction", kAll, ""},
    {"prediction_run_end", "once a prediction run that did not fail", kAll, ""},
    {"parameters_changed", "when a subscriber changed the set of trainable parameters", kAll, ""},
    {"option_changed", "when a number that steers the run was changed while it ran, at a decision point", kAll, ""},
    {"weights_view_changed", "before and after an evaluation of other weights than those in training", kAll, "the parameters, by whoever owns the view"},
    {"decision_taken", "at a decision point, once for each request that took effect", kAll, ""},
    {"subscriber_attached", "at the poll point after a subscriber was attached", kLocal, ""},
    {"subscriber_detached", "at the poll point after a subscriber was detached", kLocal, ""},
    {"subscriber_failed", "when an optional observer threw", kLocal, ""},
    {"checkpoint_saved", "when a saver has made a checkpoint durable", kLocal, ""},
    {"run_failed", "once a run that failed", kLocal, ""},
    {"run_closed", "once a run, always last, whatever happened", kAll, ""},
});

}  // namespace

std::span<const EventReference> event_reference() { return kEvents; }

}  // namespace torchbus
