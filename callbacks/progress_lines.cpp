#include <torchbus/callbacks/progress_lines.hpp>

#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/changed_option.hpp>

#include "entries.hpp"
#include "parts/progress_text.hpp"

namespace torchbus {
namespace {

class ProgressLines final : public Callback {
public:
    explicit ProgressLines(ProgressLinesOptions options) : options_(std::move(options)) {
        if (!options_.write) options_.write = write_to_stderr;
    }
    std::string kind() const override { return "progress_lines"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"training_run_start", "rolled_back", "training_run_epoch_end", "evaluation_run_end", "training_run_end"}, .reads = {"blackboard"}};
        if (options_.every.amount > 0) declared.listens.emplace_back("train_step_end");
        return declared;
    }
    void attach(Attachment& run) override {
        run_ = &run;
        if (run.consensus.rank() != 0) return;  // the first one speaks for all
        auto& bus = run.bus;
        connections_ += bus.observe<TrainingRunStart>(Stage::Report, [this](const TrainingRunStart& event) { epochs_ = event.plan.epochs.value_or(0); });
        if (options_.every.amount > 0) connect_line();
        connections_ += bus.observe<TrainingRunEpochEnd>(Stage::Report, [this](const TrainingRunEpochEnd& event) {
            line(epoch_text(run_->blackboard, event.position.epoch, epochs_));
        });
        connections_ += bus.observe<RolledBack>(Stage::Report, [this](const RolledBack& event) { line(roll_back_text(event)); });
        connections_ += bus.observe<EvaluationRunEnd>(Stage::Report, [this](const EvaluationRunEnd&) {
            line("evaluation: " + metrics_text(run_->blackboard, "eval"));
        });
        connections_ += bus.observe<TrainingRunEnd>(Stage::Report, [this](const TrainingRunEnd& event) {
            if (event.result.outcome != Outcome::Finished)
                line(stop_text(event));
        });
    }
    void detach() override {
        step_line_.disconnect();
        connections_.clear();
        run_ = nullptr;
    }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        const auto before = change_interval(options_.every, "every", kind(), option, value);
        connect_line();
        return before;
    }

private:
    void connect_line() {
        if (run_->consensus.rank() != 0) return;
        step_line_ = run_->bus.observe<TrainStepEnd>(Stage::Report, [this](const TrainStepEnd& event) {
            line(fmt::format("epoch {}, step {}: train {}", event.position.epoch + 1, event.position.step, metrics_text(run_->blackboard, "train")));
        }, every(options_.every));
    }
    void line(const std::string& text) { options_.write(text + "\n"); }

    ProgressLinesOptions options_;
    Attachment* run_ = nullptr;
    std::int64_t epochs_ = 0;
    Connection step_line_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_progress_lines(ProgressLinesOptions options) {
    return std::make_unique<ProgressLines>(std::move(options));
}

std::unique_ptr<Callback> progress_lines_from_json(OptionReader& reader) {
    ProgressLinesOptions options;
    reader.interval("every", options.every, "between lines within an epoch; 0: none").changeable();
    return make_progress_lines(std::move(options));
}

}  // namespace torchbus
