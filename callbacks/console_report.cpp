#include <torchbus/callbacks/console_report.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/progress_text.hpp"

namespace torchbus {
namespace {

constexpr std::size_t kColumns = 80;

/// Columns that UTF-8 text takes: all bytes but continuation bytes.
std::size_t columns_of(std::string_view text) {
    return static_cast<std::size_t>(std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

/// Breaks text at white space into lines of at most 80 columns, the first one and the later ones indented; a word that is longer is kept whole.
std::string fold(std::string_view text, std::size_t first_indent, std::size_t indent) {
    std::string folded, line(first_indent, ' ');
    bool line_has_words = false;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find_first_of(" \n\t"), text.size());
        const std::string_view word = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        if (word.empty()) continue;
        if (line_has_words && columns_of(line) + 1 + columns_of(word) > kColumns) {
            folded += line + "\n";
            line.assign(indent, ' ');
        } else if (line_has_words) {
            line += ' ';
        }
        line += word;
        line_has_words = true;
    }
    return folded + line + "\n";
}

/// Cut to `width` columns, with an ellipsis, and filled up to it.
std::string fit(std::string_view text, std::size_t width) {
    std::string shown(text);
    if (columns_of(text) > width) {
        while (columns_of(shown) + 1 > width || (!shown.empty() && (static_cast<unsigned char>(shown.back()) & 0xC0) == 0x80)) shown.pop_back();
        shown += "…";
    }
    return shown.append(width - std::min(width, columns_of(shown)), ' ');
}

std::string_view word_of(Mode mode) { return mode == Mode::Train ? "training" : mode == Mode::Eval ? "evaluation" : "prediction"; }

struct Cost {
    std::uint64_t calls = 0;
    double seconds = 0, thread_seconds = 0;
};
using Costs = std::map<std::string, Cost>;

Costs costs_of(const std::vector<AccountingRow>& rows) {
    Costs costs;
    for (const AccountingRow& row : rows) {
        Cost& cost = costs[row.subscriber];
        cost.calls += row.calls;
        cost.seconds += row.seconds;
        cost.thread_seconds += row.thread_seconds;
    }
    return costs;
}

class ConsoleReport final : public Callback {
public:
    explicit ConsoleReport(ConsoleReportOptions options) : options_(std::move(options)) {
        if (!options_.write) options_.write = write_to_stderr;
    }
    std::string kind() const override { return "console_report"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "decision_taken", "training_run_epoch_end", "run_closed"}, .reads = {"blackboard"}};
    }
    void attach(Attachment& run) override {
        run_ = &run;
        forget();
        costs_before_ = costs_of(run.bus.accounting());
        connections_ += run.bus.observe<RunConfigured>(Stage::Report, [this](const RunConfigured&) { begin(); });
        connections_ += run.bus.observe<DecisionTaken>(Stage::Report, [this](const DecisionTaken& event) { note(event); });
        connections_ += run.bus.observe<TrainingRunEpochEnd>(Stage::Report, [this](const TrainingRunEpochEnd& event) { note_metrics(event.position.epoch); });
        connections_ += run.bus.observe<RunClosed>(Stage::Report, [this](const RunClosed& event) {
            if (run_->consensus.rank() == 0) options_.write(text_of(event));
            forget();
            costs_before_ = costs_of(run_->bus.accounting());
        });
    }
    void detach() override {
        connections_.clear();
        forget();
        costs_before_.clear();
        run_ = nullptr;
    }
    SavedState state() const override {
        SavedState saved;
        for (const auto& [name, seen] : metrics_) saved.values[name] = {{"last", seen.last}, {"best", seen.best}, {"best_epoch", seen.best_epoch}};
        return saved;
    }
    void load_state(const SavedState& state) override {
        metrics_.clear();
        const auto number = [](const nlohmann::json& value) { return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN(); };
        for (const auto& [name, seen] : state.values.items()) metrics_[name] = {number(seen.at("last")), number(seen.at("best")), seen.at("best_epoch")};
    }

private:
    using Clock = std::chrono::steady_clock;
    struct Seen {
        double last = 0, best = 0;
        std::int64_t best_epoch = 0;
    };
    struct Taken {
        std::int64_t times = 0, step = 0;
        std::string reason;
    };

    void forget() {
        began_ = Clock::now();
        mode_ = Mode::Train;
        metrics_.clear();
        decisions_.clear();
    }
    /// Keeps what load_state() may have brought.
    void begin() {
        began_ = Clock::now();
        mode_ = run_->moment.mode;
    }
    /// Of one kind and requester only the last is kept: a save every step must not fill the memory.
    void note(const DecisionTaken& event) {
        Taken& taken = decisions_[{event.decision, event.request.requester}];
        ++taken.times;
        taken.step = event.position.step;
        taken.reason = event.request.reason;
    }
    void note_metrics(std::int64_t epoch) {
        for (const std::string& name : run_->blackboard.names()) {
            const bool of_run = name.starts_with("eval.") || (name.starts_with("train.") && mode_ == Mode::Train);
            if (!of_run) continue;
            const double value = *run_->blackboard.number(name);
            const auto [place, first] = metrics_.try_emplace(name);
            Seen& seen = place->second;
            seen.last = value;
            // A NaN is never better, and anything is better than a NaN.
            if (first || std::isnan(seen.best) || (is_higher_better(name) ? value > seen.best : value < seen.best)) seen.best = value, seen.best_epoch = epoch;
        }
    }
    bool is_higher_better(std::string_view name) const {
        return std::ranges::count(options_.higher_is_better, name.substr(name.rfind('.') + 1)) > 0;
    }

    std::string text_of(const RunClosed& event) {
        const double seconds = std::chrono::duration<double>(Clock::now() - began_).count();
        std::string text = heading(event, seconds);
        if (options_.metrics) text += metrics_text(event.position.epoch);
        if (options_.decisions) text += decisions_text();
        if (options_.accounting) text += accounting_text(seconds);
        return text;
    }
    std::string heading(const RunClosed& event, double seconds) const {
        const RunResult& result = event.result;
        const Position& at = event.position;
        std::string why = result.reason;
        if (!result.requester.empty() && !why.starts_with(result.requester)) why = fmt::format("{}: {}", result.requester, why);
        std::string text = fold(fmt::format("{} {}{}{}", word_of(mode_), name_of(result.outcome), why.empty() ? "" : ": ", why), 0, 2);
        text += fmt::format("  {} in {} steps", duration_text(seconds), at.step);
        if (at.attempts > at.step) text += fmt::format(" ({} skipped)", at.attempts - at.step);
        return text + fmt::format(", {} epochs, {} samples\n", at.epoch, at.samples);
    }
    std::string metrics_text(std::int64_t epoch) {
        if (mode_ != Mode::Train || metrics_.empty()) note_metrics(epoch);  // an evaluation has no epochs, nor has a run that ended within its first
        if (metrics_.empty()) return {};
        std::string text = fmt::format("\n{}{:>14}{:>14}{:>12}\n", fit("metric", 40), "last", "best", "in epoch");
        for (const auto& [name, seen] : metrics_) text += fmt::format("{}{:>14.6g}{:>14.6g}{:>12}\n", fit(name, 40), seen.last, seen.best, seen.best_epoch);
        return text;
    }
    std::string decisions_text() const {
        if (decisions_.empty()) return {};
        std::string text = "\ndecisions\n";
        for (const auto& [of, taken] : decisions_) {
            const std::string times = taken.times == 1 ? "" : fmt::format(", {} times, the last one", taken.times);
            text += fold(fmt::format("{}{} at step {}: {}: {}", name_of(of.first), times, taken.step, of.second, taken.reason), 2, 4);
        }
        return text;
    }
    std::string accounting_text(double run_seconds) const {
        std::vector<std::pair<std::string, Cost>> rows;
        for (auto [id, cost] : costs_of(run_->bus.accounting())) {
            if (const auto before = costs_before_.find(id); before != costs_before_.end()) {
                cost.calls -= before->second.calls;
                cost.seconds -= before->second.seconds;
                cost.thread_seconds -= before->second.thread_seconds;
            }
            if (cost.calls > 0) rows.emplace_back(std::move(id), cost);
        }
        if (rows.empty()) return {};
        std::ranges::stable_sort(rows, std::greater(), [](const auto& row) { return row.second.seconds; });
        const auto shown = static_cast<std::size_t>(options_.max_subscribers);
        Cost others, all;
        for (std::size_t i = 0; i < rows.size(); ++i)
            for (Cost* sum : {i >= shown ? &others : nullptr, &all})
                if (sum) sum->calls += rows[i].second.calls, sum->seconds += rows[i].second.seconds, sum->thread_seconds += rows[i].second.thread_seconds;
        const std::size_t left = rows.size() > shown ? rows.size() - shown : 0;
        if (left > 0) {
            rows.resize(shown);
            rows.emplace_back(fmt::format("{} others", left), others);
        }
        rows.emplace_back("all", all);
        const bool threads = all.thread_seconds > 0;
        std::string text = fmt::format("\n{}{:>10}{:>12}{}{:>9}\n", fit("subscriber", threads ? 25 : 37), "calls", "total ms", threads ? "   µs a call   thread ms" : "   µs a call", "share");
        for (const auto& [id, cost] : rows) {
            text += fmt::format("{}{:>10}{:>12.2f}{:>12.2f}", fit(id, threads ? 25 : 37), cost.calls, cost.seconds * 1e3, cost.seconds * 1e6 / static_cast<double>(cost.calls));
            if (threads) text += fmt::format("{:>12.2f}", cost.thread_seconds * 1e3);
            text += fmt::format("{:>7.2f} %\n", run_seconds > 0 ? cost.seconds / run_seconds * 100 : 0.0);
        }
        return text;
    }

    ConsoleReportOptions options_;
    Attachment* run_ = nullptr;
    Clock::time_point began_ = Clock::now();
    Mode mode_ = Mode::Train;
    std::map<std::string, Seen> metrics_;
    std::map<std::pair<Decision, std::string>, Taken> decisions_;
    Costs costs_before_;  ///< when this run began: the bus counts since it was made
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_console_report(ConsoleReportOptions options) {
    if (options.max_subscribers < 1)
        throw ConfigError(fmt::format("console_report: max_subscribers: {} is too few; give at least 1, or turn accounting off", options.max_subscribers));
    return std::make_unique<ConsoleReport>(std::move(options));
}

std::unique_ptr<Callback> console_report_from_json(OptionReader& reader) {
    ConsoleReportOptions options;
    reader.boolean("metrics", options.metrics, "last and best value of every metric")
        .boolean("decisions", options.decisions, "decisions taken during the run, with who asked and why")
        .boolean("accounting", options.accounting, "calls and time of every subscriber")
        .integer("max_subscribers", options.max_subscribers, "lines of the accounting; the others are summed up", Range::at_least(1))
        .texts("higher_is_better", options.higher_is_better, "last parts of the names of metrics whose largest value is the best");
    return make_console_report(std::move(options));
}

}  // namespace torchbus
