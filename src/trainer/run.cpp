// The run as a whole: poll and decision points, epochs, saves and the ways to end. A step is in run_step.cpp,
// an evaluation or prediction in run_evaluation.cpp.
#include "run.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <torch/torch.h>

#include <torchbus/error.hpp>

namespace torchbus {

Run::Run(RunParts parts, Trigger kind) : parts_(std::move(parts)), kind_(kind), moment_(parts_.bus.moment()) {
    if (is_training_run()) moment_ = Moment{};  // an evaluation of what was trained is told with the position it was trained to
    moment_.mode = kind == Trigger::StartTraining ? Mode::Train : kind == Trigger::StartEvaluation ? Mode::Eval : Mode::Predict;
    default_step_ = [this](const Batch& batch) { return StepOutput{parts_.model->forward(batch), {}}; };
    if (parts_.handle_signals) signals_.emplace();
}

bool Run::advance() {
    if (std::this_thread::get_id() != thread_)
        throw StateError("advance() was called from another thread than the one that started the run; "
                         "call it from that one, and ask() for decisions from any");
    if (state_ == State::Closed) return false;
    Trigger trigger = Trigger::Failed;
    try {
        poll();
        trigger = act();
    } catch (const std::exception& error) {
        failure_ = std::current_exception();
        result_ = {Outcome::Failed, {}, error.what(), 1};
        if (const auto* by_subscriber = dynamic_cast<const SubscriberError*>(&error)) {
            failed_subscriber_ = by_subscriber->subscriber;
            failed_event_ = by_subscriber->event;
            result_.requester = by_subscriber->subscriber;
        }
    } catch (...) {
        failure_ = std::current_exception();
        result_ = {Outcome::Failed, {}, "an exception that is no std::exception", 1};
    }
    const auto [next, valid] = next_state(state_, trigger);
    if (!valid)
        throw StateError(fmt::format("the state machine has no row for {} in {}", name_of(trigger), name_of(state_)));
    state_ = next;
    return state_ != State::Closed;
}

Trigger Run::act() {
    switch (state_) {
        case State::Ready: return configure();
        case State::StartingEpoch: return start_epoch();
        case State::Deciding: return decide_before_step();
        case State::FetchingWindow: return fetch_window();
        case State::RunningWindow: return run_micro_batch();
        case State::Updating: return update();
        case State::EvaluatingInEpoch: return evaluate();
        case State::SavingStep: return save_step();
        case State::EndingEpoch: return end_epoch();
        case State::Evaluating: return evaluate();
        case State::SavingEpoch: return save_epoch();
        case State::Predicting: return predict();
        case State::SavingLast: return save_last();
        case State::Ending: return end();
        case State::Failing: return fail();
        case State::Closing: return close();
        case State::Closed: break;
    }
    return Trigger::RunClosed;
}

/// Local: records what has arrived, takes nothing.
void Run::poll() {
    moment_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
    if (signals_) signals_->poll(parts_.requests);
    parts_.bus.flush();
}

void Run::decide() {
    const RequestSet agreed = parts_.consensus.exchange(parts_.requests.take());
    for (std::size_t kind = 0; kind < kDecisionCount; ++kind) {
        if (!agreed[kind]) continue;
        const Request& request = *agreed[kind];
        const auto decision = static_cast<Decision>(kind);
        parts_.bus.emit([&] { return DecisionTaken{position(), decision, request}; });
        switch (decision) {
            case Decision::FailRun: throw Error(fmt::format("{}: {}", request.requester, request.reason));
            case Decision::StopRun:
                result_ = {request.by_signal ? Outcome::Signalled : Outcome::Stopped, request.requester, request.reason, request.exit_code};
                break;
            case Decision::StopEpoch: stop_epoch_ = true; break;
            case Decision::SkipBatch: skip_batch_ = true; break;
            case Decision::SkipUpdate: skip_update_ = request; break;
            case Decision::EvaluateNow: evaluation_due_ = has_evaluation(request); break;
            case Decision::SaveNow: save_reason_ = fmt::format("{}: {}", request.requester, request.reason); break;
        }
    }
}

bool Run::has_evaluation(const Request& request) const {
    const bool any = std::ranges::any_of(parts_.plan.splits, [](const SplitPlan& split) { return split.mode == Mode::Eval; });
    if (!any) warn(fmt::format("{} asked for an evaluation, but the run has no evaluation data; give train() some", request.requester));
    return any;
}

Trigger Run::configure() {
    Bus& bus = parts_.bus;
    RunPlan& plan = parts_.plan;
    for (std::size_t i = 0; i < plan.splits.size(); ++i) plan.splits[i].batches = parts_.loaders[i]->batches();
    learn_lengths();
    bus.emit(RunConfigured{position(), plan, parts_.model, parts_.updates});
    learn_lengths();
    bus.rebase_filters();
    for (const Update& update : parts_.updates)
        gradients_.push_back(std::make_unique<GradientsView>(update.parameters()));
    switch (kind_) {
        case Trigger::StartTraining: bus.emit([&] { return TrainingRunStart{position(), plan}; }); break;
        case Trigger::StartEvaluation: bus.emit([&] { return EvaluationRunStart{position(), plan}; }); break;
        default: bus.emit([&] { return PredictionRunStart{position(), plan}; }); break;
    }
    return kind_;
}

/// What intervals in epochs or in shares of the run go by.
void Run::learn_lengths() {
    if (!is_training_run()) return;
    const RunPlan& plan = parts_.plan;
    RunLength& length = moment_.length;
    length = {plan.epochs, {}, plan.max_steps};
    const auto batches = plan.splits.front().length();
    if (!batches) return;
    std::int64_t steps = 0;
    const std::int64_t windows = (*batches + plan.micro_batches_per_step - 1) / plan.micro_batches_per_step;
    for (const Update& update : parts_.updates) steps += (windows + update.every - 1) / update.every;
    length.steps_per_epoch = steps;
    if (plan.epochs) length.steps = std::min(plan.max_steps.value_or(steps * *plan.epochs), steps * *plan.epochs);
}

Trigger Run::start_epoch() {
    const RunPlan& plan = parts_.plan;
    const bool epochs_done = plan.epochs && position().epoch >= *plan.epochs;
    const bool steps_done = plan.max_steps && position().step >= *plan.max_steps;
    if (epochs_done || steps_done) return Trigger::RunDone;
    stop_epoch_ = false;
    parts_.model->set_training(true);
    parts_.loaders.front()->begin({position().epoch, 0});
    parts_.bus.emit([&] { return TrainEpochStart{position()}; });
    return Trigger::EpochStarted;
}

Trigger Run::decide_before_step() {
    decide();
    if (stopping()) return Trigger::RunStopped;
    if (std::exchange(evaluation_due_, false)) return Trigger::EvaluationDue;
    if (save_reason_) return Trigger::SaveDue;
    const RunPlan& plan = parts_.plan;
    const auto limit = plan.splits.front().max_batches;
    const bool batches_done = limit && parts_.loaders.front()->position().batches >= *limit;
    const bool steps_done = plan.max_steps && position().step >= *plan.max_steps;
    if (stop_epoch_ || batches_done || steps_done) return Trigger::EpochStopped;
    return Trigger::Decided;
}

Trigger Run::save_step() {
    const std::string reason = *std::exchange(save_reason_, std::nullopt);
    if (position().attempts == 0) {
        warn(fmt::format("{}; no step has been made yet, so there is nothing to save", reason));
        return Trigger::SaveDone;
    }
    parts_.bus.emit([&] { return StepCheckpoint{position(), reason}; });
    return Trigger::SaveDone;
}

Trigger Run::end_epoch() {
    const bool stopped = stopping();
    const Counts epoch = position().in_epoch;
    if (!stopped) {
        ++position().epoch;
        position().in_epoch = {};
    }
    parts_.bus.emit([&] { return TrainEpochEnd{position(), epoch, !stopped}; });
    if (stopped) return Trigger::RunStopped;
    decide();
    return stopping() ? Trigger::RunStopped : Trigger::EpochEnded;
}

Trigger Run::save_epoch() {
    parts_.bus.emit([&] { return TrainingRunEpochEnd{position()}; });
    decide();
    parts_.bus.emit([&] { return EpochCheckpoint{position()}; });
    save_reason_.reset();  // whatever asked for a save has got one
    return stopping() ? Trigger::RunStopped : Trigger::SaveDone;
}

/// A run that was stopped saves once more if that was asked for and something can save.
Trigger Run::save_last() { return save_reason_ ? save_step() : Trigger::SaveDone; }

Trigger Run::end() {
    switch (kind_) {
        case Trigger::StartTraining: parts_.bus.emit([&] { return TrainingRunEnd{position(), result_}; }); break;
        case Trigger::StartEvaluation: parts_.bus.emit([&] { return EvaluationRunEnd{position(), result_}; }); break;
        default: parts_.bus.emit([&] { return PredictionRunEnd{position(), result_}; }); break;
    }
    return Trigger::RunEnded;
}

Trigger Run::fail() {
    parts_.bus.emit_to_everyone(RunFailed{position(), result_.reason, failed_subscriber_, failed_event_});
    return Trigger::FailureTold;
}

Trigger Run::close() {
    try {
        show_view("training");
        parts_.bus.flush();
    } catch (const std::exception& error) {
        warn(fmt::format("while the run was closing: {}", error.what()));
    }
    parts_.bus.emit_to_everyone(RunClosed{position(), result_});
    signals_.reset();
    return Trigger::RunClosed;
}

}  // namespace torchbus
