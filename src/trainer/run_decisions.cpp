// Decision points: what was asked for is agreed on by all ranks, told, and taken.
#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "run.hpp"

namespace torchbus {

void Run::decide(Agreement when) {
    parts_.make_changes(evaluating_);
    const RequestSet agreed = parts_.consensus.exchange(parts_.requests.take(), when);
    for (std::size_t kind = 0; kind < kDecisionCount; ++kind) {
        if (!agreed[kind]) continue;
        const Request& request = *agreed[kind];
        const auto decision = static_cast<Decision>(kind);
        if (waits_for_roll_back(decision, agreed)) {
            if (request.rank == parts_.consensus.rank()) parts_.requests.ask(decision, request);
            continue;
        }
        if (!has_effect(decision)) {
            warn(fmt::format("{} asked for {} ({}), which has no effect in {}", request.requester, name_of(decision), request.reason, name_of(state_)));
            continue;
        }
        parts_.bus.emit([&] { return DecisionTaken{position(), decision, request}; });
        switch (decision) {
            case Decision::FailRun: throw Error(fmt::format("{}: {}", request.requester, request.reason));
            case Decision::StopRun:
                result_ = {request.by_signal ? Outcome::Signalled : Outcome::Stopped, request.requester, request.reason, request.exit_code};
                break;
            case Decision::StopEpoch: stop_epoch_ = true; break;
            case Decision::SkipBatch: skip_batch_ = request; break;
            case Decision::SkipUpdate: skip_update_ = request; break;
            case Decision::EvaluateNow: evaluation_due_ = true; break;
            case Decision::SaveNow: save_ = request; break;
            case Decision::RollBack: roll_back_ = request; break;
            case Decision::Pause: is_paused_ = true; break;
            case Decision::Resume: is_paused_ = false; break;
            case Decision::ChangeOption:
                for (const OptionChange& change : request.changes) parts_.change_option(change);
                break;
        }
    }
}

bool Run::is_asked_while_waiting() { return parts_.consensus.world_size() == 1 && parts_.requests.is_any_waiting(); }

/// What is asked for beside a roll-back is of the run that goes on from there. Within an evaluation a roll-back waits for the
/// end of it, and a run that is stopped there is not rolled back any more.
bool Run::waits_for_roll_back(Decision decision, const RequestSet& agreed) const {
    const bool is_asked = agreed[static_cast<std::size_t>(Decision::RollBack)].has_value();
    if (decision == Decision::FailRun || !is_asked || !is_training_run()) return false;
    if (decision == Decision::RollBack) return evaluating_;
    if (evaluating_) return decision == Decision::SaveNow && !agreed[static_cast<std::size_t>(Decision::StopRun)];
    return true;
}

bool Run::has_effect(Decision decision) const {
    switch (decision) {
        case Decision::FailRun:
        case Decision::ChangeOption:
        case Decision::StopRun: return true;
        case Decision::Pause: return is_training_run() && !is_paused_;
        case Decision::Resume: return is_paused_;
        case Decision::StopEpoch: return state_ == State::Deciding;
        case Decision::EvaluateNow:
            return is_training_run() && parts_.plan.has(Mode::Eval);
        case Decision::SkipBatch:
        case Decision::SkipUpdate:
        case Decision::SaveNow:
        case Decision::RollBack: return is_training_run();
    }
    return false;
}

/// What was asked for too late is said, and a signal still decides the exit code.
void Run::tell_late_requests() {
    if (signals_) signals_->poll(parts_.requests);
    // An exchange that was begun is brought to its end, unless this rank has failed and may be alone in it.
    const bool has_failed = result_.outcome == Outcome::Failed;
    const RequestSet late = has_failed ? parts_.requests.take() : parts_.consensus.exchange(parts_.requests.take(), Agreement::AtOnce);
    for (std::size_t kind = 0; kind < kDecisionCount; ++kind) {
        if (!late[kind]) continue;
        const Request& request = *late[kind];
        warn(fmt::format("{} asked for {} ({}) when the run was over", request.requester, name_of(static_cast<Decision>(kind)), request.reason));
        if (static_cast<Decision>(kind) == Decision::StopRun && request.by_signal && result_.outcome != Outcome::Failed)
            result_ = {Outcome::Signalled, request.requester, request.reason, request.exit_code};
    }
}

}  // namespace torchbus
