#include <torchbus/callback.hpp>

#include <algorithm>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {

bool Outlook::has_split(Mode mode) const {
    return std::ranges::any_of(plan.splits, [mode](const SplitPlan& split) { return split.mode == mode; });
}

void Callback::load_state(const SavedState&) {}

double Callback::change_option(std::string_view option, double /*value*/) {
    throw ConfigError(fmt::format("{}: the option '{}' cannot be changed while a run is under way", kind(), option));
}

CallbackClaim::CallbackClaim(std::shared_ptr<Callback> callback, const std::string& id) : callback_(std::move(callback)) {
    if (!callback_) throw ConfigError(fmt::format("the callback '{}' is empty; give one that was made", id));
    if (callback_->claimed_.exchange(true))
        throw ConfigError(fmt::format("the callback '{}' serves another trainer already, or stands twice in this one; make one for each", id));
}

}  // namespace torchbus
