#pragma once
/// A callback: one packaged behaviour, composed at run time.

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <torchbus/blackboard.hpp>
#include <torchbus/bus.hpp>
#include <torchbus/consensus.hpp>
#include <torchbus/declaration.hpp>
#include <torchbus/run_state.hpp>

namespace torchbus {

/// Asks for decisions in a callback's name. Thread: any.
class Asker {
public:
    Asker(Requests& requests, std::string requester) : requests_(&requests), requester_(std::move(requester)) {}
    /// The decision is taken at the next decision point. Give a reason that a person can read.
    void ask(Decision decision, std::string reason) const {
        requests_->ask(decision, {requester_, std::move(reason)});
    }
    /// `leave_out`: batches that are not trained on any more when they come by again.
    void ask_to_roll_back(std::string reason, const BatchRange& leave_out) const {
        Request request{requester_, std::move(reason)};
        request.leave_out = leave_out;
        requests_->ask(Decision::RollBack, std::move(request));
    }
    /// Sets a number that steers the run at the next decision point, on all ranks. `value`: JSON, as in a run file.
    void ask_to_change(std::string subscriber, std::string option, std::string value, std::string reason) const {
        Request request{requester_, std::move(reason)};
        request.changes.push_back({std::move(subscriber), std::move(option), std::move(value), requester_});
        requests_->ask(Decision::ChangeOption, std::move(request));
    }
    /// The same in the name of somebody for whom the callback speaks.
    Asker for_somebody(const std::string& who) const { return {*requests_, requester_ + ": " + who}; }

private:
    Requests* requests_;
    std::string requester_;
};

/// Sets a number or an interval of another callback, at once; `value` as in a run file. Returns the value until now.
/// Thread: the training thread, at TrainStepStart or RunConfigured. Throws: ConfigError where there is no such callback or option.
using SetOption = std::function<nlohmann::json(const std::string& id, const std::string& option, const nlohmann::json& value)>;

/// All that a callback is handed. Nobody reaches through the trainer.
struct Attachment {
    Subscriber& bus;
    Blackboard& blackboard;
    Consensus& consensus;
    const Moment& moment;  ///< where the run is now, and how long it will be
    Asker asker;
    RunState& run_state;   ///< for savers, and for who puts a state back
    SetOption set_option = {};  ///< for schedules of other callbacks' options; empty outside of a composition
};

/// The first batch of the training data, and what the model makes of it in evaluation mode.
struct TriedBatch {
    Batch batch;
    Output output;
};

/// A run that is about to begin, as Callback::check sees it.
struct Outlook {
    const RunPlan& plan;
    const RunLength& length;
    const Model& model;
    const std::vector<Update>& updates;
    const TriedBatch* tried = nullptr;  ///< where it was tried: by Trainer::check, unless somebody changes batches or outputs on the way
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
    /// What stands against this run, beyond what follows from declarations. Asked when the plan is known.
    virtual std::vector<Finding> check(const Outlook& /*run*/) const { return {}; }
    /// All that a resumed run needs; empty where there is no state.
    virtual SavedState state() const { return {}; }
    virtual void load_state(const SavedState& state);
    /// What each rank of a run of another number of them had, in their order, rank 0's where one had no other. By default
    /// rank 0's is taken. Rank: on all; no collective.
    virtual void load_states_of_ranks(const std::vector<SavedState>& states) { load_state(states.front()); }
    /// How this run's processes agree, where the callback brings that: asked once, before it is attached.
    virtual std::shared_ptr<Consensus> consensus() { return nullptr; }
    /// Changes a number or an interval while a run is under way, at a decision point; `value` as in a run file.
    /// Returns the value until now. Throws: ConfigError for an option that cannot be changed so, or a value out of range.
    /// An option that can be is marked where it is read, by OptionReader::changeable().
    virtual nlohmann::json change_option(std::string_view option, const nlohmann::json& value);

private:
    friend class CallbackClaim;
    std::atomic<bool> claimed_{false};
};

/// One trainer's hold on a callback: it cannot serve two at a time. Throws: ConfigError where it is held already.
class CallbackClaim {
public:
    CallbackClaim(std::shared_ptr<Callback> callback, const std::string& id);
    CallbackClaim(const CallbackClaim&) = delete;
    CallbackClaim& operator=(const CallbackClaim&) = delete;
    ~CallbackClaim() { callback_->claimed_ = false; }

private:
    std::shared_ptr<Callback> callback_;
};

/// A callback with an id of its own, so that two of one kind live side by side.
struct ComposedCallback {
    std::string id;
    std::shared_ptr<Callback> callback;
    std::vector<std::string> before = {};  ///< ids or kinds that must run later; overrides an order of the library's
    std::vector<std::string> after = {};   ///< ids or kinds that must run earlier
    nlohmann::json options = {};           ///< as a run file has them, where it came from one: kept beside its state
    template <std::derived_from<Callback> T>
    ComposedCallback(std::unique_ptr<T> made)  // NOLINT
        : ComposedCallback(std::shared_ptr<Callback>(std::move(made))) {}
    ComposedCallback(std::shared_ptr<Callback> made) : id(made->kind()), callback(std::move(made)) {}  // NOLINT
    ComposedCallback(std::string its_id, std::shared_ptr<Callback> made, std::vector<std::string> ahead_of = {}, std::vector<std::string> behind = {})
        : id(std::move(its_id)), callback(std::move(made)), before(std::move(ahead_of)), after(std::move(behind)) {}
};

}  // namespace torchbus
