#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Saves every part of the run (weights, optimizers, generators, data, position, history, the state of every callback) into
/// `<folder>/step_<n>/`, whole or not at all, and keeps the newest. TrainOptions::resume goes on from there, exactly.
/// In the background the parts are copied, and a thread writes the copies while training goes on: one save at a time.
/// When a run fails within a window its state is that of before the window, but for what callbacks and filters have seen of
/// it: an epoch's metrics count those of its micro-batches twice that were through. Nothing is saved where an update was under way,
/// or where a weight is not finite. Nothing older is deleted for it.
/// Offers its states at RollingBack.
/// Listens: TrainingRunStart, StepCheckpoint (stage Persist; whoever asked for it), RollingBack (interceptor), TrainingRunEnd,
/// RunFailed, RunClosed; with every TrainStepEnd; with every_epochs or at_end EpochCheckpoint (stage Persist); with on_failure
/// RunConfigured (interceptor), TrainStepStart (stage Persist). Reads: parameters. Writes: states.
/// Asks for: with every SaveNow, taken before the next step; FailRun where a save in the background could not be written.
/// Emits: CheckpointSaved, once the folder is durable. One that is written and not known to be durable is warned of, and
/// nothing older is deleted for it. `<folder>/latest` is a link to the last durable one, with a monitor `<folder>/best` to the
/// best one.
/// Intervals in steps stand still on a skipped update; those in attempts, samples and tokens go on.
/// A folder of the same step left by another run is replaced; of others only those that this run wrote are deleted.
/// Rank: rank 0 writes; an interval in time is measured there. At RollingBack all wait until it has written (a sum over ranks).
struct SaveTrainingStateOptions {
    enum class Mode : std::uint8_t { Min, Max };
    std::filesystem::path folder = "checkpoints";  ///< made when something is saved
    Interval every = {};                           ///< between saves within an epoch; 0: only where asked for
    std::int64_t every_epochs = 1;                 ///< ≥ 0; 0: not after epochs
    bool at_end = true;                            ///< also after the last epoch
    std::int64_t keep = 2;                         ///< newest ones that are kept; ≥ 0, 0: all
    std::int64_t keep_every = 0;                   ///< those whose step is a multiple of it are kept for ever; ≥ 0, 0: none
    bool keep_asked = false;                       ///< those that others asked for (a signal, a schedule at its decay) are kept for ever
    std::string monitor = "";                      ///< a published number by which the best saved after epochs are kept, too
    Mode mode = Mode::Min;                         ///< which way it gets better
    std::int64_t keep_best = 1;                    ///< how many of the best; ≥ 1; of equal ones the earlier
    bool on_failure = true;                        ///< also when the run fails, as of the last update; costs a copy of generators and buffers a step
    bool background = true;                        ///< costs the memory of a copy
    bool skip_when_busy = false;                   ///< a save that comes while one is written is left out; false: it waits
};
std::unique_ptr<Callback> make_save_training_state(SaveTrainingStateOptions options = {});

}  // namespace torchbus
