// Schedules from run files.
#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/optim/deepspeed_schedule.hpp>
#include <torchbus/optim/registry.hpp>
#include <torchbus/optim/schedule.hpp>

#include "library_schedules.hpp"

namespace torchbus {
namespace {

using nlohmann::json;
constexpr auto kFactor = Range::at_least(0);

void read_warmup(OptionReader& reader, Interval& warmup, double& start) {
    reader.interval("warmup", warmup, "rises to 1 in a straight line, e.g. \"200step\" or \"0.05run\"")
        .number("warmup_start", start, "factor of the first update, with a warm-up", kFactor);
}

void read_length(OptionReader& reader, Interval& length) { reader.interval("length", length, "all of the curve, warm-up included"); }

/// An array of intervals, each a number of updates or a text.
void read_intervals(OptionReader& reader, const char* name, std::vector<Interval>& values, const char* about) {
    const json* part = reader.part(name, "array of interval", about);
    if (!part) return;
    if (!part->is_array()) throw ConfigError(fmt::format("{}: expected an array of intervals, found a {}", reader.path_of(name), part->type_name()));
    values.clear();
    for (std::size_t i = 0; i < part->size(); ++i) {
        const std::string entry = fmt::format("{}[{}]", name, i);
        OptionReader(json{{entry, (*part)[i]}}, reader.where()).interval(entry, values.emplace_back(), about);
    }
}

Schedule read_constant(OptionReader& reader) {
    double factor = 1;
    reader.number("factor", factor, "of the base value", kFactor);
    return make_constant_schedule(factor);
}

Schedule read_linear(OptionReader& reader) {
    LinearScheduleOptions options;
    read_warmup(reader, options.warmup, options.warmup_start);
    read_length(reader, options.length);
    reader.number("final_factor", options.final_factor, "factor at the end", kFactor);
    return make_linear_schedule(options);
}

Schedule read_polynomial(OptionReader& reader) {
    PolynomialScheduleOptions options;
    read_warmup(reader, options.warmup, options.warmup_start);
    read_length(reader, options.length);
    reader.number("final_factor", options.final_factor, "factor at the end", kFactor)
        .number("power", options.power, "of what is left of the length; > 0", Range::positive());
    return make_polynomial_schedule(options);
}

Schedule read_exponential(OptionReader& reader) {
    ExponentialScheduleOptions options;
    reader.interval("every", options.every, "length over which the factor is applied once")
        .number("factor", options.factor, "of each such length; > 0", Range::positive())
        .number("minimum", options.minimum, "smallest factor", kFactor);
    return make_exponential_schedule(options);
}

Schedule read_step(OptionReader& reader) {
    StepScheduleOptions options;
    reader.interval("every", options.every, "length between two drops").number("factor", options.factor, "of each drop", kFactor);
    return make_step_schedule(options);
}

Schedule read_multi_step(OptionReader& reader) {
    MultiStepScheduleOptions options;
    read_intervals(reader, "milestones", options.milestones, "where the drops are, e.g. [\"30epoch\", \"60epoch\"]");
    reader.number("factor", options.factor, "of each drop", kFactor);
    return make_multi_step_schedule(options);
}

Schedule read_cosine(OptionReader& reader) {
    CosineScheduleOptions options;
    read_warmup(reader, options.warmup, options.warmup_start);
    read_length(reader, options.length);
    reader.interval("cooldown", options.cooldown, "at the end, at the minimum")
        .number("minimum", options.minimum, "factor at the end of every cycle", kFactor)
        .integer("cycles", options.cycles, "how often it falls", Range::at_least(1))
        .number("cycle_factor", options.cycle_factor, "length of a cycle as a share of the one before; > 0", Range::positive())
        .number("cycle_decay", options.cycle_decay, "top of a cycle as a share of the one before; > 0", Range::positive())
        .number("k_decay", options.k_decay, "above 1 the factor stays high for longer; > 0", Range::positive());
    return make_cosine_schedule(options);
}

Schedule read_one_cycle(OptionReader& reader) {
    OneCycleScheduleOptions options;
    std::string annealing = "cosine";
    read_length(reader, options.length);
    reader.number("rise", options.rise, "share of the length that it rises", Range::between(0, 1))
        .number("initial_factor", options.initial_factor, "factor of the first update", kFactor)
        .number("peak_factor", options.peak_factor, "factor at the peak", kFactor)
        .number("final_factor", options.final_factor, "factor of the last update", kFactor)
        .choice("annealing", annealing, {"cosine", "linear"}, "how it goes from one to the other")
        .boolean("three_phase", options.three_phase, "comes back to initial_factor first, as fast as it rose");
    if (annealing == "linear") options.annealing = OneCycleScheduleOptions::Annealing::Linear;
    return make_one_cycle_schedule(options);
}

Schedule read_warmup_stable_decay(OptionReader& reader) {
    using enum WarmupStableDecayScheduleOptions::Decay;
    WarmupStableDecayScheduleOptions options;
    std::string shape = "sqrt";
    read_warmup(reader, options.warmup, options.warmup_start);
    read_length(reader, options.length);
    reader.interval("decay", options.decay, "length of the decay; a share is one of the stretch that it ends")
        .choice("shape", shape, {"linear", "cosine", "sqrt", "inverse_proportional"}, "of the decay; sqrt is 1 - sqrt(progress)")
        .number("minimum", options.minimum, "factor at the end of a decay", kFactor)
        .interval("continued_from", options.continued_from, "where a run that had decayed was taken up again");
    read_intervals(reader, "earlier_decays", options.earlier_decays, "where decays before the last one end");
    options.shape = shape == "linear" ? Linear : shape == "cosine" ? Cosine : shape == "sqrt" ? Sqrt : InverseProportional;
    return make_warmup_stable_decay_schedule(options);
}

SequencePart read_sequence_part(OptionReader& reader) {
    Interval length;
    reader.interval("length", length, "of this part");
    const json* schedule = reader.part("schedule", "object", "kind and its options");
    return {schedule_from_json(schedule ? *schedule : json::object(), reader.path_of("schedule")), reader.has("length") ? std::optional(length) : std::nullopt};
}

Schedule read_sequence(OptionReader& reader) {
    std::vector<SequencePart> parts = {{make_constant_schedule()}};
    reader.objects("parts", parts, read_sequence_part, "schedules one after the other: {\"length\": \"0.1run\", \"schedule\": {...}}; the last gets the rest");
    return make_sequence_schedule(std::move(parts));
}

Schedule read_deepspeed(OptionReader& reader) {
    DeepSpeedScheduleOptions options;
    std::string warmup_type = "log";
    double highest = 0;
    std::int64_t second_size = 0, second_stairs = 0;
    reader.choice("type", options.type, {"LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR"}, "which one")
        .number("learning_rate", options.learning_rate, "the optimizer's, which rates are a factor of; > 0", Range::positive())
        .integer("total_num_steps", options.total_num_steps, "updates of WarmupDecayLR and WarmupCosineLR; 0: the run's", Range::at_least(0))
        .number("warmup_min_lr", options.warmup_min_lr, "rate of the first update", kFactor)
        .number("warmup_max_lr", highest, "rate after the warm-up; left out: the optimizer's, or 0.001 for WarmupDecayLR", kFactor)
        .integer("warmup_num_steps", options.warmup_num_steps, "updates of the warm-up; at least 2 are made", Range::at_least(0))
        .choice("warmup_type", warmup_type, {"log", "linear"}, "how it rises")
        .number("warmup_min_ratio", options.warmup_min_ratio, "of WarmupCosineLR: factor where the warm-up begins", kFactor)
        .number("cos_min_ratio", options.cos_min_ratio, "of WarmupCosineLR: factor at the end", kFactor)
        .number("lr_range_test_min_lr", options.lr_range_test_min_lr, "of LRRangeTest: the first rate", kFactor)
        .integer("lr_range_test_step_size", options.lr_range_test_step_size, "updates after which it has risen once", Range::at_least(1))
        .number("lr_range_test_step_rate", options.lr_range_test_step_rate, "by how many times the first rate", kFactor)
        .boolean("lr_range_test_staircase", options.lr_range_test_staircase, "whether it rises in steps")
        .number("cycle_min_lr", options.cycle_min_lr, "of OneCycle: the lowest rate", kFactor)
        .number("cycle_max_lr", options.cycle_max_lr, "and the highest", kFactor)
        .integer("cycle_first_step_size", options.cycle_first_step_size, "updates in which it rises", Range::at_least(1))
        .integer("cycle_second_step_size", second_size, "updates in which it falls; left out: as many", Range::at_least(0))
        .integer("cycle_first_stair_count", options.cycle_first_stair_count, "steps in which it rises; 0: a line", Range::at_least(0))
        .integer("cycle_second_stair_count", second_stairs, "steps in which it falls; left out: as many", Range::at_least(0))
        .integer("decay_step_size", options.decay_step_size, "updates of a decay after the cycle; 0: none", Range::at_least(0))
        .number("decay_lr_rate", options.decay_lr_rate, "of that decay", kFactor);
    options.warmup_is_linear = warmup_type == "linear";
    if (reader.has("warmup_max_lr")) options.warmup_max_lr = highest;
    if (reader.has("cycle_second_step_size")) options.cycle_second_step_size = second_size;
    if (reader.has("cycle_second_stair_count")) options.cycle_second_stair_count = second_stairs;
    return make_deepspeed_schedule(options);
}

/// Whatever a factory refuses is said at the part's path.
template <Schedule (*kRead)(OptionReader&)>
Schedule at_its_path(OptionReader& reader) {
    try {
        return kRead(reader);
    } catch (const ConfigError& error) {
        const std::string text = error.what();  // what the reader refuses has its path already
        if (text.starts_with(reader.where())) throw;
        throw ConfigError(fmt::format("{}: {}", reader.where(), text));
    }
}

constexpr auto kSchedules = std::to_array<ScheduleEntry>({
    {"constant", "One factor throughout.", at_its_path<read_constant>},
    {"cosine", "Half a cosine, with warm-up, cycles, k-decay and cooldown.", at_its_path<read_cosine>},
    {"deepspeed", "What DeepSpeed's configuration files call a scheduler, to its numbers.", at_its_path<read_deepspeed>},
    {"exponential", "Multiplied by a factor over every length, and in between.", at_its_path<read_exponential>},
    {"linear", "A straight line to a final factor, after a linear warm-up.", at_its_path<read_linear>},
    {"multi_step", "Drops by a factor at milestones.", at_its_path<read_multi_step>},
    {"one_cycle", "Up to a peak and down to far below the start.", at_its_path<read_one_cycle>},
    {"polynomial", "A power of what is left of the run, after a linear warm-up.", at_its_path<read_polynomial>},
    {"sequence", "Schedules one after the other.", at_its_path<read_sequence>},
    {"step", "Drops by a factor after every so much.", at_its_path<read_step>},
    {"warmup_stable_decay", "Rises, stays, and decays at the end; a longer run decays later.", at_its_path<read_warmup_stable_decay>},
});

}  // namespace

std::span<const ScheduleEntry> library_schedules() { return kSchedules; }

}  // namespace torchbus
