#include <torchbus/filter.hpp>

#include <cmath>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

/// Fractions such as 0.1run are not exact in binary; a tick is due when it is reached up to this part of it.
constexpr double kTickTolerance = 1e-9;

Interval positive(Interval interval, const char* name) {
    if (interval.amount > 0) return interval;
    throw ConfigError(fmt::format("{}({}): the interval must be positive, e.g. {}(\"100step\")", name,
                                  to_string(interval), name));
}

}  // namespace

Filter::Clause& Filter::clause() {
    if (clauses_.empty()) clauses_.emplace_back();
    return clauses_.back();
}

Filter& Filter::every(Interval interval) { clause().every = positive(interval, "every"); return *this; }
Filter& Filter::once(Interval at) { clause().once = positive(at, "once"); return *this; }
Filter& Filter::after(Interval bound) { clause().after = bound; return *this; }
Filter& Filter::before(Interval bound) { clause().before = bound; return *this; }
Filter& Filter::in(Mode mode) { clause().mode = mode; return *this; }
Filter& Filter::when(Predicate predicate) { clause().predicate = std::move(predicate); return *this; }

Filter operator|(Filter left, const Filter& right) {
    if (left.always() || right.always()) return {};
    left.clauses_.insert(left.clauses_.end(), right.clauses_.begin(), right.clauses_.end());
    return left;
}

void Filter::resolve(Interval::Unit natural) {
    for (Clause& clause : clauses_)
        for (auto* interval : {&clause.every, &clause.once, &clause.after, &clause.before})
            if (*interval && (*interval)->unit == Interval::Unit::Natural) (*interval)->unit = natural;
    for (const Clause& clause : clauses_)
        if (clause.every && clause.after && clause.every->unit != clause.after->unit)
            throw ConfigError(fmt::format("every({}).after({}): the two must have the same unit",
                                          to_string(*clause.every), to_string(*clause.after)));
}

std::int64_t Filter::Clause::ticks(const Moment& moment, std::int64_t emissions) const {
    const double start = after ? after->amount : 0.0;
    const double done = measure(every->unit, moment, emissions) - start;
    return static_cast<std::int64_t>(std::floor(std::max(done, 0.0) / every->amount + kTickTolerance));
}

bool Filter::Clause::uses(Interval::Unit unit) const {
    const auto is = [unit](const std::optional<Interval>& interval) { return interval && interval->unit == unit; };
    return is(every) || is(once) || is(after) || is(before);
}

void Filter::rebase(const Moment& moment, std::int64_t emissions, bool run_begins) {
    for (Clause& clause : clauses_) {
        if (clause.uses(Interval::Unit::Run) && !is_measurable(Interval::Unit::Run, moment)) {
            if (run_begins && moment.mode == Mode::Train) measure(Interval::Unit::Run, moment);  // throws
            clause.last_ticks = 0;
            clause.last_amount = 0;
            continue;
        }
        if (clause.every) clause.last_ticks = clause.ticks(moment, emissions);
        if (clause.once) clause.last_amount = measure(clause.once->unit, moment, emissions);
    }
}

std::vector<double> Filter::progress() const {
    std::vector<double> progress;
    for (const Clause& clause : clauses_) progress.insert(progress.end(), {static_cast<double>(clause.last_ticks), clause.last_amount});
    return progress;
}

void Filter::restore(const std::vector<double>& progress) {
    if (progress.size() != 2 * clauses_.size()) return;  // of another filter
    for (std::size_t i = 0; i < clauses_.size(); ++i) {
        if (clauses_[i].uses(Interval::Unit::Second)) continue;
        clauses_[i].last_ticks = static_cast<std::int64_t>(progress[2 * i]);
        clauses_[i].last_amount = progress[2 * i + 1];
    }
}

bool Filter::Clause::passes(const Moment& moment, std::int64_t emissions) {
    if (mode && moment.mode != *mode) return false;  // before a tick is taken: it belongs to an event of the right mode
    if (uses(Interval::Unit::Run) && !is_measurable(Interval::Unit::Run, moment)) return false;
    bool due = true;
    if (every) {
        const std::int64_t now = ticks(moment, emissions);
        due = now > last_ticks;
        last_ticks = now;
    }
    if (once) {
        const double now = measure(once->unit, moment, emissions) * (1 + kTickTolerance);
        due = due && last_amount < once->amount && now >= once->amount;
        last_amount = now;
    }
    due = due && (!after || measure(after->unit, moment, emissions) > after->amount);
    due = due && (!before || measure(before->unit, moment, emissions) < before->amount);
    return due && (!predicate || predicate(moment));
}

bool Filter::passes(const Moment& moment, std::int64_t emissions) {
    bool any = clauses_.empty();
    for (Clause& clause : clauses_) any = clause.passes(moment, emissions) || any;  // every clause must see it
    return any;
}

}  // namespace torchbus
