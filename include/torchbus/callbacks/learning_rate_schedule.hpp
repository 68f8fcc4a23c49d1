#pragma once
#include <memory>
#include <string>

#include <torchbus/callback.hpp>
#include <torchbus/optim/schedule.hpp>

namespace torchbus {

/// Sets the learning rate of every parameter group before each update: its base value times the schedule's factor.
/// Listens: TrainStepStart (interceptor). Writes: learning_rate. Publishes: learning_rate (of the first group).
/// A skipped update does not advance it: a schedule goes by steps, and a step is an update that was made.
struct LearningRateScheduleOptions {
    Schedule schedule;        ///< any function of the run's moment
    std::string update = "";  ///< name of the update; empty: all of them
};
std::unique_ptr<Callback> make_learning_rate_schedule(LearningRateScheduleOptions options);

}  // namespace torchbus
