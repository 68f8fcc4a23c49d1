// Where a run is, for who saves it; going on from there in another run, and going back to there in this one.
#include <algorithm>

#include <torchbus/error.hpp>

#include "run.hpp"

namespace torchbus {

State Run::place() const {
    const State at = state_ == State::Failing ? failed_in_ : state_;
    return at == State::RollingBack ? rolls_back_in_ : at;
}

ResumePoint Run::resume_point() const {
    using Next = RunProgress::Next;
    const State at = place();
    const bool after_epoch = at == State::Evaluating || at == State::SavingLast || at == State::EndingEpoch;
    const bool between_epochs = at == State::SavingEpoch || at == State::Ready || at == State::StartingEpoch;
    const Next next = after_epoch ? Next::Evaluation : between_epochs ? Next::Epoch : Next::Step;
    const bool evaluation_due = evaluation_due_ || at == State::EvaluatingInEpoch;  // it will begin anew
    ResumePoint point{moment_.position, {moment_.position.epoch, 0}, {next, evaluation_due, stop_epoch_ && next == Next::Step, windows_, skip_update_, skip_batch_, epoch_cut_ && next != Next::Step, left_out_}};
    if (next != Next::Step) return point;
    if (in_window_) point.position = window_began_;
    point.data = in_window_ || at == State::FetchingWindow ? window_data_ : parts_.loaders.front()->position();
    return point;
}

bool Run::is_resumable() const {
    const State at = place();
    const bool is_over = at == State::Ready || at == State::Ending || at == State::Closing || at == State::Closed;
    const bool has_cut_epoch = was_stopping_ && (at == State::EndingEpoch || at == State::SavingLast);  // TrainEpochEnd was told of a part of it
    return is_training_run() && !is_over && !has_cut_epoch && !is_putting_back_ && !(in_window_ && has_updated_) && shown_view_ == "training" && moment_.position.attempts > 0;
}

void Run::be_at(const ResumePoint& point) {
    const RunProgress& progress = point.progress;
    moment_.position = point.position;
    evaluation_due_ = progress.evaluation_due;
    stop_epoch_ = progress.stop_epoch;
    windows_ = progress.windows;
    skip_update_ = progress.skip_update;
    skip_batch_ = progress.skip_batch;
    epoch_cut_ = progress.epoch_cut;
}

/// What begins an epoch was told before it was saved.
Trigger Run::go_on(const ResumePoint& at) {
    if (at.progress.next == RunProgress::Next::Evaluation) return Trigger::EvaluationDue;
    parts_.loaders.front()->begin(at.data);
    return Trigger::EpochStarted;
}

/// The batches that are left out stay so: also where the state that is put back knows nothing of them.
Trigger Run::roll_back() {
    const Request request = *std::exchange(roll_back_, std::nullopt);
    const Position from = position();
    RollingBack rolling{from, request, {}};
    parts_.bus.emit(rolling);
    if (rolling.states.empty())
        throw CheckpointError(request.requester + " asked to roll back (" + request.reason + "), and no training state of this run has been saved; "
                              "add save_training_state, or let it save earlier");
    const SavedRun saved = parts_.read_state(rolling.states);
    is_putting_back_ = true;
    be_at(saved.point);
    saved.put_back();
    is_putting_back_ = false;
    left_out_.push_back({request.leave_out, request.requester, request.reason});
    parts_.resume = saved.point;
    parts_.bus.emit([&] { return RolledBack{position(), from, saved.path, left_out_.back(), static_cast<std::int64_t>(left_out_.size())}; });
    return Trigger::RolledBack;
}

const LeftOut* Run::left_out(const BatchRange& range) const {
    const auto found = std::ranges::find_if(left_out_, [&](const LeftOut& one) { return one.batches.overlaps(range); });
    return found == left_out_.end() ? nullptr : &*found;
}

}  // namespace torchbus
