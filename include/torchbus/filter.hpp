#pragma once
/// When a connection fires. Belongs to the connection, not to the slot:
///     every("100step")   every(5).after(8)   once("1epoch")   before(1000).in(Mode::Train)   every(100) | once(1)

#include <functional>
#include <optional>
#include <vector>

#include <torchbus/interval.hpp>

namespace torchbus {

/// A union of clauses (a chained condition joins the last one); each clause holds conditions that must all be met. Empty: fires always.
///
/// `every(n)` fires when floor((position − after) / n) has grown since the last emission: a jump fires once,
/// nothing is counted, and resuming changes nothing. every(5).after(8) fires at 13, 18, …
/// A bare number means steps on a trainer event and emissions on a user's own event.
class Filter {
public:
    using Predicate = std::function<bool(const Moment&)>;

    Filter& every(Interval interval);
    Filter& once(Interval at);      ///< when the position first reaches `at`
    Filter& after(Interval bound);  ///< position > bound
    Filter& before(Interval bound); ///< position < bound
    Filter& in(Mode mode);
    Filter& when(Predicate predicate);
    friend Filter operator|(Filter left, const Filter& right);

    bool always() const { return clauses_.empty(); }

    // For the bus.
    /// Gives bare numbers their unit: Step, or Emission for a user's own event.
    void resolve(Interval::Unit natural);
    /// Takes `moment` as the last one seen: at connection, at the start of a run and on resume.
    /// Throws: ConfigError for a share of the run, where a training run begins whose length is not known.
    void rebase(const Moment& moment, std::int64_t emissions, bool run_begins = false);
    /// What it has seen, for a run that goes on: two numbers a clause. An interval in time begins anew with every process.
    std::vector<double> progress() const;
    void restore(const std::vector<double>& progress);
    /// Asked once an emission; remembers what it saw. What cannot be measured is not due.
    bool passes(const Moment& moment, std::int64_t emissions);

private:
    struct Clause {
        std::optional<Interval> every, once, after, before;
        std::optional<Mode> mode;
        Predicate predicate;
        std::int64_t last_ticks = 0;   ///< floor((position − after) / every) at the last emission
        double last_amount = 0;        ///< position in the unit of `once` at the last emission
        std::int64_t ticks(const Moment& moment, std::int64_t emissions) const;
        bool uses(Interval::Unit unit) const;
        bool passes(const Moment& moment, std::int64_t emissions);
    };
    Clause& clause();
    std::vector<Clause> clauses_;
};

inline Filter every(Interval interval) { return Filter().every(interval); }
inline Filter once(Interval at) { return Filter().once(at); }
inline Filter after(Interval bound) { return Filter().after(bound); }
inline Filter before(Interval bound) { return Filter().before(bound); }
inline Filter in(Mode mode) { return Filter().in(mode); }
inline Filter when(Filter::Predicate predicate) { return Filter().when(std::move(predicate)); }

}  // namespace torchbus
