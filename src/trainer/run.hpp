#pragma once
/// One run on its way through the table of state_machine.hpp.

#include <chrono>
#include <exception>
#include <functional>
#include <thread>

#include <torchbus/bus.hpp>
#include <torchbus/callback.hpp>
#include <torchbus/data/loader.hpp>
#include <torchbus/run_config.hpp>
#include <torchbus/state_machine.hpp>

#include "run_progress.hpp"
#include "signals.hpp"

namespace torchbus {

/// Longest wait for data before signals and requests are looked at again.
inline constexpr std::chrono::milliseconds kPollInterval{100};

/// A training state that a run may be put back to.
struct SavedRun {
    ResumePoint point;
    std::string path;
    std::function<void()> put_back;  ///< all parts of the run but where it is
};

/// What a run works with; owned by the trainer, or made for this run.
struct RunParts {
    Bus& bus;
    Model& model;
    const Loss& loss;
    std::vector<Update>& updates;
    Requests& requests;
    Consensus& consensus;
    bool handle_signals = true;
    std::string run_id = {};
    RunPlan plan = {};
    std::vector<std::unique_ptr<Loader>> loaders = {};  ///< one a split of the plan, in its order
    std::function<void(const RunPlan&)> check = {};     ///< refuses the run, once its plan is known
    std::function<void(bool in_evaluation)> make_changes = [](bool) {};  ///< of the composition, at decision points
    std::function<void(const OptionChange&)> change_option = [](const OptionChange&) {};  ///< as it was decided
    std::optional<ResumePoint> resume = {};
    std::function<void()> restore_before_start = [] {};  ///< what is saved of model and optimizers, once they are configured
    std::function<void()> restore_after_start = [] {};   ///< and of what anybody may have drawn from
    std::function<SavedRun(const std::vector<std::string>& folders)> read_state = {};  ///< the first of them that can be read
};

class Run {
public:
    Run(RunParts parts, Trigger kind);
    /// Makes one transition. Returns whether the run goes on.
    bool advance();
    /// Configures without starting: emits RunConfigured once. Throws: ConfigError for a plan that cannot be run.
    const RunPlan& prepare();
    /// Takes the first batch of the training data through model and loss, in evaluation mode, without events and leaving
    /// the generators as they are. Throws: what they throw.
    TriedBatch try_first_batch();
    /// Tells a subscriber that came while the run was under way what the others heard at its start.
    /// Throws: what it or `check` throws; the plan is then as before.
    void introduce(const std::string& subscriber, const std::function<void(const RunPlan&)>& check);
    /// Evaluations do not go through these views any more: their holder has left.
    void forget_views(const std::vector<std::string>& views);
    State state() const { return state_; }
    /// Where it is: at an update boundary; within a window, where that began.
    ResumePoint resume_point() const;
    /// Whether what it has now is all of it: not before the first step, and not when an update is under way.
    bool is_resumable() const;
    /// Those of an evaluation under way, which a run that goes on from here begins anew; else null.
    const SavedState* generators_before_evaluation() const { return evaluating_ && is_training_run() ? &before_evaluation_ : nullptr; }
    /// Of the plan what a run that goes on from this one must share, and the environment.
    nlohmann::json configuration() const;
    const RunResult& result() const { return result_; }
    std::exception_ptr failure() const { return failure_; }

private:
    // One action a state; each returns the trigger of its row in the table.
    Trigger configure();
    Trigger start_epoch();
    Trigger go_on(const ResumePoint& at);
    Trigger decide_before_step();
    Trigger wait_paused();
    Trigger fetch_window();
    Trigger run_micro_batch();
    Trigger update();
    Trigger evaluate();
    Trigger save_step();
    Trigger roll_back();
    Trigger end_epoch();
    Trigger save_epoch();
    Trigger save_last();
    Trigger predict();
    Trigger end();
    Trigger fail();
    Trigger close();
    Trigger act();

    void poll();
    void learn_lengths();
    void be_at(const ResumePoint& point);
    /// The state that what is saved is of.
    State place() const;
    void emit_start(const std::optional<std::string>& only);
    /// Reduces the requests over ranks and takes what was agreed.
    void decide(Agreement when = Agreement::AtOnce);
    /// Whether somebody waits for a decision while data is awaited, and it can be taken: with several ranks only steps can say when.
    bool is_asked_while_waiting();
    bool stopping() const { return result_.outcome != Outcome::Finished; }
    void start_step();
    void forward_and_backward();
    MicroBatch current_micro_batch();
    bool starts_over_after(const std::exception& error);
    void end_step(bool skipped);
    bool next_update();
    void finish_window();
    const LeftOut* left_out(const BatchRange& range) const;
    void forward(Batch& batch, const StepFunction& step, Scope scope, MicroBatch micro_batch);
    void check_loss() const;
    Trigger evaluation_step(Loader& loader, const SplitPlan& split);
    bool begin_split(std::size_t index);
    void check_plan() const;
    bool has_effect(Decision decision) const;
    bool waits_for_roll_back(Decision decision, const RequestSet& agreed) const;
    void tell_late_requests();
    void end_split(bool completed);
    Trigger finish_evaluation(Trigger trigger);
    void save_within_evaluation();
    void show_view(std::string_view view);
    void show_trained_weights();
    void clear_gradients();
    /// Through a view, with those who owned them when it was made.
    struct SeenGradients {
        std::shared_ptr<const GradientOwners> owners;
        std::unique_ptr<GradientsView> view;
    };
    static SeenGradients gradients_of(const Update& update);
    void renew_gradients_view();
    Update& current_update() { return parts_.updates[update_index_]; }
    Position& position() { return moment_.position; }
    bool is_training_run() const { return kind_ == Trigger::StartTraining; }
    template <class Count>
    void count(Count&& change) {
        change(static_cast<Counts&>(position()));
        change(position().in_epoch);
    }

    RunParts parts_;
    Trigger kind_;
    State state_ = State::Ready;
    State failed_in_ = State::Ready;
    State rolls_back_in_ = State::Ready;  ///< where that was decided
    bool is_putting_back_ = false;
    bool was_stopping_ = false;           ///< when this transition began
    Moment& moment_;
    std::thread::id thread_ = std::this_thread::get_id();
    std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
    RunResult result_;
    std::exception_ptr failure_;
    std::string failed_subscriber_, failed_event_;
    std::optional<SignalCatcher> signals_;
    bool in_transition_ = false;
    bool prepared_ = false;

    // the window under way
    Window window_;
    Position window_began_;         ///< where the run was then
    LoaderPosition window_data_;
    bool in_window_ = false;
    bool has_updated_ = false;      ///< an update of this window was made or skipped
    std::size_t update_index_ = 0;
    std::int64_t windows_ = 0;      ///< finished windows, for the updates' `every`
    std::int64_t micro_ = 0;        ///< next micro-batch of the window
    int pass_ = 0;
    int failures_ = 0;              ///< of forward or backward in this step
    Output output_;
    at::Tensor loss_;               ///< of the last micro-batch
    at::Tensor window_loss_;        ///< mean over the window so far
    StepFunction default_step_;
    std::vector<SeenGradients> gradients_;  ///< one an update

    // what was decided and is not done yet
    bool evaluation_due_ = false;
    std::optional<Request> save_, roll_back_;
    std::optional<Request> skip_update_;
    std::optional<Request> skip_batch_;
    bool stop_epoch_ = false;
    bool is_paused_ = false;
    bool epoch_cut_ = false;        ///< the epoch before was cut off by max_steps
    std::vector<LeftOut> left_out_;

    // the evaluation under way
    bool evaluating_ = false;
    SavedState before_evaluation_;  ///< generators
    std::size_t view_index_ = 0, split_index_ = 0;
    std::int64_t eval_step_ = 0, eval_samples_ = 0;
    std::string_view shown_view_ = "training";
};

}  // namespace torchbus
