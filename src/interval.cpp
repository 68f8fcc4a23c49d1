#include <torchbus/interval.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

struct UnitName {
    std::string_view text;
    Interval::Unit unit;
    double factor;
};

constexpr auto kUnits = [] {
    using enum Interval::Unit;
    return std::array{
        UnitName{"", Natural, 1},       UnitName{"step", Step, 1},      UnitName{"attempt", Attempt, 1},
        UnitName{"micro_batch", MicroBatch, 1}, UnitName{"epoch", Epoch, 1}, UnitName{"sample", Sample, 1},
        UnitName{"token", Token, 1},    UnitName{"run", Run, 1},        UnitName{"s", Second, 1},
        UnitName{"min", Second, 60},    UnitName{"h", Second, 3600},    UnitName{"emission", Emission, 1},
    };
}();

/// Epochs done, with the fraction of the current one where its length is known.
double epochs_done(const Moment& moment) {
    const Position& at = moment.position;
    const auto& per_epoch = moment.length.batches_per_epoch;
    const double part = per_epoch && *per_epoch > 0 ? static_cast<double>(at.in_epoch.micro_batch) / static_cast<double>(*per_epoch) : 0.0;
    return static_cast<double>(at.epoch) + std::min(part, 1.0);
}

double run_done(const Moment& moment) {
    const auto& [epochs, batches_per_epoch, steps] = moment.length;
    if (steps && *steps > 0) return static_cast<double>(moment.position.attempts) / static_cast<double>(*steps);
    if (is_measurable(Interval::Unit::Run, moment)) return epochs_done(moment) / static_cast<double>(*epochs);
    throw ConfigError("an interval in 'run' needs a run of known length; give epochs, or use 'step' or 'epoch'");
}

}  // namespace

Interval::Interval(const char* text) : Interval(parse_interval(text)) {}
Interval::Interval(const std::string& text) : Interval(parse_interval(text)) {}

Interval parse_interval(std::string_view text) {
    double amount = 0;
    const char* end = text.data() + text.size();
    const auto [rest, status] = std::from_chars(text.data(), end, amount);
    const std::string_view suffix(rest, static_cast<std::size_t>(end - rest));
    for (const UnitName& known : kUnits) {
        if (status == std::errc() && std::isfinite(amount) && amount >= 0 && suffix == known.text)
            return Interval(amount * known.factor, known.unit);
    }
    throw ConfigError(fmt::format("'{}' is not an interval; give a number and a unit out of step, attempt, "
                                  "micro_batch, epoch, sample, token, run, s, min, h, e.g. \"100step\" or \"0.5epoch\"",
                                  text));
}

std::string to_string(Interval interval) {
    for (const UnitName& known : kUnits)
        if (known.unit == interval.unit) return fmt::format("{}{}", interval.amount, known.text);
    return {};
}

bool is_measurable(Interval::Unit unit, const Moment& moment) {
    return unit != Interval::Unit::Run || (moment.length.steps && *moment.length.steps > 0) || (moment.length.epochs && *moment.length.epochs > 0);
}

double measure(Interval::Unit unit, const Moment& moment, std::int64_t emissions) {
    using enum Interval::Unit;
    const Position& at = moment.position;
    switch (unit) {
        case Natural:
        case Step: return static_cast<double>(at.step);
        case Attempt: return static_cast<double>(at.attempts);
        case MicroBatch: return static_cast<double>(at.micro_batch);
        case Epoch: return epochs_done(moment);
        case Sample: return static_cast<double>(at.samples);
        case Token: return static_cast<double>(at.tokens);
        case Run: return run_done(moment);
        case Second: return moment.seconds;
        case Emission: return static_cast<double>(emissions);
    }
    return 0;
}

}  // namespace torchbus
