#pragma once
/// The callbacks that a trainer holds: in which order they were attached, what was checked, and changes of them while
/// a run is under way.

#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <vector>

#include <torchbus/arrangement.hpp>
#include <torchbus/callback.hpp>
#include <torchbus/run_config.hpp>

#include "changed_options.hpp"

namespace torchbus {

class AttachedComposition {
public:
    /// What every callback is handed; lives longer than this.
    struct Surroundings {
        Bus& bus;
        Blackboard& blackboard;
        Consensus& consensus;
        Requests& requests;
        RunState& run_state;
        std::vector<Update>& updates;
        /// Tells a newcomer of the run under way, and throws where that stands against it.
        std::function<void(const std::string& id)> introduce;
        /// The holder of these weights views has left.
        std::function<void(const std::vector<std::string>& views)> forget_views;
    };
    explicit AttachedComposition(Surroundings surroundings);
    ~AttachedComposition();

    /// Sorts, checks and attaches. Throws: ConfigError with all that stands against the composition.
    void attach_all(std::vector<ComposedCallback> callbacks);

    /// Changes to be made at the next decision point; those of observers at the next poll point; all of them at once
    /// where no run is under way. Thread: any; between runs that of the trainer.
    std::future<void> attach(ComposedCallback callback, std::string requester);
    std::future<void> detach(std::string id, std::string requester);
    std::future<void> change_option(std::string id, std::string option, nlohmann::json value, std::string requester);
    /// The same at once, as it was decided; what refuses it is told. Requires: a decision point.
    void change_now(const OptionChange& change);
    /// Between the two a run is under way. The second makes the changes that came too late for the run.
    void begin_run();
    void end_run();
    /// Makes the changes that wait; those of who holds a weights view wait for the end of an evaluation.
    /// Thread: the training thread, at a decision point.
    void make_changes(bool in_evaluation);

    /// What stands against a run, or deserves a warning.
    std::vector<Finding> findings(const Outlook& run) const;
    /// Whether somebody changes batches, other than to move them, or outputs, or supplies the loss.
    bool changes_data() const;
    const std::vector<Precedence>& precedences() const { return precedences_; }
    /// The ids in the order that precedences count in.
    const std::vector<std::string>& composed_ids() const { return composed_ids_; }
    /// Those that have a budget, in µs a call.
    std::vector<std::pair<std::string, double>> budgets() const;
    /// Kind and options of each callback by its id; options where they came from a run file.
    nlohmann::json configuration() const;
    /// What change_option has changed of callbacks, by id and option, for a run that goes on.
    const nlohmann::json& changed_options() const { return changed_options_.now(); }
    void restore_options(const nlohmann::json& saved);
    /// Each callback by its id, in order.
    std::vector<std::pair<std::string, Callback*>> callbacks() const;

private:
    void change_now(const std::string& id, const std::string& option, const nlohmann::json& value, const std::string& requester);
    struct Attached;
    struct Change {
        std::function<void()> make;
        std::function<bool()> concerns_view;  ///< asked when it is about to be made
        std::promise<void> done;
        std::string what;
    };
    std::future<void> request(Change change, bool at_poll_point);
    nlohmann::json change_optimizer(Update& update, const std::string& option, const nlohmann::json& value) const;
    Update* update_called(const std::string& id) const;
    static void carry_out(Change& change);
    void attach_one(ComposedCallback composed, std::string_view before, std::string requester);
    void attach_between(ComposedCallback composed, const std::string& requester);
    void detach_one(const std::string& id, const std::string& requester);
    Attached& find(const std::string& id);
    void settle_dependents(const std::string& provider);
    std::vector<Member> members() const;

    Surroundings surroundings_;
    ChangedOptions changed_options_;
    std::vector<std::unique_ptr<Attached>> attached_;
    std::vector<Precedence> precedences_;
    std::vector<std::string> composed_ids_;
    std::mutex mutex_;
    bool run_under_way_ = false;                     ///< guarded by the mutex, like the next
    std::vector<std::shared_ptr<Change>> waiting_;
    Subscriber keeper_;  ///< hears of detached providers
    Connections connections_;
};

}  // namespace torchbus
