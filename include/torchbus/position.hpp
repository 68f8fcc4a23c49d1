#pragma once
/// Where a run is. A position counts what is finished, never what is under way.

#include <cstdint>
#include <optional>
#include <string>

namespace torchbus {

/// What was finished. A step is one optimizer update; a skipped update counts in `attempts` only.
struct Counts {
    std::int64_t step = 0;         ///< updates made
    std::int64_t attempts = 0;     ///< updates made or skipped
    std::int64_t micro_batch = 0;  ///< batches that went forward and backward (first pass only)
    std::int64_t samples = 0;      ///< valid samples of those batches, of all ranks
    std::int64_t tokens = 0;       ///< tokens of those batches, where the data declares them, of all ranks
    bool operator==(const Counts&) const = default;
};

/// The whole run's counts, and those since the epoch began.
/// `epoch` grows, and `in_epoch` returns to zero, when an epoch is finished: just before TrainEpochEnd.
struct Position : Counts {
    std::int64_t epoch = 0;  ///< epochs finished
    Counts in_epoch;         ///< since the current epoch began
    bool operator==(const Position&) const = default;
};

/// How long the run will be, as far as it is known (data without a length has no steps).
struct RunLength {
    std::optional<std::int64_t> epochs;
    std::optional<std::int64_t> batches_per_epoch;
    std::optional<std::int64_t> steps;
};

enum class Mode : std::uint8_t { Train, Eval, Predict };

/// Position, length, mode and time of a run: all that an interval or a filter may depend on.
struct Moment {
    Position position;
    RunLength length;
    Mode mode = Mode::Train;
    double seconds = 0;  ///< since the run began; refreshed at every poll point
    std::string run_id = {};  ///< of this run in this process, the same on all ranks: for what leaves the process
};

}  // namespace torchbus
