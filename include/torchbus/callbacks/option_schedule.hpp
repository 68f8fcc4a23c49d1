#pragma once
#include <memory>
#include <optional>
#include <string>

#include <torchbus/callback.hpp>
#include <torchbus/optim/schedule.hpp>

namespace torchbus {

/// Sets a number before each update: a base value times the schedule's factor. Of the optimizer's parameter groups
/// (momentum, betas, weight decay; for the learning rate take learning_rate_schedule), or of another callback, as
/// Trainer::change_option does: "gradient_clipping.max_norm".
/// Listens: RunConfigured, TrainStepStart (interceptors). Writes: optimizer_options:<option> or callback_options:<option>.
/// Publishes: the value (of the first group) under the option's name, with the name of the update behind it.
/// Lengths in steps stand still at a skipped update; epochs, samples and tokens go on.
struct OptionScheduleOptions {
    Schedule schedule;                     ///< any function of the run's moment
    std::string option = "weight_decay";   ///< see group_option in optim/group_options.hpp; or ID.OPTION of a callback
    std::optional<double> base = {};       ///< what the factor multiplies; default: what each group came with. Needed for a callback's option
    std::string update = "";               ///< name of the update; empty: all of them
};
std::unique_ptr<Callback> make_option_schedule(OptionScheduleOptions options);

}  // namespace torchbus
