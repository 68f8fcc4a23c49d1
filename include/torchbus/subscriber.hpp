#pragma once
/// A subscriber's view of the bus: it connects slots, and emits events of the user's own, but no trainer events.
///
/// An emission runs its slots in this order: stage, then phase, then the order of the subscribers, then the
/// order of connection. A slot connected during an emission first runs at the next one.
///
/// Thread: connecting, disconnecting, detaching and posting may be done from any thread, inside a slot and during
/// an emission; emit belongs to the training thread.

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torchbus/delivery.hpp>
#include <torchbus/event_type.hpp>
#include <torchbus/filter.hpp>

namespace torchbus {

namespace detail {

struct Channel;           // the signal of one event type
struct SubscriberRecord;  // what the bus knows of a subscriber
struct Link;              // what a Connection holds
class BusCore;

/// Hands work to the thread of a subscriber. `key` tells its connection, for Overflow::Coalesce.
void deliver(SubscriberRecord& subscriber, const EventType& event, const void* key, std::function<void()> work);

using AnySlot = std::function<void(void*)>;

/// The exit of a wrapper that has entered, and whose it is: the subscriber counts as running until it has left.
struct SpanExit {
    std::shared_ptr<std::function<void()>> leave;
    std::shared_ptr<SubscriberRecord> subscriber = {};
    const EventType* span = nullptr;
};
/// What the slot of a span gets: where to leave the exit that belongs to its enter.
struct SpanEntry {
    const void* span;
    std::vector<SpanExit>* exits;
};

}  // namespace detail

/// A scoped connection: disconnects when destroyed.
class Connection {
public:
    Connection() = default;
    explicit Connection(std::shared_ptr<detail::Link> link) : link_(std::move(link)) {}
    Connection(Connection&&) noexcept = default;
    Connection& operator=(Connection&& other) noexcept;
    ~Connection() { disconnect(); }
    /// After it the slot does not run any more. Called from another thread it waits for a running slot of the
    /// same subscriber; called on the training thread it does not wait.
    void disconnect();
    bool connected() const;

private:
    std::shared_ptr<detail::Link> link_;
};

/// Connections held together, as the last member of a callback.
class Connections {
public:
    Connections& operator+=(Connection connection) {
        connections_.push_back(std::move(connection));
        return *this;
    }
    void clear() { connections_.clear(); }

private:
    std::vector<Connection> connections_;
};

/// A subscriber's view of the bus. Movable; detaches when destroyed.
class Subscriber {
public:
    Subscriber() = default;
    Subscriber(std::shared_ptr<detail::BusCore> core, std::shared_ptr<detail::SubscriberRecord> record);
    Subscriber(Subscriber&&) noexcept = default;
    Subscriber& operator=(Subscriber&& other) noexcept;
    ~Subscriber() { detach(); }

    const std::string& id() const;

    /// Connects `slot(const E&)`. Stage: Observe, Report or Persist.
    template <AnEvent E, std::invocable<const E&> Slot>
    [[nodiscard]] Connection observe(Stage stage, Slot slot, Filter filter = {}) {
        return connect(detail::event_type<E>(), {stage, {}, false}, std::move(filter),
                       [slot = std::move(slot)](void* event) mutable { slot(*static_cast<const E*>(event)); });
    }

    /// Connects `slot(E&)`, which may change what the event's documentation allows. Always critical.
    template <AnEvent E, std::invocable<E&> Slot>
        requires(!std::same_as<E, GradientsReady>)
    [[nodiscard]] Connection intercept(Slot slot, Filter filter = {}) {
        return connect(detail::event_type<E>(), {Stage::Transform, {}, true}, std::move(filter),
                       [slot = std::move(slot)](void* event) mutable { slot(*static_cast<E*>(event)); });
    }

    /// Connects an interceptor of GradientsReady, in its phase.
    template <std::invocable<GradientsReady&> Slot>
    [[nodiscard]] Connection intercept(Phase phase, Slot slot, Filter filter = {}) {
        return connect(detail::event_type<GradientsReady>(), {Stage::Transform, phase, true}, std::move(filter),
                       [slot = std::move(slot)](void* event) mutable { slot(*static_cast<GradientsReady*>(event)); });
    }

    /// Wraps a span (Forward, Backward, OptimizerStep): `enter(const Span&)` before it, `exit()` after it.
    /// Exits run in reverse order of the enters, always: also on an exception, and if detached in between.
    template <class Span, std::invocable<const Span&> Enter>
    [[nodiscard]] Connection around(Enter enter, std::function<void()> exit, Filter filter = {}) {
        static_assert(detail::is_one_of<Span, TrainerSpans>, "a wrapper wraps Forward, Backward or OptimizerStep");
        auto leave = std::make_shared<std::function<void()>>(std::move(exit));
        return connect(detail::event_type<Span>(), {Stage::Transform, {}, true}, std::move(filter),
                       [enter = std::move(enter), leave = std::move(leave)](void* event) mutable {
                           auto& entry = *static_cast<detail::SpanEntry*>(event);
                           enter(*static_cast<const Span*>(entry.span));
                           entry.exits->push_back({leave});
                       });
    }

    /// Connects `slot(const AnyEvent&)` to every event, the user's own and those first emitted later included.
    [[nodiscard]] Connection observe_all(Stage stage, std::function<void(const AnyEvent&)> slot, Filter filter = {});

    /// Connects an observer that works on this subscriber's own thread. `take(const E&)` copies on the training thread
    /// what `slot` needs; `slot(const Taken&)` gets it there, one at a time and in order. What is taken must be values:
    /// numbers, text, JSON, clones. A tensor handle is no snapshot: it changes with the next update.
    /// A throw on that thread has the outcome of SubscriberOptions::fault, at the next poll point.
    template <AnEvent E, std::invocable<const E&> Take, std::invocable<const std::invoke_result_t<Take, const E&>&> Slot>
    [[nodiscard]] Connection observe_on_thread(Stage stage, Take take, Slot slot, Filter filter = {}) {
        using Taken = std::decay_t<std::invoke_result_t<Take, const E&>>;
        static_assert(!std::same_as<Taken, at::Tensor>, "take a clone() within a struct of your own, or a number");
        return connect(detail::event_type<E>(), {stage, {}, false}, std::move(filter),
                       [to = record_.get(), take = std::move(take), slot = std::make_shared<Slot>(std::move(slot))](void* event) mutable {
                           deliver(*to, detail::event_type<E>(), slot.get(),
                                   [slot, taken = take(*static_cast<const E*>(event))] { (*slot)(taken); });
                       });
    }

    /// Emits an event of the user's own, or announces what this subscriber did (AnnouncedEvents).
    /// Thread: the training thread.
    template <UserEvent E>
    void emit(E event) {
        emit_event(detail::event_type<E>(), &event);
    }

    /// Queues an event of the user's own for the next poll point. Thread: any.
    template <UserEvent E>
    void post(E event) {
        post_task([this_core = core_.get(), event = std::move(event)]() mutable {
            emit_on(*this_core, detail::event_type<E>(), &event);
        });
    }

    /// Disconnects all slots. Called from another thread it returns when no slot of this subscriber runs; what waits
    /// for the subscriber's own thread is still worked off. Called from a slot of its own it does not wait.
    /// `requester`: who asked for it, for SubscriberDetached.
    void detach(std::string requester = {});
    bool attached() const;

    /// Time per subscriber and event since the bus was made, of all subscribers.
    std::vector<AccountingRow> accounting() const;

private:
    struct Place {
        Stage stage;
        Phase phase;
        bool changes;  ///< an interceptor or wrapper
    };
    Connection connect(const detail::EventType& type, Place place, Filter filter, detail::AnySlot slot);
    void emit_event(const detail::EventType& type, void* event);
    static void emit_on(detail::BusCore& core, const detail::EventType& type, void* event);
    void post_task(std::function<void()> task);

    std::shared_ptr<detail::BusCore> core_;
    std::shared_ptr<detail::SubscriberRecord> record_;
};

}  // namespace torchbus
