#pragma once
/// A callback: one packaged behaviour, composed at run time.

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/blackboard.hpp>
#include <torchbus/bus.hpp>
#include <torchbus/consensus.hpp>

namespace torchbus {

/// What a callback says of itself before it runs. From this a composition is sorted and checked.
struct Declaration {
    std::vector<std::string> listens;    ///< names of events, as in the JSON form
    std::vector<std::string> reads;      ///< out of batch, output, loss, gradients, parameters, weights_view
    std::vector<std::string> writes;     ///< out of the same
    std::vector<std::string> publishes;  ///< names on the blackboard
    std::vector<std::string> before;     ///< kinds of callbacks that must run later within a stage
    std::vector<std::string> after;      ///< kinds of callbacks that must run earlier within a stage
    SubscriberOptions subscriber = {};   ///< fault policy of its observers
    bool collectives = false;            ///< performs collectives: on all ranks or on none
};

/// Asks for decisions in a callback's name. Thread: any.
class Asker {
public:
    Asker(Requests& requests, std::string requester) : requests_(&requests), requester_(std::move(requester)) {}
    /// The decision is taken at the next decision point. Give a reason that a person can read.
    void ask(Decision decision, std::string reason) const {
        requests_->ask(decision, {requester_, std::move(reason)});
    }

private:
    Requests* requests_;
    std::string requester_;
};

/// All that a callback is handed. Nobody reaches through the trainer.
struct Attachment {
    Subscriber& bus;
    Blackboard& blackboard;
    Consensus& consensus;
    const Moment& moment;  ///< where the run is now, and how long it will be
    Asker asker;
};

class Callback {
public:
    virtual ~Callback() = default;
    /// What the callback is, in snake_case: the name under which run files know it.
    virtual std::string kind() const = 0;
    virtual Declaration declare() const = 0;
    /// Connects the callback's slots. What it is handed lives until detach().
    virtual void attach(Attachment& run) = 0;
    /// Drops the connections; after it the callback may be attached again.
    virtual void detach() = 0;
    /// All that a resumed run needs; an empty object where there is no state.
    virtual nlohmann::json state() const;
    virtual void load_state(const nlohmann::json& state);
};

/// A callback with an id of its own, so that two of one kind live side by side.
struct ComposedCallback {
    std::string id;
    std::shared_ptr<Callback> callback;
    template <std::derived_from<Callback> T>
    ComposedCallback(std::unique_ptr<T> made)  // NOLINT
        : ComposedCallback(std::shared_ptr<Callback>(std::move(made))) {}
    ComposedCallback(std::shared_ptr<Callback> made) : id(made->kind()), callback(std::move(made)) {}  // NOLINT
    ComposedCallback(std::string its_id, std::shared_ptr<Callback> made) : id(std::move(its_id)), callback(std::move(made)) {}
};

}  // namespace torchbus
