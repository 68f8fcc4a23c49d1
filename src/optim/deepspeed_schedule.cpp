#include <torchbus/optim/deepspeed_schedule.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "schedule_curve.hpp"

namespace torchbus {
namespace {

using Options = DeepSpeedScheduleOptions;

/// Steps are counted as DeepSpeed's last_batch_iteration: -1 before the first update.
using Rate = double (*)(const Options& options, double step, double total);

double warmup_steps(const Options& options) { return static_cast<double>(std::max<std::int64_t>(2, options.warmup_num_steps)); }

/// From 0 to 1 within the warm-up.
double risen(const Options& options, double step) {
    const double steps = warmup_steps(options);
    return options.warmup_is_linear ? step / steps : std::log(step + 1) / std::log(steps);
}

double warmup(const Options& options, double step, double highest) {
    if (step < 0) return options.warmup_min_lr;
    return options.warmup_min_lr + (highest - options.warmup_min_lr) * std::min(1.0, step < warmup_steps(options) ? risen(options, step) : 1.0);
}

double warmup_rate(const Options& options, double step, double) { return warmup(options, step, options.warmup_max_lr.value_or(options.learning_rate)); }

double warmup_decay_rate(const Options& options, double step, double total) {
    const double highest = options.warmup_max_lr.value_or(0.001), steps = warmup_steps(options);
    if (step < steps) return warmup(options, step, highest);
    return options.warmup_min_lr + (highest - options.warmup_min_lr) * std::max(0.0, (total - step) / std::max(1.0, total - steps));
}

double warmup_cosine_rate(const Options& options, double step, double total) {
    const double steps = warmup_steps(options), lowest = options.warmup_min_ratio;
    if (step < 0) return 0;
    if (step < steps) return options.learning_rate * (lowest + (1 - lowest) * risen(options, step));
    const double progress = std::min(1.0, (step - steps + 1) / std::max(1.0, total - steps));
    return options.learning_rate * std::max(0.0, options.cos_min_ratio + (1 - options.cos_min_ratio) * (1 + std::cos(std::numbers::pi * progress)) / 2);
}

double range_test_rate(const Options& options, double step, double) {
    if (step < 0) return options.lr_range_test_min_lr;
    const double intervals = (step + 1) / static_cast<double>(options.lr_range_test_step_size);
    return options.lr_range_test_min_lr * (1 + options.lr_range_test_step_rate * (options.lr_range_test_staircase ? std::floor(intervals) : intervals));
}

double stairs(double share, std::int64_t count) { return count > 0 ? std::floor(share * static_cast<double>(count)) / static_cast<double>(count) : share; }

double one_cycle_rate(const Options& options, double step, double) {
    const auto first = static_cast<double>(options.cycle_first_step_size), second = static_cast<double>(options.cycle_second_step_size.value_or(options.cycle_first_step_size));
    const double cycle = first + second;
    if (step < cycle) {
        const double within = std::fmod(step + 1, cycle);
        const double share = within <= first ? stairs(within / first, options.cycle_first_stair_count)
                                             : stairs((cycle - within) / second, options.cycle_second_stair_count.value_or(options.cycle_first_stair_count));
        return options.cycle_min_lr + (options.cycle_max_lr - options.cycle_min_lr) * share;
    }
    if (options.decay_step_size == 0 || options.decay_lr_rate == 0) return options.cycle_min_lr;
    return options.cycle_min_lr / (1 + options.decay_lr_rate * (step - cycle + 1) / static_cast<double>(options.decay_step_size));
}

struct Type {
    const char* name;
    Rate rate;
    bool has_end;  ///< goes by the run's length
};
constexpr Type kTypes[] = {{"LRRangeTest", range_test_rate, false}, {"OneCycle", one_cycle_rate, false}, {"WarmupLR", warmup_rate, false}, {"WarmupDecayLR", warmup_decay_rate, true},
                           {"WarmupCosineLR", warmup_cosine_rate, true}};

void require(bool holds, const char* name, double value, const char* advice) {
    if (!holds) throw ConfigError(fmt::format("deepspeed schedule: {}: {} is out of range; give {}", name, value, advice));
}

}  // namespace

Schedule make_deepspeed_schedule(DeepSpeedScheduleOptions options) {
    const auto type = std::ranges::find(kTypes, options.type, &Type::name);
    if (type == std::end(kTypes))
        throw ConfigError(fmt::format("deepspeed schedule: '{}' is no type; give LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR or WarmupCosineLR", options.type));
    require(options.learning_rate > 0, "learning_rate", options.learning_rate, "the optimizer's, above 0");
    require(options.warmup_num_steps >= 0, "warmup_num_steps", static_cast<double>(options.warmup_num_steps), "at least 0");
    require(options.lr_range_test_step_size >= 1, "lr_range_test_step_size", static_cast<double>(options.lr_range_test_step_size), "at least 1");
    require(options.cycle_first_step_size >= 1, "cycle_first_step_size", static_cast<double>(options.cycle_first_step_size), "at least 1");
    require(options.total_num_steps >= 0, "total_num_steps", static_cast<double>(options.total_num_steps), "the number of updates, or 0 for the run's");
    const Interval length = options.total_num_steps > 0 ? Interval{static_cast<double>(options.total_num_steps), Interval::Unit::Step} : kWholeRun;
    detail::Curve curve{[options, rate = type->rate, length, has_end = type->has_end](const detail::Place& place) {
        return rate(options, place.now - 1, has_end ? place.in_unit(length) : 0) / options.learning_rate;
    }};
    if (type->has_end) curve.length = length;
    curve.marks = {Interval{1, Interval::Unit::Step}};  // it counts updates
    return Schedule(std::move(curve));
}

}  // namespace torchbus
