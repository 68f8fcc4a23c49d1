#pragma once
/// The signal bus. The owner (Bus) emits trainer events; a subscriber holds a Subscriber, which connects slots
/// and may emit events of the user's own, but no trainer events.
///
/// An emission runs its slots in this order: stage, then phase, then the order of the subscribers, then the
/// order of connection. A slot connected during an emission first runs at the next one.
///
/// Thread: emit, span and flush belong to the training thread. Connecting, disconnecting, detaching, posting and
/// accounting() may be called from any thread, inside a slot and during an emission.

#include <atomic>
#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include <torchbus/events.hpp>
#include <torchbus/filter.hpp>

namespace torchbus {

/// Transform is for interceptors and wrappers; the others are for observers.
enum class Stage : std::uint8_t { Transform, Observe, Report, Persist };

/// The phases of GradientsReady's interceptors.
enum class Phase : std::uint8_t {
    Finalize,  ///< wait for the reduction, unscale
    Inspect,   ///< non-finite values, norm
    Change,    ///< clip
    Decide,    ///< skip
};

/// What happens when an observer throws. An interceptor or wrapper is always critical.
enum class Fault : std::uint8_t {
    Critical,  ///< the other observers are served, then the run fails with a SubscriberError
    Optional,  ///< logged, counted, announced by SubscriberFailed; detached after `max_failures` in a row
};

struct SubscriberOptions {
    Fault fault = Fault::Critical;
    int max_failures = 3;  ///< in a row, for Fault::Optional
};

/// Time spent in one subscriber's slots of one event.
struct AccountingRow {
    std::string subscriber;
    std::string event;
    std::uint64_t calls = 0;
    double seconds = 0;
};

namespace detail {

template <class T, class Tuple>
inline constexpr bool is_one_of = false;
template <class T, class... Ts>
inline constexpr bool is_one_of<T, std::tuple<Ts...>> = (std::same_as<T, Ts> || ...);

using ToJson = void (*)(nlohmann::json&, const void*);

struct EventType {
    std::string name;  ///< snake_case
    std::size_t index = 0;
    bool of_trainer = false;
    bool is_span = false;
    ToJson to_json = nullptr;  ///< nullptr for a user's event without a JSON form
};

const EventType& register_event_type(const std::type_info& type, bool of_trainer, bool is_span, ToJson to_json);

template <class E>
constexpr ToJson json_form() {
    if constexpr (requires(nlohmann::json& out, const E& event) { to_json(out, event); })
        return [](nlohmann::json& out, const void* event) { to_json(out, *static_cast<const E*>(event)); };
    else
        return nullptr;
}

template <class E>
const EventType& event_type() {
    static const EventType& type = register_event_type(
        typeid(E), is_one_of<E, TrainerEvents>, is_one_of<E, TrainerSpans>, json_form<E>());
    return type;
}

struct Channel;           // the signal of one event type
struct SubscriberRecord;  // what the bus knows of a subscriber
struct Link;              // what a Connection holds
class BusCore;

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

/// What slots may be connected to: any plain struct but a span, which is wrapped with around().
template <class E>
concept AnEvent = !detail::is_one_of<std::remove_cvref_t<E>, TrainerSpans>;

/// What a user may emit: any event that is not the trainer's own.
template <class E>
concept UserEvent = AnEvent<E> && !detail::is_one_of<std::remove_cvref_t<E>, TrainerEvents>;

/// An event of whatever type, as observe_all hands it on.
class AnyEvent {
public:
    AnyEvent(const detail::EventType& type, const void* event) : type_(&type), event_(event) {}
    const std::string& name() const { return type_->name; }
    /// The event, if it is an `E`.
    template <class E>
    const E* as() const {
        return type_ == &detail::event_type<E>() ? static_cast<const E*>(event_) : nullptr;
    }
    bool has_json() const { return type_->to_json != nullptr; }
    /// Requires: has_json().
    void write_json(nlohmann::json& out) const { type_->to_json(out, event_); }

private:
    const detail::EventType* type_;
    const void* event_;
};

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

    /// Emits an event of the user's own. Thread: the training thread.
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

    /// Disconnects all slots. Called from another thread it returns when no slot of this subscriber runs;
    /// called from a slot of its own it does not wait.
    void detach();
    bool attached() const;

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

/// The bus as its owner sees it.
class Bus {
public:
    Bus();
    ~Bus();
    Bus(const Bus&) = delete;
    Bus& operator=(const Bus&) = delete;

    /// A new subscriber, last in order. Throws: ConfigError for an id that is taken.
    Subscriber subscribe(std::string id, SubscriberOptions options = {});

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

    /// Time per subscriber and event since the bus was made, detached ones included.
    std::vector<AccountingRow> accounting() const;
    void reset_accounting();

private:
    static bool listens(const detail::Channel* channel);
    void dispatch(detail::Channel& channel, void* event);
    void dispatch_to_everyone(detail::Channel& channel, void* event) noexcept;

    std::shared_ptr<detail::BusCore> core_;
    const std::atomic<detail::Channel*>* channels_;  ///< by index of the event type; owned by the core
};

}  // namespace torchbus
