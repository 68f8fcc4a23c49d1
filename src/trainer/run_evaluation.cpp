// Evaluation and prediction: every weights view, every split, one batch a transition.
#include <fmt/format.h>
#include <torch/optim/optimizer.h>

#include <torchbus/error.hpp>

#include "generators.hpp"
#include "run.hpp"

namespace torchbus {

/// Decision points lie this many evaluation steps apart.
constexpr std::int64_t kStepsBetweenDecisions = 8;

void Run::show_view(std::string_view view) {
    if (view == shown_view_) return;
    const std::string_view before = shown_view_;
    if (view != "training") shown_view_ = view;  // also where who changes it fails halfway
    parts_.bus.emit(WeightsViewChanged{position(), before, view});
    shown_view_ = view;
}

/// Moves to the next evaluation split from `index` on. Returns whether there is one.
bool Run::begin_split(std::size_t index) {
    const auto& splits = parts_.plan.splits;
    while (index < splits.size() && splits[index].mode != Mode::Eval) ++index;
    split_index_ = index;
    if (index == splits.size()) return false;
    eval_step_ = eval_samples_ = 0;
    show_view(parts_.plan.views[view_index_]);
    parts_.model->set_training(false);
    moment_.mode = Mode::Eval;
    parts_.loaders[index]->begin({});
    parts_.bus.emit([&] { return EvalEpochStart{position(), Scope{Mode::Eval, splits[index].name, shown_view_}}; });
    return true;
}

void Run::end_split(bool completed) {
    const Scope scope{Mode::Eval, parts_.plan.splits[split_index_].name, shown_view_};
    auto samples = static_cast<double>(eval_samples_);
    parts_.consensus.sum(std::span(&samples, 1));
    parts_.bus.emit([&] { return EvalEpochEnd{position(), scope, eval_step_, static_cast<std::int64_t>(samples), completed}; });
}

/// Leaves the evaluation as the training run left off.
Trigger Run::finish_evaluation(Trigger trigger) {
    evaluating_ = false;
    if (!is_training_run()) return Trigger::RunDone;
    show_view("training");
    parts_.model->set_training(true);
    moment_.mode = Mode::Train;
    return trigger;
}

Trigger Run::evaluate() {
    if (!evaluating_) {
        evaluation_due_ = false;  // this one serves
        view_index_ = 0;
        before_evaluation_ = save_generators();
        evaluating_ = begin_split(0);
        if (!evaluating_) return finish_evaluation(Trigger::EvaluationDone);
    }
    const Trigger trigger = evaluation_step(*parts_.loaders[split_index_], parts_.plan.splits[split_index_]);
    const bool is_waiting = trigger == Trigger::DataPending, split_done = trigger == Trigger::EvaluationDone;
    if (is_waiting && !is_asked_while_waiting()) return trigger;
    if (split_done) end_split(true);
    if (is_waiting || split_done || eval_step_ % kStepsBetweenDecisions == 0) {
        decide(split_done ? Agreement::AtOnce : Agreement::ByNextPoint);
        save_within_evaluation();
        if (stopping() && !split_done) {
            end_split(false);
            return finish_evaluation(Trigger::RunStopped);
        }
    }
    if (!split_done) return trigger;
    const bool views_left = view_index_ + 1 < parts_.plan.views.size();
    const bool splits_left = split_index_ + 1 < parts_.plan.splits.size();
    if (stopping() && (views_left || splits_left)) return finish_evaluation(Trigger::RunStopped);
    if (begin_split(split_index_ + 1)) return Trigger::EvaluationStepDone;
    if (views_left) {
        ++view_index_;
        begin_split(0);
        return Trigger::EvaluationStepDone;
    }
    return finish_evaluation(Trigger::EvaluationDone);  // a stop decided at the very end ends the run after the epoch's save
}

/// A save within an evaluation is made at once, of the training view.
void Run::save_within_evaluation() {
    if (!save_ || !is_training_run()) return;
    show_view("training");
    save_step();
    show_view(parts_.plan.views[view_index_]);
}

/// One batch. EvaluationDone when the split has no more.
Trigger Run::evaluation_step(Loader& loader, const SplitPlan& split) {
    Bus& bus = parts_.bus;
    const auto limit = split.limit(state_ == State::EvaluatingInEpoch);
    if (limit && eval_step_ >= *limit) return Trigger::EvaluationDone;
    switch (loader.next(1, kPollInterval, window_)) {
        case Fetch::Pending: return Trigger::DataPending;
        case Fetch::Exhausted: return Trigger::EvaluationDone;
        case Fetch::Ready: break;
    }
    const Scope scope{split.mode, split.name, shown_view_};
    const bool predicting = split.mode == Mode::Predict;
    Batch& batch = window_.batches.front();
    if (predicting)
        bus.emit([&] { return PredictStepStart{position(), scope, eval_step_}; });
    else
        bus.emit([&] { return EvalStepStart{position(), scope, eval_step_}; });
    {
        const at::NoGradGuard no_grad;
        bus.emit([&] { return BatchReady{position(), scope, MicroBatch{}, batch}; });
        const StepFunction& step = parts_.updates.empty() || !parts_.updates.front().step ? default_step_ : parts_.updates.front().step;
        forward(batch, predicting ? default_step_ : step, scope, MicroBatch{});
    }
    ++eval_step_;
    eval_samples_ += batch.valid;
    if (predicting)
        bus.emit([&] { return PredictStepEnd{position(), scope, eval_step_ - 1, batch, output_}; });
    else
        bus.emit([&] { return EvalStepEnd{position(), scope, eval_step_ - 1, loss_}; });
    return Trigger::EvaluationStepDone;
}

Trigger Run::predict() {
    Loader& loader = *parts_.loaders.front();
    if (!std::exchange(evaluating_, true)) {
        parts_.model->set_training(false);
        eval_step_ = eval_samples_ = 0;
        loader.begin({});
    }
    switch (evaluation_step(loader, parts_.plan.splits.front())) {
        case Trigger::DataPending:
            if (is_asked_while_waiting()) decide();
            return stopping() ? Trigger::RunStopped : Trigger::DataPending;
        case Trigger::EvaluationDone: return Trigger::PredictionDone;
        default: break;
    }
    if (eval_step_ % kStepsBetweenDecisions == 0) decide(Agreement::ByNextPoint);
    return stopping() ? Trigger::RunStopped : Trigger::PredictionStepDone;
}

}  // namespace torchbus
