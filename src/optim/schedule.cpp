#include <torchbus/optim/schedule.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>

#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

/// Updates of the run. Throws: ConfigError where nobody knows.
double length_of(std::int64_t total_steps, const Moment& moment) {
    if (total_steps > 0) return static_cast<double>(total_steps);
    if (moment.length.steps) return static_cast<double>(*moment.length.steps);
    throw ConfigError("a schedule over the whole run needs a run of known length; give total_steps");
}

/// A linear warm-up from 0 to 1, then `decay(progress)`, progress going from 0 to 1.
template <class Decay>
Schedule after_warmup(std::int64_t warmup_steps, std::int64_t total_steps, Decay decay) {
    if (warmup_steps < 0 || total_steps < 0) throw ConfigError("warmup_steps and total_steps of a schedule must be at least 0");
    return [=](const Moment& moment) {
        const auto step = static_cast<double>(moment.position.step);
        const auto warmup = static_cast<double>(warmup_steps);
        if (step < warmup) return step / warmup;
        const double rest = std::max(length_of(total_steps, moment) - warmup, 1.0);
        return decay(std::min((step - warmup) / rest, 1.0));
    };
}

}  // namespace

Schedule make_cosine_schedule(CosineScheduleOptions options) {
    return after_warmup(options.warmup_steps, options.total_steps, [last = options.final_factor](double progress) {
        return last + (1 - last) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
    });
}

Schedule make_linear_schedule(LinearScheduleOptions options) {
    return after_warmup(options.warmup_steps, options.total_steps,
                        [last = options.final_factor](double progress) { return 1 + (last - 1) * progress; });
}

Schedule make_step_schedule(StepScheduleOptions options) {
    if (options.every_epochs < 1) throw ConfigError("every_epochs of a step schedule must be at least 1");
    return [=](const Moment& moment) {
        return std::pow(options.factor, static_cast<double>(moment.position.epoch / options.every_epochs));
    };
}

Schedule schedule_from_json(const nlohmann::json& json, const std::string& where) {
    OptionReader reader(json, where);
    std::string kind = "constant";
    reader.choice("kind", kind, {"constant", "cosine", "linear", "step"}, "shape of the curve");
    Schedule schedule = [](const Moment&) { return 1.0; };
    CosineScheduleOptions span;
    const auto read_span = [&] {
        reader.integer("warmup_steps", span.warmup_steps, "updates of linear warm-up from 0", Range::at_least(0))
            .integer("total_steps", span.total_steps, "updates until the end of the curve; 0: the run", Range::at_least(0))
            .number("final_factor", span.final_factor, "factor of the base value at the end", Range::at_least(0));
    };
    if (kind == "cosine") {
        read_span();
        schedule = make_cosine_schedule(span);
    } else if (kind == "linear") {
        read_span();
        schedule = make_linear_schedule({span.warmup_steps, span.total_steps, span.final_factor});
    } else if (kind == "step") {
        StepScheduleOptions options;
        reader.integer("every_epochs", options.every_epochs, "epochs between two drops", Range::at_least(1))
            .number("factor", options.factor, "factor of each drop", Range::at_least(0));
        schedule = make_step_schedule(options);
    }
    reader.finish();
    return schedule;
}

}  // namespace torchbus
