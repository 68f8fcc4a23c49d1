#include <torchbus/stream/event_feed.hpp>

#include <optional>
#include <set>
#include <unordered_map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/events_json.hpp>
#include <torchbus/name_pattern.hpp>
#include <torchbus/stream/message.hpp>
#include <torchbus/version.hpp>

#include "chosen_steps.hpp"
#include "message_view.hpp"
#include "text_queue.hpp"

namespace torchbus {
namespace {

using std::chrono::system_clock;

/// After which numbers are new.
const std::set<std::string, std::less<>> kWithNumbers = {"train_step_end", "train_epoch_end", "eval_epoch_end", "training_run_epoch_end"};
/// After which it is told what subscribers cost; after steps no more often than this.
const std::set<std::string, std::less<>> kWithAccounting = {"training_run_epoch_end", "training_run_end", "evaluation_run_end", "prediction_run_end"};
constexpr std::chrono::seconds kAccountingPace(10);

}  // namespace

struct EventFeed::State {
    EventFeedOptions options;
    std::function<void(const std::string&, int, bool)> begin;
    std::function<void()> end;
    TextQueue queue;
    Attachment* run = nullptr;
    std::optional<MessageWriter> writer;
    std::string run_id;  ///< that it writes of
    /// Of one event.
    struct Chosen {
        bool is_chosen = false, is_frequent = false, has_numbers = false, has_accounting = false, is_start = false;
        ChosenSteps steps = {};
    };
    std::unordered_map<const std::string*, Chosen> chosen;  ///< by its name, which stays where it is: texts are not compared at every event
    bool takes_numbers, takes_accounting, is_resumed = false, has_warned = false;
    std::int64_t publications = 0;    ///< of the blackboard, at the last numbers
    system_clock::time_point accounted = {};
    std::int64_t left_out_since = 0;  ///< the first message that the queue had no place for, or 0
    Connections connections;

    State(EventFeedOptions its_options, std::function<void(const std::string&, int, bool)> its_begin, TextQueue::Work work, std::function<void()> its_end)
        : options(std::move(its_options)), begin(std::move(its_begin)), end(std::move(its_end)), queue(options.limit_bytes, options.pace, std::move(work)),
          takes_numbers(matches_any(options.events, "numbers")), takes_accounting(matches_any(options.events, "accounting")) {
        if (options.every.unit == Interval::Unit::Natural) options.every.unit = Interval::Unit::Step;
    }

    Chosen& chosen_of(const std::string& event) {
        const auto found = chosen.find(&event);
        if (found != chosen.end()) return found->second;
        return chosen.emplace(&event, Chosen{matches_any(options.events, event), comes_often(event), kWithNumbers.contains(event), kWithAccounting.contains(event), event == "training_run_start"}).first->second;
    }
    bool is_due(Chosen& event) const {
        return !event.is_frequent || event.steps.take(run->moment.position.attempts, [this] { return measure(options.every.unit, run->moment) / options.every.amount; });
    }
    void take(const AnyEvent& event) {
        if (!writer || run_id != run->moment.run_id) begin_run();
        Chosen& its = chosen_of(event.name());
        if (is_resumed && its.is_start) publications = run->blackboard.publications();  // what was put back is not new
        write_chosen(event, its);
        queue.rethrow_failure();
    }
    void write_chosen(const AnyEvent& event, Chosen& its) {
        const bool is_written = its.is_chosen && event.has_json(), numbers = takes_numbers && its.has_numbers;
        const bool accounting = takes_accounting && (its.has_accounting || its.has_numbers);
        if ((!is_written && !numbers && !accounting) || !is_due(its)) return;
        const auto now = system_clock::now();
        if (is_written) write([&](std::string& out) { writer->append(out, event, now); }, now);
        if (numbers) write([&](std::string& out) { writer->append(out, "numbers", numbers_after(event.name()), now); }, now);
        if (!accounting || !(its.has_accounting || now - accounted >= kAccountingPace)) return;
        accounted = now;
        write([&](std::string& out) { writer->append(out, "accounting", accounting_text(), now); }, now);
    }
    template <class Append>
    void write(Append&& append, system_clock::time_point now) {
        const bool has_place = queue.add([&](std::string& out) {
            if (left_out_since > 0) writer->append_gap(out, std::exchange(left_out_since, 0), writer->sequence(), now);
            append(out);
        });
        if (has_place) return;
        writer->skip();
        if (left_out_since == 0) left_out_since = writer->sequence();
        if (!std::exchange(has_warned, true)) warn(fmt::format("{}: {} MiB of messages wait, as they come faster than they are taken; those that come now are left out", options.owner, options.limit_bytes >> 20));
    }
    std::string numbers_after(const std::string& event) {
        std::string fresh, older;
        run->blackboard.for_each(std::exchange(publications, run->blackboard.publications()), [&](std::string_view name, double number, bool is_new) {
            std::string& out = is_new ? fresh : older;
            out += out.empty() ? "" : ",";
            append_json_text(out, name);
            out += ':';
            append_json_number(out, number);
        });
        std::string data = "{\"position\":";
        append_json(data, run->moment.position);
        data += ",\"numbers\":{" + fresh + "},\"older\":{" + older + "},\"after\":";
        append_json_text(data, event);
        return data + "}";
    }
    std::string accounting_text() const {
        std::string data = "{\"position\":";
        append_json(data, run->moment.position);
        data += ",\"seconds\":";
        append_json_number(data, run->moment.seconds);
        data += ",\"rows\":[";
        for (const AccountingRow& row : run->bus.accounting()) {
            if (row.calls == 0) continue;
            data += data.ends_with('[') ? "{\"subscriber\":" : ",{\"subscriber\":";
            append_json_text(data, row.subscriber);
            data += ",\"event\":";
            append_json_text(data, row.event);
            fmt::format_to(std::back_inserter(data), ",\"calls\":{},\"seconds\":{},\"thread_seconds\":{},\"dropped\":{}}}", row.calls, row.seconds, row.thread_seconds, row.dropped);
        }
        return data + "]}";
    }
    /// What whoever reads the stream later needs to know of it.
    std::string start_text() const {
        return nlohmann::json{{"torchbus", kVersion}, {"events", options.events}, {"every", to_string(options.every)}, {"resumed", is_resumed}}.dump();
    }
    void begin_run() {
        try {
            queue.drain();
        } catch (const std::exception& error) {
            warn(fmt::format("{}: what is left of the run before is lost: {}", options.owner, error.what()));
            queue.drop();
        }
        const Moment& moment = run->moment;
        run_id = moment.run_id;
        writer.emplace(StreamSource{run_id, run->consensus.rank()});
        left_out_since = 0;
        has_warned = false;
        for (auto& [name, event] : chosen) event.steps = {};
        publications = 0;
        accounted = system_clock::now();
        is_resumed = moment.position.attempts > 0;
        begin(run_id, run->consensus.rank(), is_resumed);
        write([&](std::string& out) { writer->append(out, "stream_start", start_text(), accounted); }, accounted);
    }
};

EventFeed::EventFeed(EventFeedOptions options, std::function<void(const std::string&, int, bool)> begin, std::function<void(std::string&)> work, std::function<void()> end)
    : state_(std::make_unique<State>(std::move(options), std::move(begin), std::move(work), std::move(end))) {}
EventFeed::~EventFeed() = default;

void EventFeed::attach(Attachment& run) {
    state_->run = &run;
    if (state_->options.comes_before_saves) {  // in a stage before that of savers
        state_->connections += run.bus.observe<StepCheckpoint>(Stage::Report, [this](const StepCheckpoint&) { state_->queue.drain(); });
        state_->connections += run.bus.observe<EpochCheckpoint>(Stage::Report, [this](const EpochCheckpoint&) { state_->queue.drain(); });
    }
    state_->connections += run.bus.observe_all(Stage::Persist, [this](const AnyEvent& event) {
        const bool is_last = event.name() == "run_closed";
        if (is_last) state_->queue.drain();  // so that there is place for it
        state_->take(event);
        if (!is_last) return;
        state_->queue.drain();
        state_->end();
    });
}

void EventFeed::detach() {
    state_->connections.clear();
    state_->queue.drain();
    state_->writer.reset();
    state_->run = nullptr;
}

void EventFeed::drain() { state_->queue.drain(); }

}  // namespace torchbus
