#pragma once
// What a schedule is inside: a function of the place on an axis of one unit, and the lengths that it goes by.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torchbus/interval.hpp>

namespace torchbus::detail {

/// Where a curve is asked for.
struct Place {
    const Moment& moment;
    Interval::Unit unit;
    double now;                 ///< in that unit, since the curve began
    std::optional<double> run;  ///< what shares are shares of: the run, or the part of a sequence

    /// A length in the unit of the place. Throws: ConfigError where the run's length is needed and unknown.
    double in_unit(Interval length) const;
};

/// A stretch that must fit into a curve's length.
struct Stretch {
    const char* name;
    Interval length;
};

struct Curve {
    std::function<double(const Place&)> value;
    std::function<bool(const Place&)> in_decay = {};  ///< where it has a decay that is a phase of its own
    std::optional<Interval> length = {};   ///< what it goes over, if it has an end
    std::vector<Stretch> stretches = {};   ///< must fit into `length`, one after the other
    std::vector<Interval> marks = {};      ///< further lengths it goes by
    std::optional<Interval> first_step = {};  ///< until which it stays as it begins; one of the marks
    std::vector<std::shared_ptr<const Curve>> parts = {};  ///< of a sequence; their lengths are marks
    std::optional<Interval::Unit> unit = {};               ///< none: shares of the run only, or no length at all

    /// Where a run is that goes along this curve from its beginning.
    Place place(const Moment& moment) const;
    /// All lengths, those of the parts included.
    std::vector<Interval> all_lengths() const;
};

}  // namespace torchbus::detail
