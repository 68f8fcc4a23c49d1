// Lengths of schedules: their units, what they come to in a run, and whether they fit into it.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <torchbus/callback.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/schedule.hpp>

#include "schedule_curve.hpp"

namespace torchbus {
namespace {

using detail::Curve;
using detail::Place;
using Unit = Interval::Unit;

std::string name_of(Unit unit) { return to_string(Interval(1.0, unit)).substr(1); }

Unit natural(Unit unit) { return unit == Unit::Natural ? Unit::Step : unit; }

/// The unit that a schedule counts in. None: shares of the run only.
std::optional<Unit> common_unit(const std::vector<Interval>& lengths) {
    std::optional<Unit> common;
    for (const Interval& length : lengths) {
        const Unit unit = natural(length.unit);
        if (length.amount == 0 || unit == Unit::Run || unit == common) continue;
        if (unit == Unit::Second || unit == Unit::Emission)
            throw ConfigError(fmt::format("a schedule cannot go by {}: a resumed run would not find its place; give its lengths in steps, epochs or samples",
                                          unit == Unit::Second ? "time" : "emissions"));
        const bool convertible = common && std::max(unit, *common) == Unit::Epoch && std::min(unit, *common) == Unit::Step;
        if (common && !convertible)
            throw ConfigError(fmt::format("a schedule has lengths in {} and in {}, which do not go together; give them in one unit", name_of(*common), name_of(unit)));
        common = convertible ? Unit::Step : unit;
    }
    return common;
}

std::optional<double> length_of_run(Unit unit, const RunLength& length) {
    const auto known = [](std::optional<std::int64_t> count) { return count && *count > 0 ? std::optional(static_cast<double>(*count)) : std::nullopt; };
    switch (unit) {
        case Unit::Step:
        case Unit::Attempt: return known(length.steps);
        case Unit::Epoch: return known(length.epochs);
        case Unit::MicroBatch:
            return known(length.epochs) && known(length.batches_per_epoch) ? std::optional(*known(length.epochs) * *known(length.batches_per_epoch)) : std::nullopt;
        default: return std::nullopt;
    }
}

}  // namespace

double Place::in_unit(Interval length) const {
    const Unit from = natural(length.unit);
    if (length.amount == 0 || from == unit) return length.amount;
    const bool whole = unit == Unit::Step || unit == Unit::Attempt || unit == Unit::MicroBatch;
    const auto rounded = [whole](double amount) { return whole ? std::floor(amount + 1e-9) : amount; };
    if (from == Unit::Run && run) return rounded(length.amount * *run);
    const auto steps = length_of_run(Unit::Step, moment.length), epochs = length_of_run(Unit::Epoch, moment.length);
    if (from == Unit::Epoch && unit == Unit::Step && steps && epochs) return rounded(length.amount * *steps / *epochs);
    const bool by_data = unit == Unit::Sample || unit == Unit::Token;
    throw ConfigError(by_data ? fmt::format("a schedule's length of {} cannot be told in {}s; give all of its lengths in {}s", to_string(length), name_of(unit), name_of(unit))
                              : fmt::format("a schedule's length of {} needs a run of known length; give it in steps, e.g. \"1000step\"", to_string(length)));
}

std::vector<Interval> Curve::all_lengths() const {
    std::vector<Interval> all = marks;
    if (length) all.push_back(*length);
    for (const auto& stretch : stretches) all.push_back(stretch.length);
    for (const auto& part : parts)
        for (const Interval& each : part->all_lengths()) all.push_back(each);
    return all;
}

Place Curve::place(const Moment& moment) const {
    const bool in_epochs = !moment.length.steps && moment.length.epochs;  // of data without a length
    const Unit by = unit.value_or(in_epochs ? Unit::Epoch : Unit::Step);
    return {moment, by, measure(by, moment), length_of_run(by, moment.length)};
}

Schedule::Schedule(detail::Curve curve) {
    curve.unit = common_unit(curve.all_lengths());
    curve_ = std::make_shared<const Curve>(std::move(curve));
}

Schedule::Schedule(std::in_place_t, std::function<double(const Moment&)> function) {
    Curve curve{[function = std::move(function)](const Place& place) { return function(place.moment); }};
    curve_ = std::make_shared<const Curve>(std::move(curve));
}

double Schedule::operator()(const Moment& moment) const { return curve_->value(curve_->place(moment)); }

bool Schedule::has_decay() const { return curve_ && curve_->in_decay; }

bool Schedule::in_decay(const Moment& moment) const { return has_decay() && curve_->in_decay(curve_->place(moment)); }

namespace {

/// Finds what does not fit into a curve of which `place` is the beginning.
class Fit {
public:
    Fit(std::string_view owner, std::vector<Finding>& findings) : owner_(owner), findings_(findings) {}

    void check(const Curve& curve, const Place& place) {
        const std::optional<double> length = curve.length ? std::optional(place.in_unit(*curve.length)) : place.run;
        if (curve.length && place.run && *length > *place.run)
            warn(fmt::format("the schedule goes over {}, and there are {}; its end is not reached", amount(*length, place), amount(*place.run, place)));
        for (const Interval& mark : curve.marks) static_cast<void>(place.in_unit(mark));
        if (curve.first_step && place.run && place.in_unit(*curve.first_step) >= *place.run)
            warn(fmt::format("the schedule's first step comes after {}, and there are {}; it is not reached", amount(place.in_unit(*curve.first_step), place), amount(*place.run, place)));
        check_stretches(curve, place, length);
        for (std::size_t i = 0; i < curve.parts.size(); ++i) {
            const auto of_part = i < curve.marks.size() ? std::optional(place.in_unit(curve.marks[i])) : rest(curve, place);
            check(*curve.parts[i], Place{place.moment, place.unit, 0, of_part});
        }
    }

private:
    void check_stretches(const Curve& curve, const Place& place, std::optional<double> length) {
        double sum = 0;
        std::string names;
        for (const auto& [name, stretch] : curve.stretches) {
            const double each = place.in_unit(stretch);
            sum += each;
            if (each > 0) names += fmt::format("{}{} ({})", names.empty() ? "" : ", ", name, to_string(Interval(stretch.amount, natural(stretch.unit))));
        }
        if (length && sum > *length)
            warn(fmt::format("the schedule's {} take {}, and it is {} long; shorten them, or train for longer", names, amount(sum, place), amount(*length, place)));
    }
    static std::optional<double> rest(const Curve& curve, const Place& place) {
        if (!place.run) return {};
        double left = *place.run;
        for (const Interval& taken : curve.marks) left -= place.in_unit(taken);
        return std::max(left, 0.0);
    }
    static std::string amount(double value, const Place& place) { return fmt::format("{:.6g} {}s", value, name_of(place.unit)); }
    void warn(const std::string& text) { findings_.push_back({Finding::Weight::Warning, fmt::format("'{}': {}", owner_, text)}); }

    std::string_view owner_;
    std::vector<Finding>& findings_;
};

/// Epochs are reckoned as if all of them were made.
bool is_cut(const RunPlan& plan, const RunLength& length) {
    if (!plan.max_steps || !length.epochs || !length.batches_per_epoch) return false;
    const std::int64_t windows = (*length.batches_per_epoch + plan.micro_batches_per_step - 1) / plan.micro_batches_per_step;
    return *plan.max_steps < windows * *length.epochs;
}

}  // namespace

std::vector<Finding> check_schedule(const Schedule& schedule, const Outlook& run, std::string_view owner) {
    std::vector<Finding> findings;
    if (!schedule) return findings;
    const Curve& curve = *schedule.curve();
    Moment moment;
    moment.length = run.length;
    try {
        const Place place = curve.place(moment);
        Fit(owner, findings).check(curve, place);
    } catch (const ConfigError& error) {
        findings.push_back({Finding::Weight::Error, fmt::format("'{}': {}", owner, error.what())});
        return findings;
    }
    const auto lengths = curve.all_lengths();
    const auto uses = [&](Unit unit) { return std::ranges::any_of(lengths, [&](const Interval& each) { return each.amount > 0 && natural(each.unit) == unit; }); };
    if (is_cut(run.plan, run.length) && uses(Unit::Epoch) && (uses(Unit::Run) || uses(Unit::Step)))
        findings.push_back({Finding::Weight::Warning,
                            fmt::format("'{}': the schedule has lengths in epochs beside others, and max_steps ends the run within the {} epochs by which they are reckoned; "
                                        "give all lengths in steps", owner, *run.length.epochs)});
    return findings;
}

std::vector<double> sample_schedule(const Schedule& schedule, const SampledRun& run) {
    if (!run.length.steps) throw ConfigError("the curve of a schedule needs a run of known length; give epochs of data with a length, or max_steps");
    const std::int64_t steps = *run.length.steps;
    const std::int64_t epochs = std::max<std::int64_t>(run.length.epochs.value_or(1), 1);
    const std::int64_t per_epoch = std::max<std::int64_t>(run.steps_per_epoch > 0 ? run.steps_per_epoch : (steps + epochs - 1) / epochs, 1);
    const double batches = static_cast<double>(run.length.batches_per_epoch.value_or(per_epoch)) / static_cast<double>(per_epoch);
    std::vector<double> values;
    values.reserve(static_cast<std::size_t>(steps));
    Moment moment;
    moment.length = run.length;
    moment.length.batches_per_epoch = run.length.batches_per_epoch.value_or(per_epoch);
    for (std::int64_t step = 0; step < steps; ++step) {
        Position& at = moment.position;
        at.step = at.attempts = step;
        at.epoch = step / per_epoch;
        at.in_epoch.step = step % per_epoch;
        at.in_epoch.micro_batch = static_cast<std::int64_t>(std::llround(static_cast<double>(at.in_epoch.step) * batches));
        at.micro_batch = at.epoch * *moment.length.batches_per_epoch + at.in_epoch.micro_batch;
        at.samples = static_cast<std::int64_t>(std::llround(static_cast<double>(step) * run.samples_per_step));
        values.push_back(schedule(moment));
    }
    return values;
}

}  // namespace torchbus
