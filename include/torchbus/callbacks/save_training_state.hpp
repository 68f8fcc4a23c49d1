#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Saves every part of the run (weights, optimizers, generators, data, position, the state of every callback) into
/// `<folder>/step_<n>/`, whole or not at all, and keeps the newest. load_training_state() of
/// checkpoint/training_state.hpp puts back what a run under way can take; it is not yet an exact resume.
/// Listens: TrainingRunStart, StepCheckpoint (stage Persist; whoever asked for it), RunClosed; with every TrainStepEnd;
/// with every_epochs EpochCheckpoint (stage Persist). Reads: parameters.
/// Asks for: with every SaveNow, taken before the next step.
/// Emits: CheckpointSaved, once the folder is durable.
/// Intervals in steps stand still on a skipped update; those in attempts, samples and tokens go on.
/// A folder of the same step left by another run is replaced; of others only those that this run wrote are deleted.
/// Rank: rank 0 writes; an interval in time is measured there.
struct SaveTrainingStateOptions {
    std::filesystem::path folder = "checkpoints";  ///< made when something is saved
    Interval every = {};                           ///< between saves within an epoch; 0: only where asked for
    std::int64_t every_epochs = 1;                 ///< ≥ 0; 0: not after epochs
    std::int64_t keep = 2;                         ///< newest ones that are kept; ≥ 0, 0: all
};
std::unique_ptr<Callback> make_save_training_state(SaveTrainingStateOptions options = {});

}  // namespace torchbus
