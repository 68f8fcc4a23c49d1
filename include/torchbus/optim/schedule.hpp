#pragma once
/// Schedules: pure functions of where a run is, so that resuming needs no replay.

#include <functional>
#include <memory>

#include <torchbus/option_reader.hpp>
#include <torchbus/position.hpp>

namespace torchbus {

/// A factor of the base value, for the update to come; the first update gets f(0).
using Schedule = std::function<double(const Moment&)>;

/// Source: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts; linear warm-up from 0.
/// Requires: a run of known length, unless `total_steps` is given.
struct CosineScheduleOptions {
    std::int64_t warmup_steps = 0;
    std::int64_t total_steps = 0;  ///< 0: the length of the run
    double final_factor = 0;       ///< factor at the end
};
Schedule make_cosine_schedule(CosineScheduleOptions options);

/// From 1 to `final_factor` in a straight line, after a linear warm-up from 0.
struct LinearScheduleOptions {
    std::int64_t warmup_steps = 0;
    std::int64_t total_steps = 0;  ///< 0: the length of the run
    double final_factor = 0;
};
Schedule make_linear_schedule(LinearScheduleOptions options);

/// Multiplies by `factor` after every `every_epochs` epochs.
struct StepScheduleOptions {
    std::int64_t every_epochs = 1;
    double factor = 0.1;
};
Schedule make_step_schedule(StepScheduleOptions options);

/// Reads `{"kind": "cosine", …}`. Throws: ConfigError.
Schedule schedule_from_json(const nlohmann::json& json, const std::string& where);

}  // namespace torchbus
