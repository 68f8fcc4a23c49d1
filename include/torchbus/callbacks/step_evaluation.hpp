#pragma once
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Evaluates within an epoch, at an interval.
/// Listens: TrainStepEnd (stage Report). Asks for: EvaluateNow, taken before the next step; not where the epoch ends there
/// anyway, as its evaluation follows.
/// Intervals in steps stand still on a skipped update; those in attempts, samples and tokens go on.
/// Rank: an interval in time is measured on rank 0, and taken by all as a decision.
struct StepEvaluationOptions {
    Interval every = Interval(1000, Interval::Unit::Step);  ///< > 0
};
std::unique_ptr<Callback> make_step_evaluation(StepEvaluationOptions options = {});

}  // namespace torchbus
