// The run as a whole: transitions, epochs, saves and the ways to end. A step is in run_step.cpp, an evaluation or prediction
// in run_evaluation.cpp, decisions in run_decisions.cpp, the plan in run_plan.cpp, going on and going back in run_resume.cpp.
#include "run.hpp"

#include <fmt/format.h>
#include <torch/optim/optimizer.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

/// Says that a transition is under way, so that a slot cannot make another.
class TransitionMark {
public:
    explicit TransitionMark(bool& mark) : mark_(mark) { mark_ = true; }
    TransitionMark(const TransitionMark&) = delete;
    TransitionMark& operator=(const TransitionMark&) = delete;
    ~TransitionMark() { mark_ = false; }

private:
    bool& mark_;
};

}  // namespace

Run::Run(RunParts parts, Trigger kind) : parts_(std::move(parts)), kind_(kind), moment_(parts_.bus.moment()) {
    if (is_training_run()) moment_ = Moment{};  // an evaluation of what was trained is told with the position it was trained to
    moment_.run_id = parts_.run_id;
    moment_.mode = kind == Trigger::StartTraining ? Mode::Train : kind == Trigger::StartEvaluation ? Mode::Eval : Mode::Predict;
    if (parts_.resume) {
        be_at(*parts_.resume);
        left_out_ = parts_.resume->progress.left_out;
    }
    default_step_ = [this](const Batch& batch) { return StepOutput{parts_.model->forward(batch), {}}; };
    if (parts_.handle_signals) signals_.emplace();
}

bool Run::advance() {
    if (std::this_thread::get_id() != thread_)
        throw StateError("advance() was called from another thread than the one that started the run; "
                         "call it from that one, and ask() for decisions from any");
    if (in_transition_) throw StateError("advance() was called from within a slot; ask() for a decision instead");
    if (state_ == State::Closed) return false;
    const TransitionMark mark(in_transition_);
    Trigger trigger = Trigger::Failed;
    if (state_ != State::Failing) was_stopping_ = stopping();
    try {
        if (state_ != State::Failing && state_ != State::Closing) poll();
        trigger = act();
    } catch (const c10::Error& error) {
        failure_ = std::current_exception();
        result_ = {Outcome::Failed, {}, error.what_without_backtrace(), 1};
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
    if (trigger == Trigger::Failed) failed_in_ = state_;
    if (trigger == Trigger::RollBackDue) rolls_back_in_ = state_;
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
        case State::Paused: return wait_paused();
        case State::FetchingWindow: return fetch_window();
        case State::RunningWindow: return run_micro_batch();
        case State::Updating: return update();
        case State::EvaluatingInEpoch: return evaluate();
        case State::SavingStep: return save_step();
        case State::RollingBack: return roll_back();
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

Trigger Run::configure() {
    const RunPlan& plan = prepare();
    if (parts_.check) parts_.check(plan);
    parts_.bus.rebase_filters();
    for (const Update& update : parts_.updates)
        gradients_.push_back(gradients_of(update));
    if (is_training_run()) clear_gradients();  // a run that failed, or the user, may have left some
    parts_.restore_before_start();
    emit_start({});
    parts_.restore_after_start();
    parts_.restore_before_start = parts_.restore_after_start = nullptr;  // with them goes what was read
    return kind_;
}

Trigger Run::start_epoch() {
    if (const auto at = std::exchange(parts_.resume, std::nullopt); at && at->progress.next != RunProgress::Next::Epoch) return go_on(*at);
    const RunPlan& plan = parts_.plan;
    const bool epochs_done = plan.epochs && position().epoch >= *plan.epochs;
    const bool steps_done = plan.max_steps && position().step >= *plan.max_steps;
    if (epochs_done || steps_done) return Trigger::RunDone;
    stop_epoch_ = epoch_cut_ = false;
    parts_.model->set_training(true);
    parts_.loaders.front()->begin({position().epoch, 0});
    parts_.bus.emit([&] { return TrainEpochStart{position()}; });
    return Trigger::EpochStarted;
}

Trigger Run::decide_before_step() {
    decide(Agreement::ByNextPoint);
    if (roll_back_) return Trigger::RollBackDue;  // first: what is given up is neither saved nor evaluated
    if (save_) return Trigger::SaveDue;  // also of a run that is to stop: what was saved goes on as if it had not
    if (stopping()) return Trigger::RunStopped;
    if (std::exchange(evaluation_due_, false)) return Trigger::EvaluationDue;
    if (is_paused_) return Trigger::PauseDue;
    const RunPlan& plan = parts_.plan;
    const Loader& loader = *parts_.loaders.front();
    window_data_ = loader.position();  // where it goes on if it fails before the window is there
    const auto is_done = [&](std::optional<std::int64_t> batches) { return batches && window_data_.batches >= *batches; };
    const bool batches_done = is_done(plan.splits.front().max_batches);
    const bool steps_done = plan.max_steps && position().step >= *plan.max_steps;
    if (!stop_epoch_ && !batches_done && !steps_done) return Trigger::Decided;
    epoch_cut_ = steps_done && !stop_epoch_ && !batches_done && !is_done(loader.batches());
    return Trigger::EpochStopped;
}

Trigger Run::wait_paused() {
    std::this_thread::sleep_for(kPollInterval);
    decide();
    const bool is_anything_due = roll_back_ || save_ || evaluation_due_ || stopping();
    return is_paused_ && !is_anything_due ? Trigger::StillPaused : Trigger::DecisionDue;
}

Trigger Run::save_step() {
    const Request asked = *std::exchange(save_, std::nullopt);
    if (position().attempts == 0) {
        warn(fmt::format("{}: {}; no step has been made yet, so there is nothing to save", asked.requester, asked.reason));
        return Trigger::SaveDone;
    }
    parts_.bus.emit([&] { return StepCheckpoint{position(), asked.requester, asked.reason}; });
    return Trigger::SaveDone;
}

Trigger Run::end_epoch() {
    const bool stopped = stopping();
    const Counts epoch = position().in_epoch;
    if (!stopped) {
        ++position().epoch;
        position().in_epoch = {};
    }
    parts_.bus.emit([&] { return TrainEpochEnd{position(), epoch, !stopped && !stop_epoch_}; });
    if (stopped) return Trigger::RunStopped;
    decide();
    if (roll_back_) return Trigger::RollBackDue;
    return stopping() ? Trigger::RunStopped : Trigger::EpochEnded;
}

Trigger Run::save_epoch() {
    parts_.bus.emit([&] { return TrainingRunEpochEnd{position()}; });
    decide();
    if (roll_back_) return Trigger::RollBackDue;
    parts_.bus.emit([&] { return EpochCheckpoint{position()}; });
    if (save_) save_step();
    return stopping() ? Trigger::RunStopped : Trigger::SaveDone;
}

/// A run that was stopped saves once more if that was asked for and something can save.
Trigger Run::save_last() { return save_ ? save_step() : Trigger::SaveDone; }

Trigger Run::end() {
    parts_.bus.drain();  // what fails on a thread fails the run as long as it can
    switch (kind_) {
        case Trigger::StartTraining: parts_.bus.emit([&] { return TrainingRunEnd{position(), result_}; }); break;
        case Trigger::StartEvaluation: parts_.bus.emit([&] { return EvaluationRunEnd{position(), result_}; }); break;
        default: parts_.bus.emit([&] { return PredictionRunEnd{position(), result_}; }); break;
    }
    return Trigger::RunEnded;
}

/// Of a run that ended within an evaluation of others.
void Run::show_trained_weights() {
    try {
        show_view("training");
    } catch (const std::exception& error) {
        warn(fmt::format("while the run was closing: {}", error.what()));
    }
}

Trigger Run::fail() {
    show_trained_weights();
    parts_.bus.emit_to_everyone(RunFailed{position(), result_.reason, failed_subscriber_, failed_event_});
    return Trigger::FailureTold;
}

Trigger Run::close() {
    show_trained_weights();
    try {
        parts_.bus.drain();
    } catch (const std::exception& error) {
        warn(fmt::format("while the run was closing: {}", error.what()));
    }
    try {
        tell_late_requests();
    } catch (const std::exception& error) {  // another rank failed at the very end
        failure_ = std::current_exception();
        result_ = {Outcome::Failed, {}, error.what(), 1};
    }
    parts_.bus.emit_to_everyone(RunClosed{position(), result_});
    signals_.reset();
    parts_.loaders.clear();  // their threads and their data are no longer needed
    window_ = {};
    output_ = {};
    loss_ = window_loss_ = at::Tensor();
    return Trigger::RunClosed;
}

}  // namespace torchbus
