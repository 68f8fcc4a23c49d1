#pragma once
/// The states of a run and how it goes from one to the next. The whole machine is the table below;
/// `torchbus graph` draws it. One transition is one call of trainer.advance().

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace torchbus {

enum class State : std::uint8_t {
    Ready,             ///< RunConfigured, and the Start event of the run
    StartingEpoch,     ///< TrainEpochStart, or where a resumed or rolled back run was
    Deciding,          ///< the decision point before a step
    Paused,            ///< waiting to be resumed; decisions are taken
    FetchingWindow,    ///< waiting for the batches of the next step
    RunningWindow,     ///< one micro-batch forward and backward
    Updating,          ///< GradientsReady and the update
    EvaluatingInEpoch, ///< an evaluation that was decided in mid-epoch; one batch a transition
    SavingStep,        ///< StepCheckpoint
    RollingBack,       ///< RollingBack, a training state put back, RolledBack
    EndingEpoch,       ///< TrainEpochEnd
    Evaluating,        ///< the evaluation after an epoch, or of an evaluation run; one batch a transition
    SavingEpoch,       ///< TrainingRunEpochEnd, EpochCheckpoint
    Predicting,        ///< one batch a transition
    SavingLast,        ///< StepCheckpoint of a run that was asked to stop
    Ending,            ///< the End event of the run
    Failing,           ///< RunFailed
    Closing,           ///< RunClosed
    Closed,
};

enum class Trigger : std::uint8_t {
    StartTraining, StartEvaluation, StartPrediction,
    EpochStarted, Decided, PauseDue, StillPaused, WindowReady, DataPending, DecisionDue, DataExhausted, MicroBatchDone, WindowDone, Again, NextUpdate,
    UpdateDone, EvaluationDue, EvaluationStepDone, EvaluationDone, SaveDue, SaveDone, RollBackDue, RolledBack, WindowLeftOut, EpochStopped, EpochEnded,
    PredictionStepDone, PredictionDone, RunStopped, RunDone, RunEnded, Failed, FailureTold, RunClosed,
};

struct Transition {
    State from;
    Trigger on;
    State to;
};

inline constexpr auto kTransitions = std::to_array<Transition>({
    // a training run
    {State::Ready,             Trigger::StartTraining,      State::StartingEpoch},
    {State::StartingEpoch,     Trigger::EpochStarted,       State::Deciding},
    {State::StartingEpoch,     Trigger::EvaluationDue,      State::Evaluating},
    {State::StartingEpoch,     Trigger::RunDone,            State::Ending},
    {State::Deciding,          Trigger::Decided,            State::FetchingWindow},
    {State::Deciding,          Trigger::EvaluationDue,      State::EvaluatingInEpoch},
    {State::Deciding,          Trigger::SaveDue,            State::SavingStep},
    {State::Deciding,          Trigger::RollBackDue,        State::RollingBack},
    {State::Deciding,          Trigger::EpochStopped,       State::EndingEpoch},
    {State::Deciding,          Trigger::RunStopped,         State::EndingEpoch},
    {State::Deciding,          Trigger::PauseDue,           State::Paused},
    {State::Paused,            Trigger::StillPaused,        State::Paused},
    {State::Paused,            Trigger::DecisionDue,        State::Deciding},
    {State::FetchingWindow,    Trigger::WindowReady,        State::RunningWindow},
    {State::FetchingWindow,    Trigger::DataPending,        State::FetchingWindow},
    {State::FetchingWindow,    Trigger::DecisionDue,        State::Deciding},
    {State::FetchingWindow,    Trigger::WindowLeftOut,      State::Deciding},
    {State::FetchingWindow,    Trigger::DataExhausted,      State::EndingEpoch},
    {State::RunningWindow,     Trigger::MicroBatchDone,     State::RunningWindow},
    {State::RunningWindow,     Trigger::Again,              State::RunningWindow},
    {State::RunningWindow,     Trigger::WindowDone,         State::Updating},
    {State::Updating,          Trigger::Again,              State::RunningWindow},
    {State::Updating,          Trigger::NextUpdate,         State::RunningWindow},
    {State::Updating,          Trigger::UpdateDone,         State::Deciding},
    {State::EvaluatingInEpoch, Trigger::EvaluationStepDone, State::EvaluatingInEpoch},
    {State::EvaluatingInEpoch, Trigger::DataPending,        State::EvaluatingInEpoch},
    {State::EvaluatingInEpoch, Trigger::EvaluationDone,     State::Deciding},
    {State::EvaluatingInEpoch, Trigger::RunStopped,         State::EndingEpoch},
    {State::SavingStep,        Trigger::SaveDone,           State::Deciding},
    {State::RollingBack,       Trigger::RolledBack,         State::StartingEpoch},
    {State::EndingEpoch,       Trigger::EpochEnded,         State::Evaluating},
    {State::EndingEpoch,       Trigger::RollBackDue,        State::RollingBack},
    {State::EndingEpoch,       Trigger::RunStopped,         State::SavingLast},
    {State::Evaluating,        Trigger::EvaluationStepDone, State::Evaluating},
    {State::Evaluating,        Trigger::DataPending,        State::Evaluating},
    {State::Evaluating,        Trigger::EvaluationDone,     State::SavingEpoch},
    {State::Evaluating,        Trigger::RunStopped,         State::SavingLast},
    {State::SavingEpoch,       Trigger::SaveDone,           State::StartingEpoch},
    {State::SavingEpoch,       Trigger::RollBackDue,        State::RollingBack},
    {State::SavingEpoch,       Trigger::RunStopped,         State::SavingLast},
    {State::SavingLast,        Trigger::SaveDone,           State::Ending},
    // an evaluation run, a prediction run
    {State::Ready,             Trigger::StartEvaluation,    State::Evaluating},
    {State::Evaluating,        Trigger::RunDone,            State::Ending},
    {State::Ready,             Trigger::StartPrediction,    State::Predicting},
    {State::Predicting,        Trigger::PredictionStepDone, State::Predicting},
    {State::Predicting,        Trigger::DataPending,        State::Predicting},
    {State::Predicting,        Trigger::PredictionDone,     State::Ending},
    {State::Predicting,        Trigger::RunStopped,         State::Ending},
    // the end of every run
    {State::Ending,            Trigger::RunEnded,           State::Closing},
    {State::Failing,           Trigger::FailureTold,        State::Closing},
    {State::Closing,           Trigger::RunClosed,          State::Closed},
    // an exception, in any state that can throw one
    {State::Ready,             Trigger::Failed,             State::Failing},
    {State::StartingEpoch,     Trigger::Failed,             State::Failing},
    {State::Deciding,          Trigger::Failed,             State::Failing},
    {State::Paused,            Trigger::Failed,             State::Failing},
    {State::FetchingWindow,    Trigger::Failed,             State::Failing},
    {State::RunningWindow,     Trigger::Failed,             State::Failing},
    {State::Updating,          Trigger::Failed,             State::Failing},
    {State::EvaluatingInEpoch, Trigger::Failed,             State::Failing},
    {State::SavingStep,        Trigger::Failed,             State::Failing},
    {State::RollingBack,       Trigger::Failed,             State::Failing},
    {State::EndingEpoch,       Trigger::Failed,             State::Failing},
    {State::Evaluating,        Trigger::Failed,             State::Failing},
    {State::SavingEpoch,       Trigger::Failed,             State::Failing},
    {State::Predicting,        Trigger::Failed,             State::Failing},
    {State::SavingLast,        Trigger::Failed,             State::Failing},
    {State::Ending,            Trigger::Failed,             State::Failing},
});

inline constexpr std::size_t kStateCount = static_cast<std::size_t>(State::Closed) + 1;

/// The state after `on` in `from`, or State `from` with `valid` false where the table has no such row.
struct NextState {
    State state;
    bool valid;
};
constexpr NextState next_state(State from, Trigger on) {
    for (const Transition& row : kTransitions)
        if (row.from == from && row.on == on) return {row.to, true};
    return {from, false};
}

std::string_view name_of(State state);
std::string_view name_of(Trigger trigger);

/// The table as a Graphviz digraph.
std::string state_graph_dot();
/// The table as a Mermaid state diagram, as the README shows it.
std::string state_graph_mermaid();

namespace detail {

constexpr bool is_deterministic() {
    for (std::size_t a = 0; a < kTransitions.size(); ++a)
        for (std::size_t b = a + 1; b < kTransitions.size(); ++b)
            if (kTransitions[a].from == kTransitions[b].from && kTransitions[a].on == kTransitions[b].on) return false;
    return true;
}

/// Which states can be reached from `start`, following the table forwards or backwards.
constexpr std::array<bool, kStateCount> reach(State start, bool backwards) {
    std::array<bool, kStateCount> seen{};
    seen[static_cast<std::size_t>(start)] = true;
    for (std::size_t round = 0; round < kStateCount; ++round)
        for (const Transition& row : kTransitions) {
            const auto source = static_cast<std::size_t>(backwards ? row.to : row.from);
            const auto target = static_cast<std::size_t>(backwards ? row.from : row.to);
            if (seen[source]) seen[target] = true;
        }
    return seen;
}

constexpr bool all_of(const std::array<bool, kStateCount>& states) {
    for (const bool state : states)
        if (!state) return false;
    return true;
}

}  // namespace detail

static_assert(detail::is_deterministic(), "a state and a trigger lead to one state");
static_assert(detail::all_of(detail::reach(State::Ready, false)), "every state can be reached");
static_assert(detail::all_of(detail::reach(State::Closed, true)), "every state has a way to Closed");

}  // namespace torchbus
