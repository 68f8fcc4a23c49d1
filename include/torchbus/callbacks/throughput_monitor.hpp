#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Measures, over windows of training steps, how fast the run goes, how much of it waits for data, and what memory it takes.
/// The time counted is that of steps and of waiting for the next one; evaluations, saves and what lies between epochs are left out.
/// The first window warms up (allocators, threads, caches) and is not told.
/// Listens: TrainingRunStart, TrainEpochStart, TrainStepStart, TrainStepEnd, TrainEpochEnd, EvalEpochStart, StepCheckpoint,
/// RolledBack (observers).
/// Publishes, at the end of every window but the first: throughput.samples_per_second, throughput.tokens_per_second (where the
/// data declares tokens), throughput.steps_per_second, throughput.data_wait (share of the time, in [0, 1]),
/// memory.resident_bytes, memory.peak_bytes (of the process, from /proc/self/status); where batches go to a device, of its memory
/// memory.device_allocated_bytes, memory.device_peak_bytes (both of this process's tensors), memory.device_reserved_bytes (with what
/// is kept for tensors to come), memory.device_free_bytes (whoever uses the device).
/// A skipped update counts as a step here: it took its time. Rank: each rank's own samples, clock and memory.
/// On a device a step's time is that of the training thread, which is right over a window as soon as anything in it waits for the device.
struct ThroughputMonitorOptions {
    std::int64_t window = 50;                          ///< attempted updates in a window; ≥ 1
    bool print = false;                                ///< a line for every window
    std::function<void(std::string_view)> write = {};  ///< where it is printed; default: standard error
    std::function<double()> clock = {};                ///< seconds, never falling; default: a steady clock
};
std::unique_ptr<Callback> make_throughput_monitor(ThroughputMonitorOptions options = {});

}  // namespace torchbus
