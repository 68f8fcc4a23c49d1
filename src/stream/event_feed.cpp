#include <torchbus/stream/event_feed.hpp>

#include <optional>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/events_json.hpp>
#include <torchbus/stream/message.hpp>
#include <torchbus/version.hpp>

#include "chosen_events.hpp"
#include "event_queue.hpp"
#include "queued_event.hpp"

namespace torchbus {
namespace {

using std::chrono::system_clock;

/// Accounting after steps is told no more often than this.
constexpr std::chrono::seconds kAccountingPace(10);
const std::string kAccounting = "accounting", kStreamStart = "stream_start";

}  // namespace

struct EventFeed::State {
    EventFeedOptions options;
    std::function<void(const std::string&, int, bool)> begin;
    std::function<void()> end;
    std::optional<MessageWriter> writer;  ///< of the queue's thread, while something waits
    EventQueue queue;
    Attachment* run = nullptr;
    std::string run_id;  ///< that is written of
    ChosenEvents chosen;
    bool is_resumed = false, has_warned = false;
    std::int64_t publications = 0;    ///< of the blackboard, at the last numbers
    system_clock::time_point accounted = {};
    std::int64_t left_out = 0;        ///< messages that the queue had no place for, since the last one that it had
    Connections connections;

    State(EventFeedOptions its_options, std::function<void(const std::string&, int, bool)> its_begin, EventQueue::Work work, std::function<void()> its_end)
        : options(std::move(its_options)), begin(std::move(its_begin)), end(std::move(its_end)), queue(options.limit_bytes, options.pace, [this](std::string_view records, std::string& text) { return write_first_queued(records, *writer, text); }, std::move(work)),
          chosen(options.events, options.every) {}

    /// Connects to these alone: to be called for an event costs as much as a third of what it takes to queue it.
    template <class... Events>
    void observe_needed(std::tuple<Events...>*) {
        const auto observe = [&]<class Event>() {
            const detail::EventType& type = detail::event_type<Event>();
            if (chosen.needs(type.name)) connections += run->bus.observe<Event>(Stage::Persist, [this, &type](const Event& event) { hear(AnyEvent(type, &event)); });
        };
        (observe.template operator()<Events>(), ...);
    }
    void hear(const AnyEvent& event) {
        const bool is_last = event.as<RunClosed>();
        if (is_last) queue.drain();  // so that there is place for it
        take(event);
        if (!is_last) return;
        queue.drain();
        end();
    }
    void take(const AnyEvent& event) {
        ChosenEvents::Chosen& its = chosen.of(event);
        if (!writer || (its.may_be_first && run_id != run->moment.run_id)) begin_run();
        if (is_resumed && event.as<TrainingRunStart>()) publications = run->blackboard.publications();  // what was put back is not new
        record_chosen(event, its);
        queue.rethrow_failure();
    }
    void record_chosen(const AnyEvent& event, ChosenEvents::Chosen& its) {
        const bool is_written = its.is_taken && event.has_json();
        if ((!is_written && !its.has_numbers && !its.has_accounting) || !chosen.is_due(its, run->moment)) return;
        const auto now = system_clock::now();
        if (is_written) record(now, [&](std::string& out) { queue_event(out, event, its.form, now); });
        if (its.has_numbers) record(now, [&](std::string& out) { queue_numbers(out, run->moment.position, run->blackboard, std::exchange(publications, run->blackboard.publications()), event.name(), now); });
        if (!its.has_accounting || !(its.is_end_of_kind || now - accounted >= kAccountingPace)) return;
        accounted = now;
        record(now, [&](std::string& out) { queue_text(out, kAccounting, accounting_text(), now); });
    }
    template <class Append>
    void record(system_clock::time_point now, Append&& append) {
        const bool has_place = queue.add([&](std::string& out) {
            if (left_out > 0) queue_gap(out, std::exchange(left_out, 0), now);
            append(out);
        });
        if (has_place) return;
        ++left_out;
        if (!std::exchange(has_warned, true)) warn(fmt::format("{}: {} MiB of messages wait, as they come faster than they are taken; those that come now are left out", options.owner, options.limit_bytes >> 20));
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
        return nlohmann::json{{"torchbus", kVersion}, {"events", chosen.patterns()}, {"every", to_string(chosen.every())}, {"resumed", is_resumed}}.dump();
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
        left_out = 0;
        has_warned = false;
        chosen.forget_steps();
        publications = 0;
        accounted = system_clock::now();
        is_resumed = moment.position.attempts > 0;
        begin(run_id, run->consensus.rank(), is_resumed);
        record(accounted, [&](std::string& out) { queue_text(out, kStreamStart, start_text(), accounted); });
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
    if (state_->chosen.may_take_users()) state_->connections += run.bus.observe_all(Stage::Persist, [this](const AnyEvent& event) { state_->hear(event); });
    else state_->observe_needed(static_cast<TrainerEvents*>(nullptr));
}

void EventFeed::detach() {
    state_->connections.clear();
    state_->queue.drain();
    state_->writer.reset();
    state_->run = nullptr;
}

void EventFeed::drain() { state_->queue.drain(); }

}  // namespace torchbus
