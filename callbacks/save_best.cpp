#include <torchbus/callbacks/save_best.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/checkpoint/disk.hpp>
#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/checkpoint/writable.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/measured_weights.hpp"
#include "parts/monitor.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;

/// One of the best values of a run, and the file of its weights.
struct Kept {
    double value = 0;
    std::int64_t step = 0;
    std::string file;  ///< name within the folder
};

class SaveBest final : public Callback {
public:
    explicit SaveBest(SaveBestOptions options)
        : options_(std::move(options)), goal_(options_.mode == SaveBestOptions::Mode::Min ? Goal::Min : Goal::Max), weights_(options_.monitor) {}
    std::string kind() const override { return "save_best"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"training_run_start", "eval_epoch_end", "epoch_checkpoint", "run_closed"}, .reads = {"parameters"},
                             .needs = {{options_.monitor, "epoch_checkpoint", Stage::Persist}},
                             .before = {"save_training_state"}};  // whose states are to know of what is kept
        if (options_.at_steps) {
            declared.listens.emplace_back("step_checkpoint");
            declared.needs.emplace_back(options_.monitor, "step_checkpoint", Stage::Persist);
            declared.asks = {Decision::SaveNow};
        }
        if (options_.load_best_at_end) {
            declared.listens.emplace_back("training_run_end");
            declared.writes = {"parameters"};
            declared.collectives = true;
        }
        return declared;
    }
    std::vector<Finding> check(const Outlook&) const override {
        if (run_ && run_->consensus.rank() > 0) return {};  // rank 0 writes, and ranks that try together get in each other's way
        return check_folder(kind(), "folder", options_.folder);
    }
    void attach(Attachment& run) override {
        run_ = &run;
        weights_.attach(run);
        connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart& event) { begin(event.plan); });
        connections_ += run.bus.observe<EpochCheckpoint>(Stage::Persist, [this](const EpochCheckpoint& event) { check(event.position); });
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) { beginning_.closed(); });
        if (options_.at_steps) attach_at_steps(run);
        if (options_.load_best_at_end) connections_ += run.bus.intercept<TrainingRunEnd>([this](TrainingRunEnd&) { load_best(); });
    }
    void detach() override {
        connections_.clear();
        weights_.detach();
        run_ = nullptr;
        beginning_ = {};
        kept_.clear();
        measured_at_.reset();
    }
    SavedState state() const override {
        nlohmann::json list = nlohmann::json::array();
        for (const Kept& one : kept_) list.push_back({{"value", one.value}, {"step", one.step}, {"file", one.file}});
        return {{{"kept", std::move(list)}}, {}};
    }
    void load_state(const SavedState& state) override {
        kept_.clear();
        for (const auto& one : state.values.at("kept")) kept_.push_back({one.at("value"), one.at("step"), one.at("file")});
        std::erase_if(kept_, [&](const Kept& one) { return !is_there(one); });
        beginning_.loaded();
    }

private:
    void begin(const RunPlan& plan) {
        if (beginning_.is_anew()) kept_.clear();
        if (run_->consensus.rank() == 0) remove_interrupted();
        measured_at_.reset();
        last_view_ = plan.views.back();
        for (const SplitPlan& split : plan.splits)
            if (split.mode == Mode::Eval) last_split_ = split.name;
    }

    /// Another run from the same state may have replaced it, or deleted it.
    bool is_there(const Kept& one) const {
        try {
            return metadata_of_safetensors(options_.folder / one.file).at("step") == fmt::format("{}", one.step);
        } catch (const std::exception&) {
            return false;
        }
    }
    /// What a process that was killed has left of its files.
    void remove_interrupted() const {
        std::error_code status;
        const std::string ending = std::string(".safetensors") + AtomicFile::kPart, prefix = options_.keep == 1 ? "best" : file_prefix();
        for (const auto& entry : fs::directory_iterator(options_.folder, status))
            if (const std::string name = entry.path().filename().string(); name.starts_with(prefix) && name.ends_with(ending)) fs::remove(entry.path(), status);
    }

    /// A number of an evaluation belongs to the weights that it was measured with, and to no later ones.
    void attach_at_steps(Attachment& run) {
        connections_ += run.bus.observe<EvalEpochEnd>(Stage::Report, [this, &run](const EvalEpochEnd& event) {
            const bool is_last = last_split_.empty() || (event.scope.split == last_split_ && event.scope.view == last_view_);
            if (!event.completed || !is_last) return;
            measured_at_ = event.position.step;
            const bool within_epoch = event.position.in_epoch.attempts > 0;  // else EpochCheckpoint follows
            const auto value = run.blackboard.number(options_.monitor);
            if (within_epoch && value && std::isfinite(*value) && place_of(*value) < kept_limit())
                run.asker.ask(Decision::SaveNow, fmt::format("{} is {:.6g}, among the best {}", options_.monitor, *value, options_.keep));
        });
        connections_ += run.bus.observe<StepCheckpoint>(Stage::Persist, [this](const StepCheckpoint& event) {
            const bool stale = options_.monitor.starts_with("eval.") && measured_at_ != event.position.step;
            if (!stale) check(event.position);
        });
    }

    std::size_t kept_limit() const { return static_cast<std::size_t>(options_.keep); }
    /// Where a value would stand among the kept ones; 0 is the best.
    std::size_t place_of(double value) const {
        const auto gives_way = [&](const Kept& one) { return is_better(value, one.value, goal_) || (options_.later_wins_ties && value == one.value); };
        return static_cast<std::size_t>(std::ranges::find_if(kept_, gives_way) - kept_.begin());
    }

    void check(const Position& at) {
        const auto value = run_->blackboard.number(options_.monitor);
        if (!value || !std::isfinite(*value)) {
            warn(fmt::format("save_best: {} is {} at step {}; nothing was saved", options_.monitor, value ? fmt::format("{}", *value) : "not published", at.step));
            return;
        }
        if (std::ranges::find(kept_, at.step, &Kept::step) != kept_.end()) return;  // these weights are kept already
        const std::size_t place = place_of(*value);
        if (place >= kept_limit()) return;
        const std::string file = file_name(*value, at.step);
        write(file, at);
        kept_.insert(kept_.begin() + static_cast<std::ptrdiff_t>(place), {*value, at.step, file});
        drop_last();
    }

    std::string file_name(double value, std::int64_t step) const {
        if (options_.keep == 1) return "best.safetensors";
        return fmt::format("{}{:.6g}_step_{}.safetensors", file_prefix(), value, step);
    }
    std::string file_prefix() const {
        std::string metric = options_.monitor;
        std::ranges::replace(metric, '/', '_');
        return metric + "_";
    }

    void write(const std::string& file, const Position& at) {
        if (run_->consensus.rank() != 0) return;
        make_durable_folder(options_.folder);
        const SavedState measured = weights_.get();
        const fs::path path = options_.folder / file;
        try {
            save_safetensors(path, {measured.tensors.begin(), measured.tensors.end()}, {{"view", weights_.view()}, {"step", fmt::format("{}", at.step)}});
        } catch (const NotDurableError& error) {
            return warn(error.what());  // it is there, and may not outlast a power failure: nobody is told of it
        }
        run_->bus.emit(CheckpointSaved{at, path.string()});
    }

    /// After the new file is durable, so that at no time fewer are there.
    void drop_last() {
        if (kept_.size() <= kept_limit()) return;
        const std::string file = kept_.back().file;
        kept_.pop_back();
        const bool in_use = std::ranges::find(kept_, file, &Kept::file) != kept_.end();
        if (in_use || run_->consensus.rank() != 0) return;
        std::error_code failure;
        fs::remove(options_.folder / file, failure);
        if (failure) warn(fmt::format("save_best: cannot delete {}: {}", (options_.folder / file).string(), failure.message()));
    }

    void load_best() {
        std::array<double, 1> none{};
        run_->consensus.sum(none);  // rank 0 has written before any rank reads
        if (kept_.empty()) return;
        SavedState best;
        for (auto& [name, tensor] : load_safetensors(options_.folder / kept_.front().file)) best.tensors.emplace(name, tensor);
        run_->run_state.load("model", best);
    }

    SaveBestOptions options_;
    Goal goal_;
    MeasuredWeights weights_;
    Attachment* run_ = nullptr;
    RunBeginning beginning_;
    std::vector<Kept> kept_;                   ///< best first
    std::optional<std::int64_t> measured_at_;  ///< step whose weights the evaluation has measured
    std::string last_split_, last_view_;       ///< with which an evaluation is complete; empty where the run had begun before
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_save_best(SaveBestOptions options) {
    if (options.monitor.empty()) throw ConfigError("save_best: monitor: there is no name; give that of a published number, e.g. eval.loss");
    if (options.keep < 1) throw ConfigError(fmt::format("save_best: keep: {} is too few; give at least 1", options.keep));
    if (options.folder.empty()) throw ConfigError("save_best: folder: there is no name; give a folder, e.g. checkpoints");
    return std::make_unique<SaveBest>(std::move(options));
}

std::unique_ptr<Callback> save_best_from_json(OptionReader& reader) {
    SaveBestOptions options;
    std::string mode = "min", folder = options.folder.string();
    reader.text("monitor", options.monitor, "the number that is watched, as it is published")
        .choice("mode", mode, {"min", "max"}, "which way the number gets better")
        .integer("keep", options.keep, "how many of the best are kept; ≥ 1", Range::at_least(1))
        .boolean("later_wins_ties", options.later_wins_ties, "whether of equal numbers the later replaces the earlier")
        .text("folder", folder, "where the files go; made when something is saved")
        .boolean("at_steps", options.at_steps, "whether also after evaluations within an epoch, and wherever a save is asked for")
        .boolean("load_best_at_end", options.load_best_at_end, "whether the run ends with the best weights");
    options.mode = mode == "min" ? SaveBestOptions::Mode::Min : SaveBestOptions::Mode::Max;
    options.folder = folder;
    return make_save_best(std::move(options));
}

}  // namespace torchbus
