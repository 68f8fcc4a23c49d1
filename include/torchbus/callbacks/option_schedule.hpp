#pragma once
#include <memory>
#include <optional>
#include <string>

#include <torchbus/callback.hpp>
#include <torchbus/optim/schedule.hpp>

namespace torchbus {

/// Sets an option of every parameter group before each update: a base value times the schedule's factor. For momentum,
/// betas and weight decay; for the learning rate take learning_rate_schedule.
/// Listens: RunConfigured, TrainStepStart (interceptors). Writes: optimizer_options:<option>.
/// Publishes: the option's value (of the first group) under its name, with the name of the update behind it.
/// Lengths in steps stand still at a skipped update; epochs, samples and tokens go on.
struct OptionScheduleOptions {
    Schedule schedule;                     ///< any function of the run's moment
    std::string option = "weight_decay";   ///< see group_option in optim/group_options.hpp
    std::optional<double> base = {};       ///< what the factor multiplies; default: what each group came with
    std::string update = "";               ///< name of the update; empty: all of them
};
std::unique_ptr<Callback> make_option_schedule(OptionScheduleOptions options);

}  // namespace torchbus
