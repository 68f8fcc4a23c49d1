#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Records where the time of some steps goes, and writes it as a Chrome trace: open it in ui.perfetto.dev or chrome://tracing.
/// Track "run" holds epochs, steps, waits for data, forward, backward, optimizer steps, evaluations with their batches, and saves;
/// track "subscribers" holds, for every step, the time that each subscriber took since the step before: how long is true, from the
/// bus's accounting, but where within is not, as they are put one after the other.
/// Listens (observers; a span ends with the first event after it, so it includes the wrappers around it): TrainingRunStart,
/// TrainEpochStart, TrainEpochEnd, TrainStepStart, TrainStepEnd, ForwardStart, ForwardEnd, BackwardStart, BackwardEnd,
/// OptimizerStepStart, OptimizerStepEnd, EvalEpochStart, EvalEpochEnd, EvalStepStart, EvalStepEnd, StepCheckpoint, EpochCheckpoint,
/// RunClosed.
/// A skipped update counts as a step. Attached while a run is under way, it counts from there. A run that ends earlier is written as far as it went. Fault policy: optional, so a file that
/// cannot be written is logged and fails no run. Rank: each rank writes for itself, rank 1 to profile.rank1.json and so on.
/// On a device these are the times of the training thread: kernels run later than they are launched.
/// Format: "Trace Event Format", JSON array, complete events (ph X), ts and dur in µs since the recording began.
struct ProfilerOptions {
    std::string path = "profile.json";
    std::int64_t start = 10;             ///< attempted updates of the run before the recording begins; 0: with the run; ≥ 0
    std::int64_t steps = 10;             ///< attempted updates recorded, with all that lies between them; in [1, 100000]
    bool subscribers = true;             ///< the track of subscribers
    std::function<double()> clock = {};  ///< seconds, never falling; default: a steady clock
};
std::unique_ptr<Callback> make_profiler(ProfilerOptions options = {});

}  // namespace torchbus
