#pragma once
/// "100step", "1epoch", "0.1run", "30s", "1e6sample": written the same in code, JSON and on the command line.

#include <cstdint>
#include <string>
#include <string_view>

#include <torchbus/position.hpp>

namespace torchbus {

/// An amount of progress with its unit.
struct Interval {
    enum class Unit : std::uint8_t {
        Natural,  ///< a bare number: steps on a trainer event, emissions on a user's own event
        Step,
        Attempt,
        MicroBatch,
        Epoch,  ///< fractions are allowed where the length of an epoch is known
        Sample,
        Token,
        Run,     ///< fraction of the run; needs a known length
        Second,  ///< s, min and h; measured where it is asked, so never equal on two ranks
        Emission,
    };
    double amount = 0;
    Unit unit = Unit::Natural;

    constexpr Interval() = default;
    constexpr Interval(double value, Unit of) : amount(value), unit(of) {}
    constexpr Interval(int value) : amount(value) {}           // NOLINT: every(100) should read so
    constexpr Interval(std::int64_t value) : amount(static_cast<double>(value)) {}  // NOLINT
    Interval(const char* text);        // NOLINT: every("100step") should read so
    Interval(const std::string& text);  // NOLINT

    bool operator==(const Interval&) const = default;
};

/// Throws: ConfigError naming the text and the accepted units.
Interval parse_interval(std::string_view text);
std::string to_string(Interval interval);

/// Whether measure() has an answer: a share of the run has none where the run's length is not known.
bool is_measurable(Interval::Unit unit, const Moment& moment);

/// How much of `unit` is done at `moment`. `emissions` serves Unit::Emission.
/// Throws: ConfigError for Run where the length of the run is unknown.
double measure(Interval::Unit unit, const Moment& moment, std::int64_t emissions = 0);

}  // namespace torchbus
