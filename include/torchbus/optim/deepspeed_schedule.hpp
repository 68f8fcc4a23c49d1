#pragma once
/// The schedules of DeepSpeed's configuration files, with its names and to its numbers.

#include <optional>
#include <string>

#include <torchbus/optim/schedule.hpp>

namespace torchbus {

/// Learning rates are absolute there; what comes out is a factor of `learning_rate`, the optimizer's. DeepSpeed sets a
/// rate after an update, for the next one: the first update has the rate of step -1.
/// Source: deepspeed/runtime/lr_schedules.py of DeepSpeed 0.19.8; where older versions differ, this is the newer.
struct DeepSpeedScheduleOptions {
    std::string type = "WarmupLR";  ///< LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR, WarmupCosineLR
    double learning_rate = 0.001;   ///< > 0, of the optimizer

    std::int64_t total_num_steps = 0;  ///< of WarmupDecayLR and WarmupCosineLR; 0: the run's updates
    double warmup_min_lr = 0;
    std::optional<double> warmup_max_lr = {};  ///< default: the optimizer's; 0.001 for WarmupDecayLR
    std::int64_t warmup_num_steps = 1000;      ///< ≥ 0; at least 2 are made
    bool warmup_is_linear = false;             ///< warmup_type linear; otherwise log
    double warmup_min_ratio = 0;               ///< of WarmupCosineLR
    double cos_min_ratio = 0.0001;

    double lr_range_test_min_lr = 0.001;
    std::int64_t lr_range_test_step_size = 2000;  ///< ≥ 1
    double lr_range_test_step_rate = 1;
    bool lr_range_test_staircase = false;

    double cycle_min_lr = 0, cycle_max_lr = 0;
    double decay_lr_rate = 0;
    std::int64_t cycle_first_step_size = 2000;                 ///< ≥ 1
    std::optional<std::int64_t> cycle_second_step_size = {};   ///< default: the first
    std::int64_t cycle_first_stair_count = 0;
    std::optional<std::int64_t> cycle_second_stair_count = {}; ///< default: the first
    std::int64_t decay_step_size = 0;
};

/// Throws: ConfigError for a type that is none, or a number out of range.
Schedule make_deepspeed_schedule(DeepSpeedScheduleOptions options);

}  // namespace torchbus
