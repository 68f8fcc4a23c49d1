#include <torchbus/optim/schedule.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "schedule_curve.hpp"

namespace torchbus {
namespace {

using detail::Curve;
using detail::Place;
using detail::Stretch;

void require(bool holds, const char* kind, const char* name, double value, const char* advice) {
    if (!holds) throw ConfigError(fmt::format("{} schedule: {}: {} is out of range; give {}", kind, name, value, advice));
}

/// From 0 to 1 over `length`; what has no length is over.
double progress(double done, double length) { return length > 0 ? std::clamp(done / length, 0.0, 1.0) : 1.0; }

double half_cosine(double progress) { return 0.5 * (1 + std::cos(std::numbers::pi * progress)); }

struct WarmUp {
    Interval length;
    double start;

    void check(const char* kind) const { require(start >= 0, kind, "warmup_start", start, "a factor of at least 0"); }
    /// The factor while it lasts.
    std::optional<double> factor(const Place& place) const {
        const double end = place.in_unit(length);
        if (place.now >= end) return {};
        return start + (1 - start) * place.now / end;
    }
};

/// A warm-up, then `decay(progress)` over the rest of `length`.
template <class Decay>
Schedule after_warmup(WarmUp warmup, Interval length, Decay decay) {
    Curve curve{[=](const Place& place) {
        if (const auto factor = warmup.factor(place)) return *factor;
        const double begin = place.in_unit(warmup.length);
        return decay(progress(place.now - begin, place.in_unit(length) - begin));
    }};
    curve.length = length;
    curve.stretches = {{"warmup", warmup.length}};
    return Schedule(std::move(curve));
}

/// How often `every` has passed.
double times(const Place& place, Interval every) {
    const double length = place.in_unit(every);
    return length > 0 ? place.now / length : 0.0;
}

}  // namespace

Schedule make_constant_schedule(double factor) {
    return Schedule(Curve{[factor](const Place&) { return factor; }});
}

Schedule make_linear_schedule(LinearScheduleOptions options) {
    const WarmUp warmup{options.warmup, options.warmup_start};
    warmup.check("linear");
    return after_warmup(warmup, options.length, [last = options.final_factor](double done) { return 1 + (last - 1) * done; });
}

Schedule make_polynomial_schedule(PolynomialScheduleOptions options) {
    const WarmUp warmup{options.warmup, options.warmup_start};
    warmup.check("polynomial");
    require(options.power > 0, "polynomial", "power", options.power, "a positive number, e.g. 0.9");
    return after_warmup(warmup, options.length, [last = options.final_factor, power = options.power](double done) {
        return last + (1 - last) * std::pow(1 - done, power);
    });
}

Schedule make_exponential_schedule(ExponentialScheduleOptions options) {
    require(options.factor > 0, "exponential", "factor", options.factor, "a positive number, e.g. 0.95");
    require(options.every.amount > 0, "exponential", "every", options.every.amount, "a positive length, e.g. \"1epoch\"");
    Curve curve{[options](const Place& place) { return std::max(options.minimum, std::pow(options.factor, times(place, options.every))); }};
    curve.marks = {options.every};
    return Schedule(std::move(curve));
}

Schedule make_step_schedule(StepScheduleOptions options) {
    require(options.every.amount > 0, "step", "every", options.every.amount, "a positive length, e.g. \"10epoch\"");
    // A whole epoch may be reckoned as 0.9999… of one.
    Curve curve{[options](const Place& place) { return std::pow(options.factor, std::floor(times(place, options.every) + 1e-9)); }};
    curve.marks = {options.every};
    curve.first_step = options.every;
    return Schedule(std::move(curve));
}

Schedule make_multi_step_schedule(MultiStepScheduleOptions options) {
    if (options.milestones.empty()) throw ConfigError("multi_step schedule: milestones: there are none; give at least one, e.g. \"30epoch\"");
    Curve curve{[options](const Place& place) {
        const auto passed = std::ranges::count_if(options.milestones, [&](Interval at) { return place.now + 1e-9 >= place.in_unit(at); });
        return std::pow(options.factor, static_cast<double>(passed));
    }};
    curve.marks = options.milestones;
    curve.length = options.milestones.back();
    return Schedule(std::move(curve));
}

Schedule make_cosine_schedule(CosineScheduleOptions options) {
    const WarmUp warmup{options.warmup, options.warmup_start};
    warmup.check("cosine");
    require(options.cycles >= 1, "cosine", "cycles", static_cast<double>(options.cycles), "at least 1");
    require(options.cycle_factor > 0, "cosine", "cycle_factor", options.cycle_factor, "a positive number, e.g. 2");
    require(options.cycle_decay > 0, "cosine", "cycle_decay", options.cycle_decay, "a positive number, e.g. 0.5");
    require(options.k_decay > 0, "cosine", "k_decay", options.k_decay, "a positive number, e.g. 1.5");
    Curve curve{[=](const Place& place) {
        if (const auto factor = warmup.factor(place)) return *factor;
        double done = place.now - place.in_unit(options.warmup);
        const double all = place.in_unit(options.length) - place.in_unit(options.warmup) - place.in_unit(options.cooldown);
        if (done >= all) return options.minimum;
        double relative = 0;  // length of all cycles, the first being 1
        for (std::int64_t i = 0; i < options.cycles; ++i) relative += std::pow(options.cycle_factor, static_cast<double>(i));
        double length = all / relative, top = 1;
        for (std::int64_t i = 1; i < options.cycles && done >= length; ++i) {
            done -= length;
            length *= options.cycle_factor;
            top *= options.cycle_decay;
        }
        return options.minimum + (top - options.minimum) * half_cosine(std::pow(progress(done, length), options.k_decay));
    }};
    curve.length = options.length;
    curve.stretches = {{"warmup", options.warmup}, {"cooldown", options.cooldown}};
    return Schedule(std::move(curve));
}

Schedule make_one_cycle_schedule(OneCycleScheduleOptions options) {
    const double most = options.three_phase ? 0.5 : 1.0;
    require(options.rise >= 0 && options.rise <= most, "one_cycle", "rise", options.rise,
            options.three_phase ? "a share from 0 to 0.5: it comes down as long as it went up" : "a share from 0 to 1");
    Curve curve{[options](const Place& place) {
        const double all = place.in_unit(options.length);
        const double one = place.unit == Interval::Unit::Step ? 1 : 0;  // the last update, not the end, has the last factor
        struct Leg {
            double end, to;
        };
        std::vector<Leg> legs = {{options.rise * all - one, options.peak_factor}};
        if (options.three_phase) legs.push_back({2 * options.rise * all - 2 * one, options.initial_factor});
        legs.push_back({all - one, options.final_factor});
        const bool cosine = options.annealing == OneCycleScheduleOptions::Annealing::Cosine;
        double begin = 0, from = options.initial_factor;
        for (std::size_t i = 0;; ++i) {
            const auto [end, to] = legs[i];
            if (place.now <= end || i + 1 == legs.size()) {
                const double done = progress(place.now - begin, end - begin);
                return cosine ? to + (from - to) * half_cosine(done) : from + (to - from) * done;
            }
            begin = end;
            from = to;
        }
    }};
    curve.length = options.length;
    return Schedule(std::move(curve));
}

namespace {

double decayed(WarmupStableDecayScheduleOptions::Decay shape, double done, double minimum) {
    using enum WarmupStableDecayScheduleOptions::Decay;
    switch (shape) {
        case Linear: return 1 + (minimum - 1) * done;
        case Cosine: return minimum + (1 - minimum) * half_cosine(done);
        case Sqrt: return minimum + (1 - minimum) * (1 - std::sqrt(done));
        case InverseProportional: return 1 / (done / minimum + 1 - done);
    }
    return 1;
}

}  // namespace

Schedule make_warmup_stable_decay_schedule(WarmupStableDecayScheduleOptions options) {
    const WarmUp warmup{options.warmup, options.warmup_start};
    warmup.check("warmup_stable_decay");
    require(options.minimum >= 0, "warmup_stable_decay", "minimum", options.minimum, "a factor of at least 0");
    if (options.shape == WarmupStableDecayScheduleOptions::Decay::InverseProportional)
        require(options.minimum > 0, "warmup_stable_decay", "minimum", options.minimum, "a positive factor, e.g. 0.01: the inverse-proportional decay divides by it");
    struct Phase {
        std::optional<double> warmup;  ///< the factor, while it warms up
        double begin, length;          ///< of the decay that ends this stretch
    };
    const auto phase = [=](const Place& place) -> Phase {
        double begin = place.in_unit(options.continued_from);
        const bool continued = begin > 0 && place.now >= begin;
        if (!continued) begin = 0;
        if (const auto factor = warmup.factor(place); factor && !continued) return {factor, 0, 0};
        double end = place.in_unit(options.length);
        for (const Interval& earlier : options.earlier_decays) {  // in order
            const double at = place.in_unit(earlier);
            if (at <= begin || at >= end) continue;
            if (place.now < at) {
                end = at;
                break;
            }
            begin = at;
        }
        const double decay = std::min(Place{place.moment, place.unit, place.now, end - begin}.in_unit(options.decay), end - begin);
        return {{}, end - decay, decay};
    };
    const auto decays = [](const Phase& at, const Place& place) { return !at.warmup && at.length > 0 && place.now >= at.begin; };
    Curve curve{[=](const Place& place) {
        const Phase at = phase(place);
        if (!decays(at, place)) return at.warmup.value_or(1.0);
        return decayed(options.shape, progress(place.now - at.begin, at.length), options.minimum);
    }};
    curve.in_decay = [=](const Place& place) { return decays(phase(place), place); };
    curve.length = options.length;
    curve.stretches = {{"warmup", options.warmup}, {"decay", options.decay}};
    curve.marks = options.earlier_decays;
    curve.marks.push_back(options.continued_from);
    return Schedule(std::move(curve));
}

Schedule make_sequence_schedule(std::vector<SequencePart> parts) {
    if (parts.empty()) throw ConfigError("sequence schedule: parts: there are none; give at least one schedule");
    Curve curve;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        if (!parts[i].schedule) throw ConfigError(fmt::format("sequence schedule: parts[{}]: there is no schedule", i));
        if (!parts[i].length && i + 1 < parts.size())
            throw ConfigError(fmt::format("sequence schedule: parts[{}]: there is no length; only the last part may go without", i));
        curve.parts.push_back(parts[i].schedule.curve());
        if (parts[i].length) curve.marks.push_back(*parts[i].length);
    }
    curve.stretches.reserve(curve.marks.size());
    for (const Interval& length : curve.marks) curve.stretches.push_back({"a part", length});
    const bool has_decay = std::ranges::any_of(parts, [](const SequencePart& part) { return part.schedule.has_decay(); });
    const auto in_part = [parts = std::move(parts)](const Place& place, auto use) {
        double begin = 0;
        for (std::size_t i = 0;; ++i) {
            std::optional<double> length = parts[i].length ? std::optional(place.in_unit(*parts[i].length)) : std::nullopt;
            if (!length && place.run) length = std::max(*place.run - begin, 0.0);
            if (i + 1 == parts.size() || place.now < begin + *length)
                return use(*parts[i].schedule.curve(), Place{place.moment, place.unit, place.now - begin, length});
            begin += *length;
        }
    };
    curve.value = [in_part](const Place& place) { return in_part(place, [](const Curve& part, const Place& within) { return part.value(within); }); };
    if (has_decay) curve.in_decay = [in_part](const Place& place) { return in_part(place, [](const Curve& part, const Place& within) { return part.in_decay && part.in_decay(within); }); };
    return Schedule(std::move(curve));
}

}  // namespace torchbus
