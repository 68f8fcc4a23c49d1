#pragma once
/// The signal bus as its owner sees it: who owns it emits the trainer's events. What subscribers see is in subscriber.hpp.
///
/// Thread: emit, span and flush belong to the training thread; post() and accounting() may be called from any thread.

#include <atomic>
#include <concepts>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <torchbus/subscriber.hpp>

namespace torchbus {

/// The wrappers of a span that were entered; leaving is certain.
class SpanGuard {
public:
    SpanGuard() = default;
    SpanGuard(const SpanGuard&) = delete;
    SpanGuard& operator=(const SpanGuard&) = delete;
    ~SpanGuard();
    /// Runs the exits in reverse. Throws: SubscriberError for the exit that threw first, after all have run.
    void close();

private:
    friend class Bus;
    std::vector<detail::SpanExit> exits_;
};

/// One connection to one event.
struct ConnectedSlot {
    std::string event;  ///< or "every event"
    std::string subscriber;
    Stage stage;
    Phase phase;        ///< for interceptors of gradients_ready
    bool changes;       ///< an interceptor or wrapper
};

/// The bus as its owner sees it.
class Bus {
public:
    Bus();
    ~Bus();
    Bus(const Bus&) = delete;
    Bus& operator=(const Bus&) = delete;

    /// A new subscriber: last in order, or just before the one called `before`. `requester`: who asked for it while a
    /// run was under way. Throws: ConfigError for an id that is taken.
    Subscriber subscribe(std::string id, SubscriberOptions options = {}, std::string_view before = {}, std::string requester = {});

    /// Whether anyone listens: about the cost of a branch.
    template <class E>
    bool wants() const {
        return listens(channels_[detail::event_type<E>().index].load(std::memory_order_acquire));
    }

    /// Throws: SubscriberError when a critical subscriber threw.
    template <class E>
        requires(!std::invocable<E&>)
    void emit(E&& event) {
        auto* channel = channels_[detail::event_type<std::remove_cvref_t<E>>().index].load(std::memory_order_acquire);
        if (listens(channel)) dispatch(*channel, &event);
    }

    /// Emits what `make()` returns; it is not called where nobody listens.
    template <std::invocable Make>
    void emit(Make&& make) {
        using E = std::invoke_result_t<Make>;
        auto* channel = channels_[detail::event_type<E>().index].load(std::memory_order_acquire);
        if (!listens(channel)) return;
        E event = make();
        dispatch(*channel, &event);
    }

    /// Emits to one subscriber alone: one that came late is told what the others heard.
    template <class E>
    void emit_to(const std::string& subscriber, E&& event) {
        auto* channel = channels_[detail::event_type<std::remove_cvref_t<E>>().index].load(std::memory_order_acquire);
        if (listens(channel)) dispatch(*channel, &event, subscriber);
    }

    /// Emits RunFailed or RunClosed: everyone hears it, whatever throws; errors are logged.
    template <class E>
    void emit_to_everyone(E&& event) noexcept {
        auto* channel = channels_[detail::event_type<std::remove_cvref_t<E>>().index].load(std::memory_order_acquire);
        if (listens(channel)) dispatch_to_everyone(*channel, &event);
    }

    /// Enters the wrappers of a span into `guard`.
    template <class Span>
    void enter(SpanGuard& guard, const Span& span) {
        static_assert(detail::is_one_of<Span, TrainerSpans>);
        auto* channel = channels_[detail::event_type<Span>().index].load(std::memory_order_acquire);
        if (!listens(channel)) return;
        detail::SpanEntry entry{&span, &guard.exits_};
        dispatch(*channel, &entry);
    }

    /// Where the run is; the owner keeps it up to date. Filters read it.
    Moment& moment();

    /// Takes the present moment as the last one that every filter saw: at the start of a run and on resume.
    void rebase_filters();

    /// Queues work for the next flush(). Thread: any.
    void post(std::function<void()> task);
    /// Runs what was queued until now: at poll points, and before RunClosed. What that queues waits for the next one.
    void flush();
    /// Waits until the threads of all subscribers have worked off what they were given, then flushes.
    void drain();

    /// Every connected slot in the order of its running: by event, stage, phase, subscriber, connection.
    std::vector<ConnectedSlot> slots() const;

    /// What the filter of each connection has seen, by "subscriber/event/n", and how many emissions of users' events.
    std::map<std::string, ConnectionProgress> connection_progress() const;
    /// Takes that of a former run; unknown connections are ignored.
    void restore_connection_progress(const std::map<std::string, ConnectionProgress>& progress);

    /// Time per subscriber and event since the bus was made, detached ones included.
    std::vector<AccountingRow> accounting() const;

private:
    static bool listens(const detail::Channel* channel);
    void dispatch(detail::Channel& channel, void* event);
    void dispatch(detail::Channel& channel, void* event, const std::string& only);
    void dispatch_to_everyone(detail::Channel& channel, void* event) noexcept;

    std::shared_ptr<detail::BusCore> core_;
    const std::atomic<detail::Channel*>* channels_;  ///< by index of the event type; owned by the core
};

}  // namespace torchbus
