#include "chosen_events.hpp"

#include <algorithm>
#include <set>
#include <string_view>

#include <torchbus/name_pattern.hpp>

#include "message_view.hpp"

namespace torchbus {
namespace {

using Names = std::set<std::string, std::less<>>;

/// With which a run begins and ends.
const Names kOfRuns = {"subscriber_attached", "run_configured", "training_run_start", "run_closed"};
/// After which numbers are new.
const Names kWithNumbers = {"train_step_end", "train_epoch_end", "eval_epoch_end", "training_run_epoch_end"};
/// After which it is told what subscribers cost, beside those.
const Names kWithAccounting = {"training_run_epoch_end", "training_run_end", "evaluation_run_end", "prediction_run_end"};

}  // namespace

ChosenEvents::ChosenEvents(std::vector<std::string> patterns, Interval every)
    : patterns_(std::move(patterns)), every_(every), takes_numbers_(matches_any(patterns_, "numbers")), takes_accounting_(matches_any(patterns_, "accounting")) {
    if (every_.unit == Interval::Unit::Natural) every_.unit = Interval::Unit::Step;
}

bool ChosenEvents::may_take_users() const {
    return std::ranges::any_of(patterns_, [](const std::string& pattern) { return !captured_form(pattern) && !detail::is_message_of_streams(pattern); });
}

bool ChosenEvents::needs(const std::string& event) const {
    return kOfRuns.contains(event) || matches_any(patterns_, event) || ((takes_numbers_ || takes_accounting_) && kWithNumbers.contains(event)) || (takes_accounting_ && kWithAccounting.contains(event));
}

ChosenEvents::Chosen& ChosenEvents::of(const AnyEvent& event) {
    if (event.type_index() >= chosen_.size()) chosen_.resize(event.type_index() + 1);
    Chosen& its = chosen_[event.type_index()];
    if (!its.is_known) its = look_up(event);
    return its;
}

ChosenEvents::Chosen ChosenEvents::look_up(const AnyEvent& event) const {
    const std::string& name = event.name();
    const bool is_end_of_kind = kWithAccounting.contains(name), has_numbers = kWithNumbers.contains(name);
    return {.is_known = true, .may_be_first = !event.is_of_library() || kOfRuns.contains(name), .is_taken = matches_any(patterns_, name), .is_frequent = comes_often(name),
            .has_numbers = takes_numbers_ && has_numbers, .has_accounting = takes_accounting_ && (is_end_of_kind || has_numbers), .is_end_of_kind = is_end_of_kind,
            .form = event.is_of_library() ? captured_form(name) : nullptr};
}

void ChosenEvents::forget_steps() {
    for (Chosen& event : chosen_) event.steps = {};
}

}  // namespace torchbus
