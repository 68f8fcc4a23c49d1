#include <torchbus/callbacks/progress_bar.hpp>

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/progress_text.hpp"

namespace torchbus {
namespace {

using Clock = std::chrono::steady_clock;

bool stderr_is_terminal() {
    const char* term = std::getenv("TERM");
    return isatty(STDERR_FILENO) == 1 && (!term || std::string_view(term) != "dumb");
}

int terminal_columns() {
    winsize size = {};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/// "███████▌   ": a share of `cells`, in eighths.
std::string bar_of(double share, int cells) {
    static constexpr std::string_view kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    const int eighths = static_cast<int>(std::clamp(share, 0.0, 1.0) * cells * 8);
    std::string bar;
    for (int i = 0; i < eighths / 8; ++i) bar += "█";
    bar += kEighths[eighths % 8];
    const int blank = cells - eighths / 8 - (eighths % 8 > 0 ? 1 : 0);
    return bar + std::string(static_cast<std::size_t>(blank), ' ');
}

class ProgressBar final : public Callback {
public:
    explicit ProgressBar(ProgressBarOptions options) : options_(std::move(options)) {
        if (!options_.write) options_.write = write_to_stderr;
        terminal_ = options_.terminal.value_or(stderr_is_terminal());
        const char* no_color = std::getenv("NO_COLOR");
        color_ = options_.color.value_or(terminal_ && !(no_color && *no_color));
    }
    std::string kind() const override { return "progress_bar"; }
    Declaration declare() const override {
        return {.listens = {"training_run_start", "train_epoch_start", "train_step_end", "rolled_back", "eval_epoch_start", "eval_step_end",
                            "training_run_epoch_end", "evaluation_run_start", "evaluation_run_end", "training_run_end", "run_failed"},
                .reads = {"blackboard"}};
    }
    void attach(Attachment& run) override {
        run_ = &run;
        if (run.consensus.rank() != 0) return;  // the first one draws for all
        auto& bus = run.bus;
        connections_ += bus.observe<TrainingRunStart>(Stage::Report, [this](const TrainingRunStart& event) {
            note_plan(event.plan);
            if (event.position.in_epoch.micro_batch > 0) begin_epoch(event.position);  // resumed within it
        });
        connections_ += bus.observe<EvaluationRunStart>(Stage::Report, [this](const EvaluationRunStart& event) { note_plan(event.plan); });
        connections_ += bus.observe<TrainEpochStart>(Stage::Report, [this](const TrainEpochStart& event) { begin_epoch(event.position); });
        connections_ += bus.observe<TrainStepEnd>(Stage::Report, [this](const TrainStepEnd& event) {
            show(train_, event.position.in_epoch.micro_batch, event.position.in_epoch.samples);
        });
        connections_ += bus.observe<RolledBack>(Stage::Report, [this](const RolledBack& event) {
            line(roll_back_text(event));
            begin_epoch(event.position);
        });
        connections_ += bus.observe<EvalEpochStart>(Stage::Report, [this](const EvalEpochStart& event) {
            eval_ = {std::string(event.scope.split), "eval", batches_of(event.scope.split)};
            drawn_ = {};
        });
        connections_ += bus.observe<EvalStepEnd>(Stage::Report, [this](const EvalStepEnd& event) { show(eval_, event.step + 1, 0); });
        connections_ += bus.observe<TrainingRunEpochEnd>(Stage::Report, [this](const TrainingRunEpochEnd& event) {
            line(epoch_text(run_->blackboard, event.position.epoch, epochs_) + fmt::format(" ({})", duration_text(seconds_since(train_.began))));
        });
        connections_ += bus.observe<EvaluationRunEnd>(Stage::Report, [this](const EvaluationRunEnd&) {
            line("evaluation: " + metrics_text(run_->blackboard, "eval"));
        });
        connections_ += bus.observe<TrainingRunEnd>(Stage::Report, [this](const TrainingRunEnd& event) {
            if (event.result.outcome == Outcome::Finished) return erase();
            line(stop_text(event));
        });
        connections_ += bus.observe<RunFailed>(Stage::Report, [this](const RunFailed& event) { line("failed: " + event.error); });
    }
    void detach() override {
        erase();
        connections_.clear();
        run_ = nullptr;
    }

private:
    /// What a bar is drawn for.
    struct Pass {
        std::string title, role;
        std::int64_t batches = 0;         ///< 0: not known
        Counts first = {};                ///< done when it began here: not 0 where a run goes on within it
        Clock::time_point began = Clock::now();
    };

    static double seconds_since(Clock::time_point then) { return std::chrono::duration<double>(Clock::now() - then).count(); }

    void note_plan(const RunPlan& plan) {
        epochs_ = plan.epochs.value_or(0);
        splits_ = plan.splits;
    }
    std::int64_t batches_of(std::string_view split) const {
        const auto found = std::ranges::find(splits_, split, &SplitPlan::name);
        return found == splits_.end() ? 0 : found->length().value_or(0);
    }
    void begin_epoch(const Position& position) {
        train_ = {epochs_ > 0 ? fmt::format("epoch {}/{}", position.epoch + 1, epochs_) : fmt::format("epoch {}", position.epoch + 1), "train", batches_of("train"), position.in_epoch};
        drawn_ = {};
    }
    /// Called on every step: most calls end after one look at the clock.
    void show(const Pass& pass, std::int64_t batches_done, std::int64_t samples_done) {
        if (!terminal_) return;
        const auto now = Clock::now();
        if (std::chrono::duration<double>(now - drawn_).count() < options_.redraw_seconds) return;
        drawn_ = now;
        draw(pass, batches_done, samples_done);
    }
    void draw(const Pass& pass, std::int64_t batches_done, std::int64_t samples_done) {
        const double elapsed = std::max(seconds_since(pass.began), 1e-9);
        const std::int64_t batches_here = batches_done - pass.first.micro_batch, samples_here = samples_done - pass.first.samples;
        std::string tail = pass.batches > 0 ? fmt::format(" {}/{}", batches_done, pass.batches) : fmt::format(" {}", batches_done);
        const std::string metrics = metrics_text(run_->blackboard, pass.role);
        if (!metrics.empty()) tail += fmt::format("  {}", metrics);
        if (samples_here > 0) tail += fmt::format("  {} samples/s", quantity_text(static_cast<double>(samples_here) / elapsed));
        if (pass.batches > 0 && batches_here > 0) tail += fmt::format("  ETA {}", duration_text(elapsed / static_cast<double>(batches_here) * static_cast<double>(pass.batches - batches_done)));
        const int columns = options_.columns.value_or(options_.terminal ? 80 : terminal_columns());
        const int room = columns - 1 - static_cast<int>(pass.title.size() + tail.size()) - 3;
        std::string text = pass.title;
        if (pass.batches > 0 && room >= 4) {
            const std::string bar = bar_of(static_cast<double>(batches_done) / static_cast<double>(pass.batches), std::min(room, 40));
            text += color_ ? fmt::format(" \x1b[36m{}\x1b[0m│", bar) : fmt::format(" {}│", bar);
            text += tail;
        } else {
            text = (pass.title + tail).substr(0, static_cast<std::size_t>(std::max(columns - 1, 0)));  // plain ASCII: cut anywhere
        }
        options_.write("\r\x1b[K" + text);
        shown_ = true;
    }
    void erase() {
        if (std::exchange(shown_, false)) options_.write("\r\x1b[K");
    }
    void line(const std::string& text) {
        erase();
        options_.write(text + "\n");
    }

    ProgressBarOptions options_;
    bool terminal_ = false, color_ = false, shown_ = false;
    Attachment* run_ = nullptr;
    std::int64_t epochs_ = 0;  // 0: not known
    std::vector<SplitPlan> splits_;
    Pass train_, eval_;
    Clock::time_point drawn_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_progress_bar(ProgressBarOptions options) {
    if (!(options.redraw_seconds >= 0)) throw ConfigError(fmt::format("progress_bar: redraw_seconds: {} is negative; give a time, e.g. 0.1", options.redraw_seconds));
    return std::make_unique<ProgressBar>(std::move(options));
}

std::unique_ptr<Callback> progress_bar_from_json(OptionReader& reader) {
    ProgressBarOptions options;
    reader.number("redraw_seconds", options.redraw_seconds, "least time between two redraws, in seconds", Range::at_least(0));
    return make_progress_bar(std::move(options));
}

}  // namespace torchbus
