#include <torchbus/callbacks/save_training_state.hpp>

#include <array>
#include <chrono>
#include <cmath>
#include <future>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/changed_option.hpp>
#include <torchbus/checkpoint/folder_lock.hpp>
#include <torchbus/checkpoint/states_of_ranks.hpp>
#include <torchbus/checkpoint/writable.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/kept_states.hpp"
#include "parts/window_start.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;

class SaveTrainingState final : public Callback {
public:
    explicit SaveTrainingState(SaveTrainingStateOptions options)
        : options_(std::move(options)), kept_({options_.keep, options_.keep_every, options_.keep_asked, options_.monitor.empty() ? 0 : options_.keep_best,
                                               options_.mode == SaveTrainingStateOptions::Mode::Min ? Goal::Min : Goal::Max}),
          kept_before_(kept_) {}
    ~SaveTrainingState() override { wait(); }
    std::string kind() const override { return "save_training_state"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"training_run_start", "step_checkpoint", "rolling_back", "training_run_end", "run_failed", "run_closed"}, .reads = {"parameters"}, .writes = {"states"}, .folders = {KeptStates::whole_name(options_.folder)}, .collectives = true};
        if (options_.on_failure) declared.listens.insert(declared.listens.end(), {"run_configured", "train_step_start"});
        if (options_.background) declared.asks = {Decision::FailRun};
        if (saves_epochs()) declared.listens.emplace_back("epoch_checkpoint");
        if (!options_.monitor.empty()) declared.needs = {{options_.monitor, "epoch_checkpoint", Stage::Persist}};
        if (options_.every.amount > 0) {
            declared.listens.emplace_back("train_step_end");
            declared.asks.push_back(Decision::SaveNow);
        }
        return declared;
    }
    std::vector<Finding> check(const Outlook&) const override {
        if (run_ && run_->consensus.rank() > 0) return {};  // rank 0 writes, and ranks that try together get in each other's way
        return check_folder(kind(), "folder", options_.folder);
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart&) {
            if (beginning_.is_anew()) kept_.clear();
            failure_ = nullptr;
            std::error_code status;
            if (run_->consensus.rank() == 0 && fs::exists(options_.folder, status)) {
                lock_ = FolderLock(options_.folder);
                clean_up_training_states(options_.folder);
            }
        });
        connections_ += run.bus.observe<StepCheckpoint>(Stage::Persist, [this](const StepCheckpoint& event) {
            const bool is_asked = event.requester != run_->bus.id();
            save(event.position, fmt::format("{}: {}", event.requester, event.reason), {event.position.step, is_asked}, is_asked ? Busy::Wait : Busy::MaySkip);
        });
        connections_ += run.bus.intercept<RollingBack>([this](RollingBack& event) {
            wait();
            std::array everyone{0.0};
            run_->consensus.sum(everyone);  // rank 0 has written
            for (const WrittenState& state : kept_.newest_first()) event.states.push_back((options_.folder / state.name()).string());
        });
        if (saves_epochs()) connections_ += run.bus.observe<EpochCheckpoint>(Stage::Persist, [this](const EpochCheckpoint& event) {
            if (is_due(event.position)) save(event.position, "the end of an epoch", {event.position.step, false, score_at(event.position)}, is_last(event.position) ? Busy::Wait : Busy::MaySkip);
        });
        if (options_.every.amount > 0) connect_interval();
        // What is announced is heard before RunClosed.
        connections_ += run.bus.observe<TrainingRunEnd>(Stage::Persist, [this](const TrainingRunEnd&) {
            wait();
            if (const auto failure = std::exchange(failure_, nullptr)) std::rethrow_exception(failure);  // too late to be decided on
        });
        connections_ += run.bus.observe<RunFailed>(Stage::Persist, [this](const RunFailed& event) {
            wait();
            if (options_.on_failure) save_what_failed(event);
        });
        if (options_.on_failure) {
            connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { window_start_.begin_run(event.model); });
            connections_ += run.bus.observe<TrainStepStart>(Stage::Persist, [this](const TrainStepStart& event) { window_start_.note(run_->run_state, event.position.attempts); });
        }
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) {
            beginning_.closed();
            window_start_.end_run();
            wait();
            lock_ = {};
            if (const auto skipped = std::exchange(skipped_, 0); skipped > 0) warn(fmt::format("{}: {} save{} left out while another was written", run_->bus.id(), skipped, skipped == 1 ? " was" : "s were"));
        });
    }
    void detach() override {
        wait();
        interval_.disconnect();
        connections_.clear();
        run_ = nullptr;
        beginning_ = {};
        kept_.clear();
        window_start_.end_run();
        lock_ = {};
        failure_ = nullptr;
    }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        const auto before = change_interval(options_.every, "every", kind(), option, value);
        connect_interval();
        return before;
    }
    SavedState state() const override { return kept_.saved(options_.folder); }
    void load_state(const SavedState& state) override {
        kept_.load(state, options_.folder);
        beginning_.loaded();
    }

private:
    bool saves_epochs() const { return options_.every_epochs > 0 || options_.at_end; }
    bool is_last(const Position& at) const {
        const RunLength& length = run_->moment.length;
        return (length.epochs && at.epoch >= *length.epochs) || (length.steps && at.step >= *length.steps);
    }
    bool is_due(const Position& at) const {
        return (options_.at_end && is_last(at)) || (options_.every_epochs > 0 && at.epoch % options_.every_epochs == 0);
    }
    void connect_interval() {
        interval_ = run_->bus.observe<TrainStepEnd>(Stage::Report, [this](const TrainStepEnd&) {
            // Clocks differ between ranks: rank 0 asks, and all take the decision.
            if (options_.every.unit == Interval::Unit::Second && run_->consensus.rank() != 0) return;
            run_->asker.ask(Decision::SaveNow, fmt::format("a training state is due every {}", to_string(options_.every)));
        }, every(options_.every));
    }

    static nlohmann::json about(const Position& at, std::string_view reason) { return {{"reason", reason}, {"epoch", at.epoch}, {"step", at.step}}; }

    /// One save at a time: the last one is over when this returns.
    void wait() {
        if (writing_.valid() && !writing_.get()) kept_ = kept_before_;
        kept_.put_back(std::exchange(not_deleted_, {}));
    }
    bool is_busy() const { return writing_.valid() && writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready; }

    /// Rank 0 is the one that writes. Rank: a collective.
    bool is_any_busy() { return run_->consensus.broadcast(is_busy() ? "busy" : "") == "busy"; }

    /// Of the epoch's weights; nothing where nothing is monitored, or it is no number.
    std::optional<double> score_at(const Position& at) const {
        if (options_.monitor.empty()) return std::nullopt;
        const auto value = run_->blackboard.number(options_.monitor);
        if (value && std::isfinite(*value)) return value;
        warn(fmt::format("{}: {} is {} at step {}; this state is not among the best", run_->bus.id(), options_.monitor, value ? fmt::format("{}", *value) : "not published", at.step));
        return std::nullopt;
    }

    /// What others ask for, and the last one of a run, is not left out.
    enum class Busy : std::uint8_t { Wait, MaySkip };
    void save(const Position& at, std::string_view reason, WrittenState written, Busy busy) {
        if (busy == Busy::MaySkip && options_.skip_when_busy && is_any_busy()) {
            ++skipped_;
            return;
        }
        wait();
        const auto before = kept_;
        kept_.add(written);  // first, as this list is saved too
        try {
            TrainingState state = capture_over_ranks(run_->run_state, run_->consensus, options_.background);
            if (run_->consensus.rank() != 0) return (void)kept_.take_superfluous();
            state.about = about(at, reason);
            Job job{at, options_.folder / written.name(), std::move(state), kept_.take_superfluous(), kept_.best()};
            kept_before_ = before;
            if (options_.background) return void(writing_ = std::async(std::launch::async, [this, job = std::move(job)] { return write_in_background(job); }));
            write(job);
            run_->bus.emit(CheckpointSaved{at, job.path.string()});
        } catch (const NotDurableError& error) {
            warn(error.what());
        } catch (...) {
            kept_ = before;
            throw;
        }
    }

    /// What was made since the last save is not to be lost; unless it is what has failed.
    void save_what_failed(const RunFailed& event) {
        const auto leave = [this](std::string_view why) { warn(fmt::format("{}: nothing of the run that failed is saved: {}", run_->bus.id(), why)); };
        if (run_->consensus.world_size() > 1) return leave("with several ranks the last state counts");
        if (!window_start_.has_noted() || event.position.attempts == 0 || kept_.is_newest(event.position.step)) return;
        if (!run_->run_state.is_resumable()) return leave("it failed where a run cannot go on from, such as within an update; the last state counts");
        const auto before = kept_;
        try {
            TrainingState state = capture(run_->run_state, false);
            window_start_.put_into(state);
            if (const std::string name = not_finite(state.parts.at("model")); !name.empty()) return leave(fmt::format("{} is not finite; the last state counts", name));
            state.about = about(event.position, fmt::format("the run failed: {}", event.error));
            const WrittenState written{event.position.step};
            kept_.add(written);
            state.parts["callback." + run_->bus.id()] = kept_.saved(options_.folder);
            const Job job{event.position, options_.folder / written.name(), std::move(state), {}, kept_.best()};  // nothing older is deleted for it
            write(job);
            run_->bus.emit(CheckpointSaved{event.position, job.path.string()});
        } catch (const NotDurableError& error) {
            warn(error.what());
        } catch (const std::exception& error) {
            kept_ = before;
            leave(error.what());
        }
    }
    /// The first weight that is not, or nothing.
    static std::string not_finite(const SavedState& model) {
        for (const auto& [name, tensor] : model.tensors)
            if (tensor.is_floating_point() && !tensor.isfinite().all().item<bool>()) return name;
        return "";
    }

    struct Job {
        Position at;
        fs::path path;
        TrainingState state;
        std::vector<WrittenState> superfluous;
        std::optional<WrittenState> best;
    };
    /// Returns once it is durable; only then is an older one deleted. Thread: any, one at a time.
    void write(const Job& job) {
        not_deleted_ = job.superfluous;
        if (!lock_.is_held()) {
            make_durable_folder(options_.folder);
            lock_ = FolderLock(options_.folder);
        }
        write_training_state(job.path, job.state);
        point_link_to(job.path, "latest");
        if (job.best) point_link_to(options_.folder / job.best->name(), "best");
        for (const WrittenState& state : std::exchange(not_deleted_, {})) drop(state.name());
    }
    /// Returns whether it was written.
    bool write_in_background(const Job& job) {
        try {
            write(job);
            run_->bus.post(CheckpointSaved{job.at, job.path.string()});
        } catch (const NotDurableError& error) {
            warn(error.what());
        } catch (const std::exception& error) {
            failure_ = std::current_exception();
            run_->asker.ask(Decision::FailRun, error.what());
            return false;
        }
        return true;
    }

    void drop(const std::string& name) const {
        try {
            remove_training_state(options_.folder / name);
        } catch (const CheckpointError& error) {
            warn(fmt::format("save_training_state: {}", error.what()));
        }
    }

    SaveTrainingStateOptions options_;
    Attachment* run_ = nullptr;
    RunBeginning beginning_;
    KeptStates kept_;
    FolderLock lock_;  ///< from when the folder is there to the end of the run; belongs to the thread while it writes
    WindowStart window_start_;
    std::vector<WrittenState> not_deleted_;  ///< by a save that was not durable; belongs to the thread while it writes
    KeptStates kept_before_;                ///< the save under way
    std::future<bool> writing_;             ///< whether it was written
    std::exception_ptr failure_;            ///< of a save in the background
    std::int64_t skipped_ = 0;
    Connection interval_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_save_training_state(SaveTrainingStateOptions options) {
    const auto refuse = [](const char* name, std::int64_t value, const char* what) {
        throw ConfigError(fmt::format("save_training_state: {}: {} is too few; give {}", name, value, what));
    };
    if (options.folder.empty()) throw ConfigError("save_training_state: folder: there is no name; give a folder, e.g. checkpoints");
    if (options.every_epochs < 0) refuse("every_epochs", options.every_epochs, "a number of epochs, or 0 for none");
    if (options.keep_every < 0) refuse("keep_every", options.keep_every, "a number of steps, or 0 for none");
    if (options.keep_best < 1) refuse("keep_best", options.keep_best, "at least 1; without a monitor it has no effect");
    if (options.keep < 0) refuse("keep", options.keep, "how many are kept, or 0 for all");
    return std::make_unique<SaveTrainingState>(std::move(options));
}

std::unique_ptr<Callback> save_training_state_from_json(OptionReader& reader) {
    SaveTrainingStateOptions options;
    std::string mode = "min", folder = options.folder.string();
    reader.text("folder", folder, "where the folders step_<n> go; made when something is saved")
        .interval("every", options.every, "between saves within an epoch, e.g. 1000step or 30min; 0: only where asked for").changeable()
        .integer("every_epochs", options.every_epochs, "epochs between saves after epochs; 0: none", Range::at_least(0))
        .boolean("at_end", options.at_end, "whether it is saved after the last epoch, too")
        .integer("keep", options.keep, "how many of the newest are kept; 0: all", Range::at_least(0))
        .integer("keep_every", options.keep_every, "those whose step is a multiple of it are kept for ever; 0: none", Range::at_least(0))
        .boolean("keep_asked", options.keep_asked, "whether those that others asked for (a signal, a schedule at its decay) are kept for ever")
        .text("monitor", options.monitor, "a published number, e.g. eval.loss, by which the best of those saved after epochs are kept, too; empty: none")
        .choice("mode", mode, {"min", "max"}, "which way the number gets better")
        .integer("keep_best", options.keep_best, "how many of the best are kept; >= 1", Range::at_least(1))
        .boolean("on_failure", options.on_failure, "whether what a run that fails has made since the last save is saved, too; not with several ranks")
        .boolean("background", options.background, "whether a thread writes it, from a copy, while training goes on")
        .boolean("skip_when_busy", options.skip_when_busy, "whether a save is left out while another is written; false: it waits");
    options.folder = folder;
    options.mode = mode == "min" ? SaveTrainingStateOptions::Mode::Min : SaveTrainingStateOptions::Mode::Max;
    return make_save_training_state(std::move(options));
}

}  // namespace torchbus
