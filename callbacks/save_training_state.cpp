#include <torchbus/callbacks/save_training_state.hpp>

#include <algorithm>
#include <chrono>
#include <future>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/changed_option.hpp"
#include "parts/monitor.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;

class SaveTrainingState final : public Callback {
public:
    explicit SaveTrainingState(SaveTrainingStateOptions options) : options_(std::move(options)) {}
    ~SaveTrainingState() override { wait(); }
    std::string kind() const override { return "save_training_state"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"training_run_start", "step_checkpoint", "training_run_end", "run_failed", "run_closed"}, .reads = {"parameters"}};
        if (options_.background) declared.asks = {Decision::FailRun};
        if (saves_epochs()) declared.listens.emplace_back("epoch_checkpoint");
        if (options_.every.amount > 0) {
            declared.listens.emplace_back("train_step_end");
            declared.asks.push_back(Decision::SaveNow);
        }
        return declared;
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart&) {
            if (beginning_.is_anew()) written_.clear(), asked_.clear();
            failure_ = nullptr;
            if (run_->consensus.rank() == 0) clean_up_training_states(options_.folder);
        });
        connections_ += run.bus.observe<StepCheckpoint>(Stage::Persist, [this](const StepCheckpoint& event) {
            const bool is_own = event.reason.starts_with(run_->bus.id() + ": ");
            if (options_.keep_asked && !is_own) asked_.push_back(name_of_step(event.position.step));
            save(event.position, event.reason);
        });
        if (saves_epochs()) connections_ += run.bus.observe<EpochCheckpoint>(Stage::Persist, [this](const EpochCheckpoint& event) {
            if (is_due(event.position)) save(event.position, "the end of an epoch");
        });
        if (options_.every.amount > 0) connect_interval();
        // What is announced is heard before RunClosed.
        connections_ += run.bus.observe<TrainingRunEnd>(Stage::Persist, [this](const TrainingRunEnd&) {
            wait();
            if (const auto failure = std::exchange(failure_, nullptr)) std::rethrow_exception(failure);  // too late to be decided on
        });
        connections_ += run.bus.observe<RunFailed>(Stage::Persist, [this](const RunFailed&) { wait(); });
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) {
            beginning_.closed();
            if (const auto skipped = std::exchange(skipped_, 0); skipped > 0) warn(fmt::format("{}: {} save{} left out while another was written", run_->bus.id(), skipped, skipped == 1 ? " was" : "s were"));
        });
    }
    void detach() override {
        wait();
        interval_.disconnect();
        connections_.clear();
        run_ = nullptr;
        beginning_ = {};
        written_.clear();
        asked_.clear();
        failure_ = nullptr;
    }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        if (option != "every") return Callback::change_option(option, value);
        const Interval before = std::exchange(options_.every, changed_interval(value, kind(), option));
        connect_interval();
        return to_string(before);
    }
    /// Version 1 knew of none that were asked for.
    SavedState state() const override { return {{{"written", written_}, {"asked", asked_}}, {}, 2}; }
    void load_state(const SavedState& state) override {
        state.values.at("written").get_to(written_);
        if (state.version >= 2) state.values.at("asked").get_to(asked_);
        beginning_.loaded();
    }

private:
    static std::string name_of_step(std::int64_t step) { return fmt::format("step_{}", step); }
    bool saves_epochs() const { return options_.every_epochs > 0 || options_.at_end; }
    bool is_due(const Position& at) const {
        const RunLength& length = run_->moment.length;
        const bool is_last = (length.epochs && at.epoch >= *length.epochs) || (length.steps && at.step >= *length.steps);
        return (options_.at_end && is_last) || (options_.every_epochs > 0 && at.epoch % options_.every_epochs == 0);
    }
    void connect_interval() {
        interval_ = run_->bus.observe<TrainStepEnd>(Stage::Report, [this](const TrainStepEnd&) {
            // Clocks differ between ranks: rank 0 asks, and all take the decision.
            if (options_.every.unit == Interval::Unit::Second && run_->consensus.rank() != 0) return;
            run_->asker.ask(Decision::SaveNow, fmt::format("a training state is due every {}", to_string(options_.every)));
        }, every(options_.every));
    }

    /// One save at a time: the last one is over when this returns.
    void wait() {
        if (writing_.valid()) writing_.get();
        written_.insert(written_.begin(), not_deleted_.begin(), not_deleted_.end());
        not_deleted_.clear();
    }
    bool is_busy() const { return writing_.valid() && writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready; }

    void save(const Position& at, std::string_view reason) {
        if (options_.skip_when_busy && is_busy()) {
            ++skipped_;
            return;
        }
        wait();
        const auto before = written_;
        const std::string name = name_of_step(at.step);
        std::erase(written_, name);
        written_.push_back(name);  // first, as this list is saved too
        if (run_->consensus.rank() != 0) return (void)take_superfluous();
        try {
            TrainingState state = capture(run_->run_state, options_.background);
            state.about = {{"reason", reason}, {"epoch", at.epoch}, {"step", at.step}};
            Job job{at, options_.folder / name, std::move(state), take_superfluous()};
            if (options_.background) return void(writing_ = std::async(std::launch::async, [this, job = std::move(job)] { write_in_background(job); }));
            write(job);
            run_->bus.emit(CheckpointSaved{at, job.path.string()});
        } catch (const NotDurableError& error) {
            warn(error.what());
        } catch (...) {
            written_ = before;
            throw;
        }
    }

    struct Job {
        Position at;
        fs::path path;
        TrainingState state;
        std::vector<std::string> superfluous;
    };
    /// Returns once it is durable; only then is an older one deleted. Thread: any, one at a time.
    void write(const Job& job) {
        not_deleted_ = job.superfluous;
        write_training_state(job.path, job.state);
        point_latest_to(job.path);
        for (const std::string& name : std::exchange(not_deleted_, {})) drop(name);
    }
    void write_in_background(const Job& job) {
        try {
            write(job);
            run_->bus.post(CheckpointSaved{job.at, job.path.string()});
        } catch (const NotDurableError& error) {
            warn(error.what());
        } catch (const std::exception& error) {
            failure_ = std::current_exception();
            run_->asker.ask(Decision::FailRun, error.what());
        }
    }

    /// The oldest above the number that is kept; those kept for ever leave the list.
    std::vector<std::string> take_superfluous() {
        std::vector<std::string> taken;
        while (options_.keep > 0 && written_.size() > static_cast<std::size_t>(options_.keep)) {
            const std::string name = written_.front();
            written_.erase(written_.begin());
            const std::int64_t step = std::stoll(name.substr(name.find('_') + 1));
            const bool is_kept = (options_.keep_every > 0 && step % options_.keep_every == 0) || std::ranges::find(asked_, name) != asked_.end();
            if (!is_kept) taken.push_back(name);
        }
        return taken;
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
    std::vector<std::string> written_;      ///< names within the folder, oldest first
    std::vector<std::string> asked_;        ///< of all written, those that are kept since others asked for them
    std::vector<std::string> not_deleted_;  ///< by a save that was not durable; belongs to the thread while it writes
    std::future<void> writing_;
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
    if (options.keep < 0) refuse("keep", options.keep, "how many are kept, or 0 for all");
    return std::make_unique<SaveTrainingState>(std::move(options));
}

std::unique_ptr<Callback> save_training_state_from_json(OptionReader& reader) {
    SaveTrainingStateOptions options;
    std::string folder = options.folder.string();
    reader.text("folder", folder, "where the folders step_<n> go; made when something is saved")
        .interval("every", options.every, "between saves within an epoch, e.g. 1000step or 30min; 0: only where asked for")
        .integer("every_epochs", options.every_epochs, "epochs between saves after epochs; 0: none", Range::at_least(0))
        .boolean("at_end", options.at_end, "whether it is saved after the last epoch, too")
        .integer("keep", options.keep, "how many of the newest are kept; 0: all", Range::at_least(0))
        .integer("keep_every", options.keep_every, "those whose step is a multiple of it are kept for ever; 0: none", Range::at_least(0))
        .boolean("keep_asked", options.keep_asked, "whether those that others asked for (a signal, a schedule at its decay) are kept for ever")
        .boolean("background", options.background, "whether a thread writes it, from a copy, while training goes on")
        .boolean("skip_when_busy", options.skip_when_busy, "whether a save is left out while another is written; false: it waits");
    options.folder = folder;
    return make_save_training_state(std::move(options));
}

}  // namespace torchbus
