#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Keeps the weights of the best checks of a metric as safetensors files: weights only, written whole or not at all.
/// A NaN or an infinity is never among the best. Kept are the weights that `monitor` was measured with: of eval.ema.loss
/// those of the view `ema`. The file's metadata name view and step.
/// Listens: TrainingRunStart, EvalEpochEnd, EpochCheckpoint (stage Persist), RunClosed; with at_steps StepCheckpoint;
/// with load_best_at_end TrainingRunEnd (interceptor). Reads: `monitor` on the blackboard, the parameters.
/// Writes: with load_best_at_end the parameters and buffers, at TrainingRunEnd.
/// Asks for: with at_steps SaveNow, after an evaluation within an epoch whose number is among the best.
/// Emits: CheckpointSaved, once the file is durable.
/// The file is `<folder>/best.safetensors` where one is kept, else `<folder>/<monitor>_<value>_step_<n>.safetensors`. A file
/// of such a name left by another run is replaced; of others only those that this run wrote are deleted.
/// Rank: rank 0 writes; with load_best_at_end all ranks read the folder.
struct SaveBestOptions {
    enum class Mode { Min, Max };
    std::string monitor = "eval.loss";
    Mode mode = Mode::Min;
    std::int64_t keep = 1;             ///< best checks whose weights are kept; ≥ 1
    bool later_wins_ties = false;      ///< of equal numbers the earlier stays, unless this is set
    std::filesystem::path folder = "checkpoints";  ///< made when something is saved
    bool at_steps = false;             ///< also after evaluations within an epoch, and wherever a save is asked for
    bool load_best_at_end = false;     ///< the run ends with the best weights, unless it failed
};
std::unique_ptr<Callback> make_save_best(SaveBestOptions options = {});

}  // namespace torchbus
