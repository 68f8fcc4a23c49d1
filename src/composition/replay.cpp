#include <torchbus/composition/replay.hpp>

#include <algorithm>
#include <array>
#include <ctime>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/name_pattern.hpp>
#include <torchbus/stream/numbers.hpp>
#include <torchbus/stream/tensorboard_file.hpp>

#include "../stream/json_member.hpp"
#include "../stream/recording.hpp"
#include "../trainer/attached_composition.hpp"
#include "recorded_events.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

constexpr std::size_t kMostStates = 64;  // that a run is thought to go back to

/// What of a recording decides on who can be told it.
struct RecordedContent {
    std::vector<std::vector<std::string>> patterns = {};  ///< of the events that were written, of each run in it
    std::set<std::string> every = {};                     ///< intervals of frequent ones
    std::set<std::string> numbers = {};

    explicit RecordedContent(const std::filesystem::path& path) {
        Recording recording(path);
        while (const RecordedMessage* message = recording.next()) {
            if (message->is_start()) {
                std::vector<std::string> events;
                for (const json& pattern : member_of(message->data(), "events"))
                    if (pattern.is_string()) events.push_back(pattern);
                patterns.push_back(std::move(events));
                every.insert(text_member(message->data(), "every"));
            } else if (const auto found = message->numbers()) {
                for (const auto& [name, value] : found->fresh) numbers.insert(name);
            }
        }
        if (patterns.empty()) throw DataError(fmt::format("{}: it holds no message stream_start, with which recordings begin; is it written by event_file?", recording.path().string()));
    }
    bool has(const std::string& event) const {
        return std::ranges::all_of(patterns, [&](const std::vector<std::string>& of_run) { return matches_any(of_run, event); });
    }
};

/// `eval.noisy.ema.loss` → `eval.loss`, as which it is declared.
std::string declared_name(std::string_view name) {
    const std::size_t first = name.find('.'), last = name.rfind('.');
    return first == std::string_view::npos ? std::string(name) : fmt::format("{}{}", name.substr(0, first), name.substr(last));
}

/// Stands for whoever published in the recorded run, but for what is published anew.
class RecordedNumbers final : public Callback {
public:
    RecordedNumbers(const std::set<std::string>& names, const std::set<std::string>& anew) {
        for (const std::string& name : names)
            for (const std::string& one : {name, declared_name(name)})
                if (!anew.contains(one)) published_.insert(one);
    }
    std::string kind() const override { return "recording"; }
    Declaration declare() const override { return {.publishes = {published_.begin(), published_.end()}}; }
    void attach(Attachment&) override {}
    void detach() override {}

private:
    std::set<std::string> published_;
};

class NoRunState final : public RunState {
public:
    std::vector<std::string> parts() const override { return {}; }
    bool is_resumable() const override { return false; }
    SavedState save(std::string_view part) const override { throw StateError(fmt::format("'{}' cannot be saved: a recording holds no state", part)); }
    void load(std::string_view part, const SavedState&) override { throw StateError(fmt::format("'{}' cannot be put back: a recording holds no state", part)); }
};

/// Names that the callbacks publish themselves.
std::set<std::string> published_by(const std::vector<ComposedCallback>& callbacks) {
    std::set<std::string> names;
    for (const ComposedCallback& composed : callbacks)
        for (const Value& value : composed.callback->declare().publishes) names.insert(value.name);
    return names;
}

/// As the run file has it.
std::string option_of(const ComposedCallback& composed, const char* name, const char* otherwise) { return composed.options.is_object() ? composed.options.value(name, otherwise) : otherwise; }

/// Whether it would write where the recording is, or move its files.
bool writes_over(const ComposedCallback& composed, const std::filesystem::path& recording) {
    const std::string kind = composed.callback->kind();
    if (kind != "event_file" && kind != "csv_file") return false;
    const std::set<std::filesystem::path> own = files_moved_with(option_of(composed, "path", kind == "event_file" ? "events.jsonl" : "metrics.csv")), recorded = files_moved_with(recording);
    return std::ranges::any_of(own, [&](const std::filesystem::path& file) { return recorded.contains(file); });
}

/// The folder with a run in it that would be gone on with under a name that the run file gives; empty: none.
std::filesystem::path taken_folder(const ComposedCallback& composed) {
    if (composed.callback->kind() != "tensorboard" || option_of(composed, "run_name", "").empty()) return {};
    const std::filesystem::path folder = std::filesystem::path(option_of(composed, "folder", "tensorboard")) / option_of(composed, "run_name", "");
    return TensorBoardFile::newest_in(folder) ? folder : std::filesystem::path();
}

/// What follows a run's id in that of its replay: the time it begins, and four random digits.
std::string replay_ending() {
    std::random_device random;
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    char text[32];
    std::strftime(text, sizeof text, "%Y%m%dT%H%M%S", ::gmtime_r(&now, &parts));
    return fmt::format("-replay-{}-{:04x}", text, random() & 0xffffU);
}

/// What stands against telling it to a callback; empty: nothing.
std::string refusal_of(const ComposedCallback& composed, const RecordedContent& content, const std::set<std::string>& anew, const std::filesystem::path& recording) {
    constexpr std::array<std::string_view, 2> kRecorded = {"blackboard", "loss"};
    const Declaration declared = composed.callback->declare();
    std::vector<std::string> reads, missing, unknown;
    for (const std::string& read : declared.reads)
        if (std::ranges::find(kRecorded, read) == kRecorded.end()) reads.push_back(read);
    const bool takes_what_there_is = std::ranges::find(declared.listens, "*") != declared.listens.end();
    for (const std::string& event : declared.listens)
        if (!takes_what_there_is && !content.has(event)) missing.push_back(event);
    for (const Value& value : declared.needs) {
        const bool is_recorded = std::ranges::any_of(content.numbers, [&](const std::string& name) { return name == value.name || declared_name(name) == value.name; });
        if (!is_recorded && !anew.contains(value.name)) unknown.push_back(value.name);
    }
    if (writes_over(composed, recording)) return fmt::format("'{}' would write over the recording; give it another path", composed.id);
    if (const auto folder = taken_folder(composed); !folder.empty()) return fmt::format("'{}' would go on in {}, where a run is already; give it another run_name", composed.id, folder.string());
    if (!reads.empty()) return fmt::format("'{}' reads {}; recorded are numbers of the blackboard and losses; leave it out", composed.id, fmt::join(reads, ", "));
    if (!declared.writes.empty()) return fmt::format("'{}' changes {}, and a run that has been cannot be changed; leave it out", composed.id, fmt::join(declared.writes, ", "));
    if (!declared.views.empty()) return fmt::format("'{}' holds the weights view {}, and weights are not recorded; leave it out", composed.id, fmt::join(declared.views, ", "));
    if (declared.collectives) return fmt::format("'{}' needs the run's other ranks; leave it out", composed.id);
    if (!missing.empty()) return fmt::format("'{}' listens to {}, and only {} was recorded; leave it out, or record more with event_file's `events`", composed.id, fmt::join(missing, ", "), fmt::join(content.patterns.front(), ", "));
    if (!unknown.empty())
        return fmt::format("'{}' needs {}, which was never on the blackboard{}", composed.id, fmt::join(unknown, ", "), did_you_mean(unknown.front(), std::vector<std::string>(content.numbers.begin(), content.numbers.end())));
    return "";
}

class Replay {
public:
    Replay(const RecordedContent& content, std::set<std::string> anew, std::vector<ComposedCallback> callbacks)
        : composition_({bus_, blackboard_, consensus_, requests_, state_, updates_, [](const std::string&) {}, [](const auto&) {}}), anew_(std::move(anew)) {
        callbacks.insert(callbacks.begin(), std::make_unique<RecordedNumbers>(content.numbers, anew_));
        composition_.attach_all(std::move(callbacks));
    }
    void take(const RecordedMessage& message) {
        const std::string_view name = message.name();
        if (message.is_start() || message.run() != result_.run) {  // one whose first files are gone begins in its middle
            emit_pending();
            begin(message);
        }
        if (message.is_start()) return;
        if (const auto numbers = message.numbers()) {
            const bool is_of_pending = pending_ && pending_->name == numbers->after;
            if (!is_of_pending) emit_pending();
            put(*numbers);
            return emit_pending();
        }
        emit_pending();
        if (name == "gap") return warn_of_gap(message);
        if (name == "accounting") return;
        pending_.emplace(Pending{std::string(name), message.data(), message.seconds().value_or(first_seconds_) - first_seconds_, message.where()});
    }
    ReplayResult finish() {
        emit_pending();
        bus_.drain();
        note_requests();
        return std::move(result_);
    }

private:
    struct Pending {
        std::string name;
        json data;
        double seconds;
        std::string where;
    };
    /// Sinks know runs by their ids: they are not to go on with what the run itself has told them.
    void begin(const RecordedMessage& message) {
        result_.run = message.run();
        bus_.moment().run_id = result_.run + ending_;
        first_seconds_ = message.seconds().value_or(0);
        is_resumed_ = message.is_start() && is_true(message.data(), "resumed");
        bus_.flush();  // that callbacks were attached is told before any position, so that no sink takes the replay for a run that goes on
    }
    /// The run's savers have the states of callbacks as of here.
    void keep_states() {
        auto& kept = states_[bus_.moment().position.attempts];
        kept.clear();
        for (const auto& [id, callback] : composition_.callbacks()) kept.emplace(id, callback->state());
        if (states_.size() > kMostStates) states_.erase(states_.begin());
    }
    /// The run has gone on from a state; so do they.
    void put_states_back(const json& data) {
        const auto attempts = static_cast<std::int64_t>(number_member(member_of(data, "position"), "attempts", 0));
        const auto kept = states_.find(attempts);
        if (kept == states_.end()) {
            result_.warnings.push_back(fmt::format("the run went on from a state after {} updates, and the recording does not tell when that was saved: what callbacks have counted since stays counted", attempts));
            return;
        }
        for (const auto& [id, callback] : composition_.callbacks())
            if (const auto state = kept->second.find(id); state != kept->second.end() && !state->second.empty()) callback->load_state(state->second);
    }
    void warn_of_gap(const RecordedMessage& message) {
        result_.warnings.push_back(fmt::format("{}: {} messages are missing: the disk was too slow for them", message.where(), number_member(message.data(), "count", 0)));
    }
    /// Makes the blackboard what it was, but for what the callbacks publish themselves.
    void put(const StreamNumbers& numbers) {
        std::set<std::string> now;
        const auto take = [&](const StreamNumbers::List& list, bool is_new) {
            for (const auto& [name, value] : list) {
                if (anew_.contains(name) || anew_.contains(declared_name(name))) continue;
                now.insert(name);
                if (is_new || !blackboard_.has(name)) blackboard_.publish(name, value);
            }
        };
        take(numbers.older, false);
        take(numbers.fresh, true);
        for (const std::string& name : there_)
            if (!now.contains(name)) blackboard_.withdraw(name);
        there_ = std::move(now);
    }
    void emit_pending() {
        if (!pending_) return;
        const Pending event = std::move(*pending_);
        pending_.reset();
        bus_.moment().seconds = event.seconds;
        if (event.name == "rolled_back" || (event.name == "training_run_start" && std::exchange(is_resumed_, false))) put_states_back(event.data);
        bool is_known = false;
        try {
            is_known = events_.emit(event.name, event.data);
        } catch (const DataError& error) {
            throw DataError(fmt::format("{}: {}", event.where, error.what()));
        }
        if (event.name == "run_configured") bus_.rebase_filters();
        if (is_known) ++result_.events;
        else ++result_.left_out[event.name];
        if (event.name == "decision_taken")
            result_.taken.push_back({bus_.moment().position, decision_named(text_member(event.data, "decision")), text_member(event.data, "requester"), text_member(event.data, "reason")});
        if (event.name == "step_checkpoint" || event.name == "epoch_checkpoint") keep_states();
        bus_.flush();
        note_requests();
    }
    void note_requests() {
        const RequestSet asked = requests_.take();
        for (std::size_t i = 0; i < asked.size(); ++i)
            if (asked[i]) result_.asked.push_back({bus_.moment().position, static_cast<Decision>(i), asked[i]->requester, asked[i]->reason});
    }
    ReplayResult result_;
    Bus bus_;
    Blackboard blackboard_;
    Consensus consensus_;
    Requests requests_;
    NoRunState state_;
    std::vector<Update> updates_;
    AttachedComposition composition_;
    RecordedEvents events_{bus_};
    std::optional<Pending> pending_;  ///< an event whose numbers may follow
    std::set<std::string> anew_, there_;  ///< names that the callbacks publish; those of the recording that are on the blackboard
    double first_seconds_ = 0;
    const std::string ending_ = replay_ending();
    bool is_resumed_ = false;  ///< the run that has begun goes on from a state
    std::map<std::int64_t, std::map<std::string, SavedState>> states_;  ///< of callbacks by id, by attempts
};

}  // namespace

ReplayResult replay(const std::filesystem::path& path, std::vector<ComposedCallback> callbacks) {
    const RecordedContent content(path);
    const std::filesystem::path recorded = Recording(path).path();
    const std::set<std::string> anew = published_by(callbacks);
    std::vector<std::string> refusals;
    for (const ComposedCallback& composed : callbacks)
        if (std::string refusal = refusal_of(composed, content, anew, recorded); !refusal.empty()) refusals.push_back(std::move(refusal));
    if (!refusals.empty()) throw ConfigError(fmt::format("{}", fmt::join(refusals, "\n")));
    Replay replay(content, anew, std::move(callbacks));
    Recording recording(path);
    while (const RecordedMessage* message = recording.next()) replay.take(*message);
    ReplayResult result = replay.finish();
    if (content.every != std::set<std::string>{"1step"}) result.warnings.push_back(fmt::format("what comes with every step or batch was recorded every {}; callbacks are told no more", fmt::join(content.every, ", ")));
    if (recording.torn_bytes() > 0) result.warnings.push_back(fmt::format("the last line of {} is not whole: its process ended in the middle", recording.path().string()));
    return result;
}

}  // namespace torchbus
