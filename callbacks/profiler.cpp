#include <torchbus/callbacks/profiler.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>
#include <system_error>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/checkpoint/writable.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/steady_seconds.hpp"

namespace torchbus {
namespace {

using Nanoseconds = std::int64_t;
using nlohmann::json;

/// The tracks of the trace, by their thread id.
enum class Track : std::uint8_t { Run = 1, Subscribers = 2 };

/// Spans that lie within each other, as complete events. Times are whole nanoseconds, so that a part never sticks out of its whole.
class Trace {
public:
    void open(std::string_view name, Nanoseconds at, json args) { open_.push_back({std::string(name), at, std::move(args)}); }
    /// Closes the innermost open span of that name and what is still open within it; nothing where there is none.
    void close(std::string_view name, Nanoseconds at) {
        if (std::ranges::none_of(open_, [&](const Open& span) { return span.name == name; })) return;
        while (close_innermost(at) != name) {}
    }
    void close_all(Nanoseconds at) {
        while (!open_.empty()) close_innermost(at);
    }
    void add(Track track, std::size_t depth, std::string_view name, Nanoseconds from, Nanoseconds to, json args) {
        spans_.push_back({track, depth, std::string(name), from, to - from, std::move(args)});
    }
    void add_within_open(std::string_view name, Nanoseconds from, Nanoseconds to, json args) { add(Track::Run, open_.size(), name, from, to, std::move(args)); }
    json& args_of_innermost() { return open_.back().args; }
    bool is_open(std::string_view name) const { return !open_.empty() && open_.back().name == name; }

    /// Times are told from `begin` on.
    std::string to_json(int rank, Nanoseconds begin) {
        std::ranges::stable_sort(spans_, {}, [](const Span& span) { return std::tuple(span.track, span.from, span.depth); });
        const int pid = rank + 1;
        std::string text = fmt::format(R"([{{"ph":"M","pid":{},"tid":0,"name":"process_name","args":{{"name":"rank {}"}}}})", pid, rank);
        for (const auto& [track, name] : {std::pair{Track::Run, "run"}, std::pair{Track::Subscribers, "subscribers"}})
            text += fmt::format(",\n" R"({{"ph":"M","pid":{},"tid":{},"name":"thread_name","args":{{"name":"{}"}}}})", pid, static_cast<int>(track), name);
        for (const Span& span : spans_)
            text += fmt::format(",\n" R"({{"ph":"X","pid":{},"tid":{},"ts":{},"dur":{},"name":{},"args":{}}})", pid, static_cast<int>(span.track),
                                microseconds(span.from - begin), microseconds(span.duration), json(span.name).dump(), span.args.dump(-1, ' ', false, json::error_handler_t::replace));
        return text + "]\n";
    }

private:
    struct Open {
        std::string name;
        Nanoseconds from;
        json args;
    };
    struct Span {
        Track track;
        std::size_t depth;
        std::string name;
        Nanoseconds from, duration;
        json args;
    };
    static std::string microseconds(Nanoseconds value) { return fmt::format("{}.{:03}", value / 1000, value % 1000); }
    std::string close_innermost(Nanoseconds at) {
        Open span = std::move(open_.back());
        open_.pop_back();
        spans_.push_back({Track::Run, open_.size(), span.name, span.from, at - span.from, std::move(span.args)});
        return span.name;
    }
    std::vector<Open> open_;
    std::vector<Span> spans_;
};

/// profile.json → profile.rank1.json
std::filesystem::path path_of_rank(std::filesystem::path path, const Consensus& consensus) {
    if (consensus.world_size() == 1) return path;
    const std::string name = fmt::format("{}.rank{}{}", path.stem().string(), consensus.rank(), path.extension().string());
    return path.replace_filename(name);
}

class Profiler final : public Callback {
public:
    explicit Profiler(ProfilerOptions options) : options_(std::move(options)) {
        if (!options_.clock) options_.clock = steady_seconds;
    }
    std::string kind() const override { return "profiler"; }
    Declaration declare() const override {
        return {.listens = {"training_run_start", "train_epoch_start", "train_epoch_end", "train_step_start", "train_step_end", "forward_start", "forward_end",
                            "backward_start", "backward_end", "optimizer_step_start", "optimizer_step_end", "eval_epoch_start", "eval_epoch_end",
                            "eval_step_start", "eval_step_end", "step_checkpoint", "epoch_checkpoint", "run_closed"},
                .subscriber = {.fault = Fault::Optional}};
    }
    std::vector<Finding> check(const Outlook&) const override {
        const std::filesystem::path folder = std::filesystem::path(options_.path).parent_path();
        auto findings = check_folder(kind(), "path", folder.empty() ? "." : folder);
        for (Finding& finding : findings) finding.weight = Finding::Weight::Warning;  // the run is worth more than its trace
        return findings;
    }
    void attach(Attachment& run) override {
        run_ = &run;
        wait_from(run.moment.position);  // it may be attached while a run is under way
        connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart& event) {
            wait_from(event.position);
            if (options_.start == 0) begin(event.position);
        });
        // What is short starts late and ends early, so that it holds no observer; what is long holds those of its events.
        attach_short<ForwardStart, ForwardEnd>("forward", [](const ForwardStart& event) { return json{{"micro_batch", event.micro_batch.index}}; });
        attach_short<BackwardStart, BackwardEnd>("backward", [](const BackwardStart& event) { return json{{"micro_batch", event.micro_batch.index}}; });
        attach_short<OptimizerStepStart, OptimizerStepEnd>("optimizer step", [](const OptimizerStepStart&) { return json::object(); });
        attach_long<EvalEpochStart, EvalEpochEnd>("evaluation", [](const EvalEpochStart& event) { return json{{"split", event.scope.split}, {"view", event.scope.view}}; });
        attach_long<EvalStepStart, EvalStepEnd>("evaluation step", [](const EvalStepStart& event) { return json{{"step", event.step}}; });
        attach_long<TrainEpochStart, TrainEpochEnd>("epoch", [](const TrainEpochStart& event) { return json{{"epoch", event.position.epoch}}; });
        connections_ += run.bus.observe<TrainEpochStart>(Stage::Persist, [this](const auto&) { idle_since_ = now(); });
        connections_ += run.bus.observe<TrainStepStart>(Stage::Observe, [this](const TrainStepStart& event) { start_step(event); });
        connections_ += run.bus.observe<TrainStepEnd>(Stage::Persist, [this](const TrainStepEnd& event) { end_step(event); });
        connections_ += run.bus.observe<StepCheckpoint>(Stage::Observe, [this](const StepCheckpoint& event) { start_save("step_checkpoint", {{"requester", event.requester}, {"reason", event.reason}}); });
        connections_ += run.bus.observe<EpochCheckpoint>(Stage::Observe, [this](const EpochCheckpoint&) { start_save("epoch_checkpoint", json::object()); });
        connections_ += run.bus.observe<RunClosed>(Stage::Persist, [this](const RunClosed& event) { close(event); });
    }
    void detach() override {
        connections_.clear();
        forget();
        run_ = nullptr;
    }

private:
    enum class Phase : std::uint8_t { Idle, Waiting, Recording };
    struct Save {
        Nanoseconds since;
        std::string event;
        double seconds_before;  ///< that all subscribers had taken at this event
        json args;
    };
    using Costs = std::map<std::pair<std::string, std::string>, std::pair<double, std::uint64_t>>;  ///< seconds and calls, by subscriber and event

    bool recording() const { return phase_ == Phase::Recording; }
    Nanoseconds now() const { return std::llround(options_.clock() * 1e9); }

    template <class Start, class End, class Args>
    void attach_short(const char* name, Args args) { attach_span<Start, End>(name, args, Stage::Persist, Stage::Observe); }
    template <class Start, class End, class Args>
    void attach_long(const char* name, Args args) { attach_span<Start, End>(name, args, Stage::Observe, Stage::Persist); }
    template <class Start, class End, class Args>
    void attach_span(const char* name, Args args, Stage start, Stage end) {
        connections_ += run_->bus.observe<Start>(start, [this, name, args](const Start& event) {
            if (!recording()) return;
            settle_before_span();
            trace_.open(name, now(), args(event));
        });
        connections_ += run_->bus.observe<End>(end, [this, name](const End&) {
            if (!recording()) return;
            settle_before_span();
            trace_.close(name, now());
        });
    }
    /// What the time since the last event was: the rest of a save, and no wait for data.
    void settle_before_span() {
        idle_since_.reset();
        end_save();
    }

    void wait_from(const Position& position) {
        forget();
        phase_ = Phase::Waiting;
        first_attempt_ = position.attempts;
    }
    void begin(const Position& position) {
        phase_ = Phase::Recording;
        began_ = last_mark_ = now();
        recorded_until_ = position.attempts + options_.steps;
        costs_ = costs();
    }
    void start_step(const TrainStepStart& event) {
        if (!recording()) return;
        end_save();
        const Nanoseconds at = now();
        if (idle_since_) trace_.add_within_open("data wait", *idle_since_, at, json::object());
        idle_since_.reset();
        json args = {{"step", event.position.step}, {"micro_batches", event.window.count()}};
        if (!event.update.name.empty()) args["update"] = event.update.name;
        trace_.open("step", at, std::move(args));
    }
    void end_step(const TrainStepEnd& event) {
        if (phase_ == Phase::Waiting && event.position.attempts - first_attempt_ >= options_.start) {
            begin(event.position);
            trace_.open("epoch", began_, {{"epoch", event.position.epoch}});  // its part from now on
            idle_since_ = began_;
            return;
        }
        if (!recording()) return;
        const Nanoseconds at = now();
        if (event.skipped && trace_.is_open("step")) trace_.args_of_innermost()["skipped"] = true;
        trace_.close("step", at);
        if (options_.subscribers) add_subscribers(at);
        last_mark_ = at;
        idle_since_ = now();
        if (event.position.attempts >= recorded_until_) write(at);
    }

    void start_save(const char* event, json args) {
        if (!recording()) return;
        settle_before_span();
        save_ = Save{now(), event, seconds_at(event), std::move(args)};
    }
    /// Savers work in stages after the one this subscriber saw it in: the accounting tells how long.
    void end_save() {
        if (!save_) return;
        const Save save = *std::exchange(save_, std::nullopt);
        const Nanoseconds duration = std::llround((seconds_at(save.event) - save.seconds_before) * 1e9);
        trace_.add_within_open("save", save.since, std::clamp(save.since + duration, save.since, now()), save.args);
    }
    double seconds_at(std::string_view event) const {
        double seconds = 0;
        for (const AccountingRow& row : run_->bus.accounting())
            if (row.event == event) seconds += row.seconds;
        return seconds;
    }

    Costs costs() const {
        Costs all;
        for (const AccountingRow& row : run_->bus.accounting()) all[{row.subscriber, row.event}] = {row.seconds, row.calls};
        return all;
    }
    /// One after the other since the last mark; within each subscriber its events.
    void add_subscribers(Nanoseconds until) {
        Costs after = costs();
        Nanoseconds cursor = last_mark_;
        for (auto row = after.begin(); row != after.end();) {
            const std::string& subscriber = row->first.first;
            const Nanoseconds from = cursor;
            std::uint64_t calls = 0;
            for (; row != after.end() && row->first.first == subscriber; ++row) {
                const auto [seconds_before, calls_before] = costs_[row->first];
                const auto [seconds, calls_now] = row->second;
                if (calls_now == calls_before) continue;
                const Nanoseconds end = std::min(until, cursor + std::max<Nanoseconds>(std::llround((seconds - seconds_before) * 1e9), 0));
                trace_.add(Track::Subscribers, 1, row->first.second, cursor, end, {{"calls", calls_now - calls_before}});
                cursor = end;
                calls += calls_now - calls_before;
            }
            if (calls > 0) trace_.add(Track::Subscribers, 0, subscriber, from, cursor, {{"calls", calls}});
        }
        costs_ = std::move(after);
    }

    void close(const RunClosed& event) {
        if (recording()) {
            end_save();
            write(now());
        } else if (phase_ == Phase::Waiting && event.position.attempts > first_attempt_) {  // not of an evaluation
            warn(fmt::format("profiler: the run ended after {} steps and nothing was recorded, as start is {}; let it start earlier",
                             event.position.attempts - first_attempt_, options_.start));
        }
        forget();
    }
    void write(Nanoseconds at) {
        phase_ = Phase::Idle;  // also where writing fails
        trace_.close_all(at);
        const std::filesystem::path path = path_of_rank(options_.path, run_->consensus);
        std::error_code told_by_the_file;
        if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), told_by_the_file);
        AtomicFile file(path);
        file.write(trace_.to_json(run_->consensus.rank(), began_));
        file.commit();
        forget();
    }
    void forget() {
        phase_ = Phase::Idle;
        trace_ = {};
        save_.reset();
        idle_since_.reset();
        costs_.clear();
    }

    ProfilerOptions options_;
    Attachment* run_ = nullptr;
    Phase phase_ = Phase::Idle;
    std::int64_t first_attempt_ = 0;   ///< of this run, which may be a resumed one
    std::int64_t recorded_until_ = 0;  ///< attempts
    Nanoseconds began_ = 0, last_mark_ = 0;
    std::optional<Nanoseconds> idle_since_;
    std::optional<Save> save_;
    Costs costs_;
    Trace trace_;
    Connections connections_;
};

void refuse(const char* name, const std::string& value, const char* expected) {
    throw ConfigError(fmt::format("profiler: {}: {} is out of range; give {}", name, value, expected));
}

}  // namespace

std::unique_ptr<Callback> make_profiler(ProfilerOptions options) {
    if (options.path.empty()) throw ConfigError("profiler: path is empty; give a file, e.g. profile.json");
    if (options.start < 0) refuse("start", std::to_string(options.start), "a number of steps, e.g. 10");
    if (options.steps < 1 || options.steps > 100000) refuse("steps", std::to_string(options.steps), "1 to 100000 steps, e.g. 10");
    return std::make_unique<Profiler>(std::move(options));
}

std::unique_ptr<Callback> profiler_from_json(OptionReader& reader) {
    ProfilerOptions options;
    reader.text("path", options.path, "file of the trace; a former one is replaced")
        .integer("start", options.start, "attempted updates before the recording begins; 0: with the run", Range::at_least(0))
        .integer("steps", options.steps, "attempted updates recorded", Range::between(1, 100000))
        .boolean("subscribers", options.subscribers, "a track with the time of every subscriber in every step");
    return make_profiler(std::move(options));
}

}  // namespace torchbus
