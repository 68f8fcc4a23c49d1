#include <torchbus/callbacks/learning_rate_finder.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include <fmt/format.h>
#include <torch/optim/optimizer.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/checkpoint/writable.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

std::string rate_text(const std::optional<double>& rate) { return rate ? fmt::format("{:.2e}", *rate) : "none"; }

// ── what the records say ─────────────────────────────────────────────────────────────────────────────────────────
/// Both suggestions, from the records between the skipped ones.
void suggest(LearningRateRange& range, const LearningRateFinderOptions& options) {
    const auto begin = options.skip_first, end = std::ssize(range.losses) - options.skip_last;
    if (end - begin < 3) return;
    const auto at = [](const std::vector<double>& of, std::int64_t i) { return of[static_cast<std::size_t>(i)]; };
    double steepest = 0, smallest = at(range.losses, begin);
    range.minimum_tenth = at(range.rates, begin) / 10;
    for (std::int64_t i = begin; i < end; ++i) {
        if (at(range.losses, i) < smallest) smallest = at(range.losses, i), range.minimum_tenth = at(range.rates, i) / 10;
        if (i == begin || i + 1 == end) continue;
        // central difference; the rates are equally far apart in log(rate)
        const double slope = (at(range.losses, i + 1) - at(range.losses, i - 1)) / std::log(at(range.rates, i + 1) / at(range.rates, i - 1));
        if (slope < steepest) steepest = slope, range.steepest = at(range.rates, i);
    }
}

// ── the plot ─────────────────────────────────────────────────────────────────────────────────────────────────────
/// Smoothed loss over log10(rate), with the suggestions as vertical lines.
class Plot {
public:
    explicit Plot(const LearningRateRange& range) : range_(range) {
        x_low_ = std::log10(range.rates.front());
        x_high_ = std::max(std::log10(range.rates.back()), x_low_ + 1e-9);
        const auto [low, high] = std::ranges::minmax(range.losses);
        y_low_ = low;
        // The last points of a divergence would flatten all others.
        y_high_ = std::max(std::min(high, low + 2 * (range.losses.front() - low) + 1e-9), low + 1e-9);
    }
    std::string svg() const {
        std::string out = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n"
                                      "<rect width=\"{}\" height=\"{}\" fill=\"white\"/>\n", kWidth, kHeight, kWidth, kHeight);
        for (double decade = std::ceil(x_low_); decade <= x_high_; ++decade)
            out += fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#ddd\"/><text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\">1e{4:.0f}</text>\n",
                               x(decade), kMargin, kHeight - kMargin, kHeight - kMargin + 16, decade);
        for (const double loss : {y_low_, y_high_})
            out += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.3g}</text>\n", kMargin - 4, y(loss) + 4, loss);
        out += "<polyline fill=\"none\" stroke=\"#1f77b4\" stroke-width=\"2\" points=\"";
        for (std::size_t i = 0; i < range_.rates.size(); ++i) out += fmt::format("{:.1f},{:.1f} ", x(std::log10(range_.rates[i])), y(range_.losses[i]));
        out += "\"/>\n" + mark(range_.steepest, "steepest", "#d62728") + mark(range_.minimum_tenth, "minimum / 10", "#2ca02c");
        return out + fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">learning rate</text>\n"
                                 "<text x=\"{}\" y=\"20\" text-anchor=\"middle\">smoothed training loss</text>\n</svg>\n", kWidth / 2, kHeight - 8, kWidth / 2);
    }

private:
    static constexpr int kWidth = 720, kHeight = 420, kMargin = 56;
    double x(double log_rate) const { return kMargin + (log_rate - x_low_) / (x_high_ - x_low_) * (kWidth - 2 * kMargin); }
    double y(double loss) const { return kHeight - kMargin - (std::min(loss, y_high_) - y_low_) / (y_high_ - y_low_) * (kHeight - 2 * kMargin); }
    std::string mark(const std::optional<double>& rate, const char* name, const char* colour) const {
        if (!rate) return {};
        const double at = std::clamp(x(std::log10(*rate)), double{kMargin}, double{kWidth - kMargin});
        return fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\" stroke=\"{3}\" stroke-dasharray=\"4 3\"/>"
                           "<text x=\"{4:.1f}\" y=\"{5}\" fill=\"{3}\">{6} {7}</text>\n",
                           at, kMargin, kHeight - kMargin, colour, at + 4, kMargin + (std::string_view(name) == "steepest" ? 12 : 28), name, rate_text(rate));
    }
    const LearningRateRange& range_;
    double x_low_ = 0, x_high_ = 1, y_low_ = 0, y_high_ = 1;
};

constexpr const char* kNoneOfTheRun = "what one does, the other would take for the run's own";

class LearningRateFinder final : public Callback {
public:
    explicit LearningRateFinder(LearningRateFinderOptions options) : options_(std::move(options)) {
        if (!options_.write) options_.write = [](std::string_view text) { std::fwrite(text.data(), 1, text.size(), stderr); };
    }
    std::string kind() const override { return "learning_rate_finder"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "training_run_start", "train_step_start", "train_step_end", "training_run_end", "run_failed", "run_closed"},
                .reads = {"loss"}, .writes = {"learning_rate", "parameters"},
                .publishes = {{"learning_rate_finder.steepest", "training_run_end", Stage::Report}, {"learning_rate_finder.minimum_tenth", "training_run_end", Stage::Report}},
                .after = {"learning_rate_schedule", "model_ema"}, .excludes = {{"save_training_state", kNoneOfTheRun}, {"save_best", kNoneOfTheRun}}, .asks = {Decision::StopRun}};
    }
    void attach(Attachment& run) override {
        if (run.consensus.world_size() > 1)
            throw ConfigError(fmt::format("learning_rate_finder: it works in one process, and there are {} ranks; find the rate with one, and scale it by the batch size", run.consensus.world_size()));
        run_ = &run;
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { remember_rates(event.updates); });
        connections_ += run.bus.intercept<TrainingRunStart>([this](TrainingRunStart&) { keep_state(); });
        connections_ += run.bus.intercept<TrainStepStart>([this](TrainStepStart& event) { set_rate(event.update); });
        connections_ += run.bus.observe<TrainStepEnd>(Stage::Report, [this](const TrainStepEnd& event) {
            if (!event.skipped && !done_ && !kept_.empty()) record(event.loss.item<double>());
        });
        connections_ += run.bus.observe<TrainingRunEnd>(Stage::Report, [this](const TrainingRunEnd&) { tell(); });
        // Within the run, where callbacks take a state for that of the run under way, not of one to be gone on with.
        connections_ += run.bus.observe<TrainingRunEnd>(Stage::Persist, [this](const TrainingRunEnd&) { put_back(true); });
        connections_ += run.bus.observe<RunFailed>(Stage::Persist, [this](const RunFailed&) { put_back(true); });
        connections_ += run.bus.observe<RunClosed>(Stage::Persist, [this](const RunClosed&) { put_back(true); });  // for certain
    }
    std::vector<Finding> check(const Outlook& run) const override {
        if (run.updates.size() > 1)
            return {{Finding::Weight::Error, "'learning_rate_finder' tests one update, and the run has several; give the trainer one of them alone"}};
        if (run.length.steps && *run.length.steps < options_.steps)
            return {{Finding::Weight::Warning, fmt::format("'learning_rate_finder' needs {} steps, and the run has {}; give more epochs, or fewer `steps`",
                                                           options_.steps, *run.length.steps)}};
        return options_.plot.empty() ? std::vector<Finding>() : check_file(kind(), "plot", options_.plot);
    }
    /// Within a test that was not finished: the callbacks may be going too, so only the run's own parts are put back.
    void detach() override {
        connections_.clear();
        try {
            put_back(false);
        } catch (const std::exception& error) {
            warn(fmt::format("learning_rate_finder: the state before the test could not be put back: {}", error.what()));
        }
        base_rates_.clear();
        optimizers_.clear();
        kept_.clear();
        range_ = {};
        run_ = nullptr;
    }

private:
    /// Rates and optimizers are known from here on; what else the run changes is not touched yet.
    void remember_rates(const std::vector<Update>& updates) {
        base_rates_.clear();
        optimizers_.clear();
        for (const Update& update : updates) {
            optimizers_.push_back(update.optimizer);
            for (const auto& group : update.optimizer->param_groups()) base_rates_[update.optimizer.get()].push_back(group.options().get_lr());
        }
    }

    void keep_state() {
        kept_.clear();
        range_ = {};
        average_ = 0;
        done_ = false;
        smallest_.reset();
        for (const std::string& part : run_->run_state.parts()) {
            if (!is_changed(part) || part == own_part()) continue;
            SavedState state = run_->run_state.save(part);
            for (auto& [name, tensor] : state.tensors) tensor = tensor.detach().clone();
            kept_.emplace_back(part, std::move(state));
        }
    }
    /// Where a run is and what it is, the next one knows itself; history and blackboard begin anew with it.
    static bool is_changed(std::string_view part) {
        constexpr auto kOthers = std::to_array<std::string_view>({"position", "data", "decisions", "configuration", "history", "blackboard"});
        return std::ranges::find(kOthers, part) == kOthers.end();
    }
    std::string own_part() const { return "callback." + run_->bus.id(); }

    double rate() const { return options_.first * std::pow(options_.last / options_.first, static_cast<double>(range_.rates.size()) / static_cast<double>(options_.steps - 1)); }

    void set_rate(Update& update) {
        if (done_ || kept_.empty()) return;  // kept_ is empty where the run had begun before
        const auto& base = base_rates_.at(update.optimizer.get());
        auto& groups = update.optimizer->param_groups();
        for (std::size_t i = 0; i < groups.size(); ++i) groups[i].options().set_lr(rate() * (base[0] > 0 ? base[i] / base[0] : 1.0));
    }

    /// average ← smoothing · average + (1 − smoothing) · loss, divided by 1 − smoothing^n.
    void record(double loss) {
        const double at = rate();
        const auto count = static_cast<double>(range_.rates.size() + 1);
        average_ = options_.smoothing * average_ + (1 - options_.smoothing) * loss;
        const double smoothed = average_ / (1 - std::pow(options_.smoothing, count));
        range_.diverged = !std::isfinite(smoothed) || (smallest_ && smoothed > options_.divergence_factor * *smallest_);
        if (std::isfinite(smoothed)) {
            range_.rates.push_back(at);
            range_.losses.push_back(smoothed);
            smallest_ = std::min(smallest_.value_or(smoothed), smoothed);
        }
        done_ = range_.diverged || std::ssize(range_.rates) >= options_.steps;
        if (done_) run_->asker.ask(Decision::StopRun, range_.diverged ? fmt::format("the range test is over: the loss diverged at a learning rate of {:.2e}", at)
                                                                      : fmt::format("the range test is over: {} learning rates were tried", range_.rates.size()));
    }

    void tell() {
        if (kept_.empty()) return;  // no training run
        suggest(range_, options_);
        if (range_.steepest) run_->blackboard.publish("learning_rate_finder.steepest", *range_.steepest);
        if (range_.minimum_tenth) run_->blackboard.publish("learning_rate_finder.minimum_tenth", *range_.minimum_tenth);
        options_.write(fmt::format("learning rate range test: {} of {} steps{}; suggestions: steepest {}, minimum/10 {}\n", range_.rates.size(), options_.steps,
                                   range_.diverged ? ", diverged" : done_ ? "" : ", the run ended before", rate_text(range_.steepest), rate_text(range_.minimum_tenth)));
        if (!options_.plot.empty() && !range_.rates.empty()) {
            AtomicFile file(options_.plot);
            file.write(Plot(range_).svg());
            file.commit();
        }
        if (options_.on_result) options_.on_result(range_);
    }

    /// Loading leaves what an optimizer has gathered for parameters that the saved one knew nothing of: it is cleared first.
    void put_back(bool callbacks_too) {
        const auto kept = std::exchange(kept_, {});
        if (kept.empty()) return;
        for (const auto& optimizer : optimizers_) optimizer->state().clear();
        for (const auto& [part, state] : kept)
            if (callbacks_too || !part.starts_with("callback.")) run_->run_state.load(part, state);
        for (const auto& optimizer : optimizers_) {
            auto& groups = optimizer->param_groups();
            for (std::size_t i = 0; i < groups.size(); ++i) groups[i].options().set_lr(base_rates_.at(optimizer.get())[i]);
        }
    }

    LearningRateFinderOptions options_;
    Attachment* run_ = nullptr;
    std::vector<std::shared_ptr<torch::optim::Optimizer>> optimizers_;
    std::map<const torch::optim::Optimizer*, std::vector<double>> base_rates_;  ///< one a parameter group
    std::vector<std::pair<std::string, SavedState>> kept_;  ///< the run's parts before the test: clones
    LearningRateRange range_;
    double average_ = 0;
    std::optional<double> smallest_;
    bool done_ = false;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_learning_rate_finder(LearningRateFinderOptions options) {
    const auto refuse = [](const char* name, double value, const char* what) {
        throw ConfigError(fmt::format("learning_rate_finder: {}: {} is out of range; give {}", name, value, what));
    };
    if (!(options.first > 0)) refuse("first", options.first, "a positive learning rate, e.g. 1e-7");
    if (!(options.last > options.first)) refuse("last", options.last, "a learning rate above `first`, e.g. 10");
    if (options.steps < 2) refuse("steps", static_cast<double>(options.steps), "at least 2 updates, e.g. 100");
    if (!(options.smoothing >= 0 && options.smoothing < 1)) refuse("smoothing", options.smoothing, "a weight from 0 to below 1, e.g. 0.98");
    if (!(options.divergence_factor > 1)) refuse("divergence_factor", options.divergence_factor, "a factor above 1, e.g. 4");
    if (options.skip_first < 0) refuse("skip_first", static_cast<double>(options.skip_first), "0 or more records");
    if (options.skip_last < 0) refuse("skip_last", static_cast<double>(options.skip_last), "0 or more records");
    return std::make_unique<LearningRateFinder>(std::move(options));
}

std::unique_ptr<Callback> learning_rate_finder_from_json(OptionReader& reader) {
    LearningRateFinderOptions options;
    std::string plot;
    reader.number("first", options.first, "learning rate of the first update; > 0", Range::positive())
        .number("last", options.last, "learning rate of the last update; above the first", Range::positive())
        .integer("steps", options.steps, "updates from the first to the last rate; ≥ 2", Range::at_least(2))
        .number("smoothing", options.smoothing, "weight of the past in the averaged loss; in [0, 1)", Range::from_to_below(0, 1))
        .number("divergence_factor", options.divergence_factor, "ends where the averaged loss is above so many times its smallest; > 1", Range::at_least(1))
        .integer("skip_first", options.skip_first, "first records that no suggestion comes from", Range::at_least(0))
        .integer("skip_last", options.skip_last, "last records that no suggestion comes from", Range::at_least(0))
        .text("plot", plot, "an SVG file; empty: none");
    options.plot = plot;
    return make_learning_rate_finder(std::move(options));
}

}  // namespace torchbus
