#pragma once
#include <memory>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>
#include <torchbus/optim/schedule.hpp>

namespace torchbus {

/// What one parameter group gets.
struct GroupSchedule {
    double factor = 1;       ///< of the update's schedule, ≥ 0 …
    Schedule schedule = {};  ///< … or of one of its own
};

/// Sets the learning rate of every parameter group before each update: its base value times the schedule's value times
/// `factor`. A schedule is changed while a run is under way by its `factor`, and by nothing else: the curve keeps its shape.
/// The base is the rate that the optimizer came with; a second run starts from it again.
/// Listens: RunConfigured, TrainStepStart (interceptors); with save_around_decay TrainStepEnd. Asks for: with it SaveNow,
/// before the first update of a decay and after the last one of a decay that the schedule goes on from. Writes: learning_rate.
/// Publishes: learning_rate (of the first group), with the name of the update behind it where there is one.
/// Lengths in steps stand still at a skipped update; epochs, samples and tokens go on.
struct LearningRateScheduleOptions {
    Schedule schedule;                       ///< any function of the run's moment
    std::string update = "";                 ///< name of the update; empty: all of them
    double factor = 1;                       ///< of the whole curve, ≥ 0
    std::vector<GroupSchedule> groups = {};  ///< by index; empty: all groups get the schedule
    bool save_around_decay = false;          ///< for a longer run from there; save_training_state can keep such saves for ever
};
std::unique_ptr<Callback> make_learning_rate_schedule(LearningRateScheduleOptions options);

}  // namespace torchbus
