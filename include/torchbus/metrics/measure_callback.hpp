#pragma once
/// The callback around a measure: when it gathers, where it publishes, how ranks add up, what a checkpoint holds.

#include <memory>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>
#include <torchbus/metrics/measure.hpp>
#include <torchbus/option_reader.hpp>

namespace torchbus {

/// On what a metric is computed, and how it is published.
struct MeasureSchedule {
    std::vector<std::string> splits = {};  ///< train and evaluation splits that count; empty: all
    Interval every = {};                   ///< training batches that count: one whenever this has passed; 0: all
    std::int64_t window = 0;               ///< >= 0; batches that counted of which train.running.<metric> is, the last ones; 0: none
    std::string suffix = {};               ///< goes behind each name, so that two callbacks of one kind stand side by side
};
/// "splits", "every", "window" and "suffix" of a run file.
void read_schedule(OptionReader& reader, MeasureSchedule& schedule);

/// Publishes what `measure` computes over an epoch as train.<metric> and eval.<metric>, with the name of a split, a
/// view or an update in between where it is not the default. While an epoch runs they are the numbers of this rank so
/// far (what is not cheap only appears at the end); at its end those over all ranks. Counts the valid samples of the
/// first pass; a batch without weight (SkipBatch) does not count, and nothing is published of a pass in which nothing
/// counted. Skipped updates change nothing: their batches were seen.
/// Listens: TrainEpochStart, EvalEpochStart, ForwardEnd, TrainEpochEnd, EvalEpochEnd. Reads: batch, output.
/// Rank: sums over ranks at the end of a pass. State: what an epoch under way has gathered.
/// Throws: ConfigError for options out of range, prefixed with `kind`.
std::unique_ptr<Callback> make_measure_callback(std::string kind, std::shared_ptr<const Measure> measure, MeasureSchedule schedule);

}  // namespace torchbus
