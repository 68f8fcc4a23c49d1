#pragma once
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Stops a run after a duration, so that it ends in order before a batch system kills it. The time is that of this process's
/// run, data waits and evaluations included; a resumed run has all of it again.
/// Listens: TrainStepEnd, EvalStepEnd (stage Report). Asks for: StopRun, and SaveNow with it where `save` is set; both are
/// taken at the next decision point, so leave room for a step, or eight evaluation steps, and a save.
/// Rank: measured on rank 0, and taken by all as a decision.
struct TimeLimitOptions {
    Interval limit = Interval(86400, Interval::Unit::Second);  ///< in s, min or h; > 0
    bool save = true;  ///< asks for a save with the stop; it does nothing where nobody saves at StepCheckpoint
};
std::unique_ptr<Callback> make_time_limit(TimeLimitOptions options = {});

}  // namespace torchbus
