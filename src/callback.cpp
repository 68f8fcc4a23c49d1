#include <torchbus/callback.hpp>

#include <fmt/format.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>

namespace torchbus {

void Callback::load_state(const SavedState&) {}

nlohmann::json Callback::change_option(std::string_view option, const nlohmann::json& /*value*/) {
    refuse_change(kind(), option);
}

CallbackClaim::CallbackClaim(std::shared_ptr<Callback> callback, const std::string& id) : callback_(std::move(callback)) {
    if (!callback_) throw ConfigError(fmt::format("the callback '{}' is empty; give one that was made", id));
    if (callback_->claimed_.exchange(true))
        throw ConfigError(fmt::format("the callback '{}' serves another trainer already, or stands twice in this one; make one for each", id));
}

}  // namespace torchbus
