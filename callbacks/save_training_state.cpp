#include <torchbus/callbacks/save_training_state.hpp>

#include <algorithm>

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
    std::string kind() const override { return "save_training_state"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"training_run_start", "step_checkpoint", "run_closed"}, .reads = {"parameters"}};
        if (options_.every_epochs > 0) declared.listens.emplace_back("epoch_checkpoint");
        if (options_.every.amount > 0) {
            declared.listens.emplace_back("train_step_end");
            declared.asks = {Decision::SaveNow};
        }
        return declared;
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart&) {
            if (beginning_.is_anew()) written_.clear();
        });
        connections_ += run.bus.observe<StepCheckpoint>(Stage::Persist, [this](const StepCheckpoint& event) { save(event.position); });
        if (options_.every_epochs > 0)
            connections_ += run.bus.observe<EpochCheckpoint>(Stage::Persist, [this](const EpochCheckpoint& event) { save(event.position); },
                                                             every(Interval(static_cast<double>(options_.every_epochs), Interval::Unit::Epoch)));
        if (options_.every.amount > 0) connect_interval();
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) { beginning_.closed(); });
    }
    void detach() override {
        interval_.disconnect();
        connections_.clear();
        run_ = nullptr;
        beginning_ = {};
        written_.clear();
    }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        if (option != "every") return Callback::change_option(option, value);
        const Interval before = std::exchange(options_.every, changed_interval(value, kind(), option));
        connect_interval();
        return to_string(before);
    }
    SavedState state() const override { return {{{"written", written_}}, {}}; }
    void load_state(const SavedState& state) override {
        state.values.at("written").get_to(written_);
        beginning_.loaded();
    }

private:
    void connect_interval() {
        interval_ = run_->bus.observe<TrainStepEnd>(Stage::Report, [this](const TrainStepEnd&) {
            // Clocks differ between ranks: rank 0 asks, and all take the decision.
            if (options_.every.unit == Interval::Unit::Second && run_->consensus.rank() != 0) return;
            run_->asker.ask(Decision::SaveNow, fmt::format("a training state is due every {}", to_string(options_.every)));
        }, every(options_.every));
    }
    void save(const Position& at) {
        const std::string name = fmt::format("step_{}", at.step);
        const auto before = written_;
        std::erase(written_, name);
        written_.push_back(name);  // first, as this list is saved too
        if (run_->consensus.rank() == 0) write(options_.folder / name, before);
        if (run_->consensus.rank() == 0) run_->bus.emit(CheckpointSaved{at, (options_.folder / name).string()});
        while (options_.keep > 0 && written_.size() > static_cast<std::size_t>(options_.keep)) drop_oldest();
    }

    void write(const fs::path& path, const std::vector<std::string>& before) {
        try {
            write_training_state(path, run_->run_state);
        } catch (...) {
            written_ = before;
            throw;
        }
    }

    /// Under a hidden name first: what is half deleted is not to look like a training state.
    void drop_oldest() {
        const fs::path path = options_.folder / written_.front();
        const fs::path going = options_.folder / fmt::format(".{}.part", written_.front());
        written_.erase(written_.begin());
        if (run_->consensus.rank() != 0) return;
        std::error_code status;
        if (!fs::exists(path, status)) return;  // the user has taken it away
        fs::rename(path, going, status);
        if (!status) fs::remove_all(going, status);
        if (status) warn(fmt::format("save_training_state: cannot delete {}: {}", path.string(), status.message()));
    }

    SaveTrainingStateOptions options_;
    Attachment* run_ = nullptr;
    RunBeginning beginning_;
    std::vector<std::string> written_;  ///< names within the folder, oldest first
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
    if (options.keep < 0) refuse("keep", options.keep, "how many are kept, or 0 for all");
    return std::make_unique<SaveTrainingState>(std::move(options));
}

std::unique_ptr<Callback> save_training_state_from_json(OptionReader& reader) {
    SaveTrainingStateOptions options;
    std::string folder = options.folder.string();
    reader.text("folder", folder, "where the folders step_<n> go; made when something is saved")
        .interval("every", options.every, "between saves within an epoch, e.g. 1000step or 30min; 0: only where asked for")
        .integer("every_epochs", options.every_epochs, "epochs between saves after epochs; 0: none", Range::at_least(0))
        .integer("keep", options.keep, "how many of the newest are kept; 0: all", Range::at_least(0));
    options.folder = folder;
    return make_save_training_state(std::move(options));
}

}  // namespace torchbus
