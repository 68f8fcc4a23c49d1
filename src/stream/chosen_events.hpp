#pragma once
/// Which events a sink takes of a run, and what else is told with each.

#include <string>
#include <vector>

#include <torchbus/event_type.hpp>
#include <torchbus/interval.hpp>

#include "captured_event.hpp"
#include "chosen_steps.hpp"

namespace torchbus {

class ChosenEvents {
public:
    /// Of one type of event.
    struct Chosen {
        bool is_known = false;
        bool may_be_first = false;    ///< of a run
        bool is_taken = false;        ///< the event itself, where it has a JSON form
        bool is_frequent = false;     ///< comes more often than an epoch or a decision
        bool has_numbers = false;     ///< those that are new are told after it
        bool has_accounting = false;  ///< it is told after it what subscribers cost
        bool is_end_of_kind = false;  ///< of an epoch or a run: accounting is told however soon after the last
        const CapturedForm* form = nullptr;  ///< null: it is copied as text
        ChosenSteps steps = {};
    };

    /// `patterns`: of names, "numbers" and "accounting" among them; `every`: of what is frequent.
    ChosenEvents(std::vector<std::string> patterns, Interval every);

    const std::vector<std::string>& patterns() const { return patterns_; }
    const Interval& every() const { return every_; }
    /// Whether an event of a user's own may be taken.
    bool may_take_users() const;
    /// Whether the event of the library of this name is of the begin or the end of a run, or it or something after it is taken.
    bool needs(const std::string& event) const;
    Chosen& of(const AnyEvent& event);
    /// Whether one that is frequent is of a step that is chosen.
    bool is_due(Chosen& event, const Moment& moment) const {
        return !event.is_frequent || event.steps.take(moment.position.attempts, [&] { return measure(every_.unit, moment) / every_.amount; });
    }
    void forget_steps();

private:
    Chosen look_up(const AnyEvent& event) const;

    std::vector<std::string> patterns_;
    Interval every_;
    bool takes_numbers_, takes_accounting_;
    std::vector<Chosen> chosen_;  ///< by index of the type: a table that is hashed costs two more misses of the cache an event
};

}  // namespace torchbus
