#pragma once
/// What a client wants of a stream.

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/interval.hpp>

#include "chosen_steps.hpp"
#include "message_view.hpp"

namespace torchbus {

struct Subscription {
    std::vector<std::string> events = {"*"};  ///< patterns of names
    std::vector<std::string> fields = {};     ///< of `data`, with dots: "position.step"; none: all of it
    Interval every = {};                      ///< of what comes with every step or batch; 0: all of them
    bool from_now = false;                    ///< nothing of what was before

    bool takes_all() const;
    /// The same for subscriptions that want the same.
    std::string key() const;
};

/// Throws: ConfigError naming `where` for a member that is not known, or not as expected.
Subscription subscription_from_json(const nlohmann::json& wanted, const std::string& where);
/// events=train_*,eval_epoch_end&fields=position.step,loss&every=100step&from=now
/// Throws: ConfigError.
Subscription subscription_from_query(std::string_view query);

/// Takes what a subscription wants from lines that come one after the other.
class LineFilter {
public:
    explicit LineFilter(Subscription subscription) : subscription_(std::move(subscription)) {}
    /// The message as the client gets it; nothing where it does not want it.
    std::optional<std::string> take(const MessageView& message);

private:
    bool is_due(const MessageView& message);

    Subscription subscription_;
    std::map<std::string, bool, std::less<>> wanted_;  ///< by name
    std::map<std::string, ChosenSteps, std::less<>> steps_;  ///< by name
};

}  // namespace torchbus
