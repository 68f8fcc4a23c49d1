#include "bus_core.hpp"

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus::detail {
namespace {

/// A subscriber's slots are running while one of these lives. Only the training thread writes the depth, so a
/// plain store does for leaving; entering is sequentially consistent, against the store of `connected`.
class Running {
public:
    explicit Running(SubscriberRecord& subscriber) : subscriber_(subscriber) { change(subscriber, 1, std::memory_order_seq_cst); }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    ~Running() { change(subscriber_, -1, std::memory_order_release); }
    static void change(SubscriberRecord& subscriber, int by, std::memory_order order) {
        subscriber.running.store(subscriber.running.load(std::memory_order_relaxed) + by, order);
    }

private:
    SubscriberRecord& subscriber_;
};

}  // namespace

BusCore::~BusCore() {
    for (auto& channel : channels) delete channel.load();
}

std::shared_ptr<SubscriberRecord> BusCore::subscribe(std::string id, SubscriberOptions options, std::string_view before, std::string requester) {
    const std::lock_guard lock(mutex_);
    if (find(id))
        throw ConfigError(fmt::format("two subscribers have the id '{}'; give one of them an id of its own", id));
    auto record = std::make_shared<SubscriberRecord>();
    record->id = std::move(id);
    record->options = options;
    record->order = place_in_order(before);
    record->core = this;
    subscribers_.push_back(record);
    post([this, id = record->id, requester = std::move(requester)] {
        SubscriberAttached event{id, requester};
        emit(event_type<SubscriberAttached>(), &event);
    });
    return record;
}

/// Subscribers stand far enough apart that a later one finds room between two of them.
std::uint64_t BusCore::place_in_order(std::string_view before) const {
    constexpr std::uint64_t kDistance = 1 << 12;
    std::uint64_t last = 0, next = 0;
    for (const auto& known : subscribers_) {
        last = std::max(last, known->order);
        if (!before.empty() && known->id == before) next = known->order;
    }
    if (next == 0) return last + kDistance;
    std::uint64_t previous = 0;
    for (const auto& known : subscribers_)
        if (known->order < next) previous = std::max(previous, known->order);
    if (next - previous < 2) throw StateError(fmt::format("there is no room before '{}': too many were attached just there; start the run anew with the composition as it is now", before));
    return previous + (next - previous) / 2;
}

Channel& BusCore::channel_of(const EventType& type) {
    auto& place = channels[type.index];
    if (Channel* known = place.load(std::memory_order_acquire)) return *known;
    auto* channel = new Channel;
    channel->type = &type;
    place.store(channel, std::memory_order_release);
    if (type.is_span) return *channel;
    for (const auto& weak : links_) {
        const auto link = weak.lock();
        if (!link || !link->every_event || !link->connected->load()) continue;
        join(link, *channel, link->key, false, link->filter,
             [tap = link->tap, &type](void* event) { (*tap)(AnyEvent(type, event)); });
    }
    return *channel;
}

void BusCore::join(const std::shared_ptr<Link>& link, Channel& channel, std::uint64_t key, bool changes, Filter filter,
                   AnySlot slot) {
    auto record = std::make_shared<SlotRecord>();
    record->subscriber = link->subscriber;
    record->type = channel.type;
    record->call = std::move(slot);
    record->filter = std::move(filter);
    record->filtered = !record->filter.always();
    record->changes = changes;
    record->connected = link->connected;
    record->filter.resolve(channel.type->of_trainer || channel.type->is_span ? Interval::Unit::Step : Interval::Unit::Emission);
    base_filter(record);
    auto connection = channel.signal.connect(key, [this, record](Emission& emission) { run_slot(*record, emission); });
    link->joints.push_back({&channel, std::move(record), std::move(connection)});
    channel.slots.fetch_add(1, std::memory_order_release);
}

/// On the training thread the filter starts from here and now. Elsewhere the moment may be changing: it starts at the
/// next poll point, and the slot waits till then.
void BusCore::base_filter(const std::shared_ptr<SlotRecord>& record) {
    const auto emitting = emitting_thread_.load();
    const bool here = emitting == std::thread::id() || emitting == std::this_thread::get_id();
    const auto base = [this, record] {
        record->filter.rebase(moment, record->emissions);
        record->based.store(true, std::memory_order_release);
    };
    if (here || !record->filtered)
        base();
    else
        post(base);
}

std::shared_ptr<Link> BusCore::new_link(const std::shared_ptr<SubscriberRecord>& subscriber) {
    if (!subscriber->attached) throw StateError(fmt::format("subscriber '{}' is detached and cannot connect", subscriber->id));
    auto link = std::make_shared<Link>();
    link->core = shared_from_this();
    link->subscriber = subscriber;
    return link;
}

std::shared_ptr<Link> BusCore::connect(const std::shared_ptr<SubscriberRecord>& subscriber, const EventType& type,
                                       std::uint64_t place, bool changes, Filter filter, AnySlot slot) {
    const std::lock_guard lock(mutex_);
    auto link = new_link(subscriber);
    link->key = place | (subscriber->order << 32) | next_connection_++;
    link->changes = changes;
    join(link, channel_of(type), link->key, changes, std::move(filter), std::move(slot));
    subscriber->links.push_back(link);
    links_.push_back(link);
    return link;
}

std::shared_ptr<Link> BusCore::connect_to_all(const std::shared_ptr<SubscriberRecord>& subscriber, std::uint64_t place,
                                              Filter filter, std::function<void(const AnyEvent&)> slot) {
    const std::lock_guard lock(mutex_);
    // Found out now and not at the first event that it does not suit.
    for (const auto unit : {Interval::Unit::Step, Interval::Unit::Emission}) Filter(filter).resolve(unit);
    auto link = new_link(subscriber);
    link->every_event = true;
    link->tap = std::make_shared<std::function<void(const AnyEvent&)>>(std::move(slot));
    link->filter = std::move(filter);
    link->key = place | (subscriber->order << 32) | next_connection_++;
    for (std::size_t index = 0; index < event_type_count(); ++index) {
        const EventType& type = event_type_at(index);
        if (type.is_span) continue;
        join(link, channel_of(type), link->key, false, link->filter,
             [tap = link->tap, &type](void* event) { (*tap)(AnyEvent(type, event)); });
    }
    subscriber->links.push_back(link);
    links_.push_back(link);
    return link;
}

void BusCore::disconnect(Link& link) {
    const bool first = link.connected->exchange(false, std::memory_order_seq_cst);
    if (first) {
        const std::lock_guard lock(mutex_);
        for (auto& joint : link.joints) {
            joint.connection.disconnect();
            joint.channel->slots.fetch_sub(1, std::memory_order_release);
        }
    }
    wait_until_idle(*link.subscriber);  // also where somebody else has disconnected it, and may still be in the slot
    if (!first) return;
    const std::lock_guard lock(mutex_);
    for (const auto& joint : link.joints) fold(*joint.record);
    // A slot of this link may be further up the stack of this very thread; its emission holds the record.
    std::erase_if(links_, [&](const auto& weak) { return weak.expired() || weak.lock().get() == &link; });
    std::erase_if(link.subscriber->links, [&](const auto& weak) { return weak.expired() || weak.lock().get() == &link; });
}

void BusCore::detach(const std::shared_ptr<SubscriberRecord>& subscriber, std::string requester) {
    std::vector<std::shared_ptr<Link>> links;
    std::shared_ptr<DeliveryThread> thread;
    bool first = false;
    {
        const std::lock_guard lock(mutex_);
        first = subscriber->attached.exchange(false);
        for (const auto& weak : subscriber->links)
            if (auto link = weak.lock()) links.push_back(std::move(link));
        std::erase(subscribers_, subscriber);
        thread = subscriber->thread;
    }
    for (const auto& link : links) disconnect(*link);
    wait_until_idle(*subscriber);
    // A second detach waits too: the first may have come from the thread itself, which is still in its slot.
    if (thread && thread->drain()) {
        const std::lock_guard lock(mutex_);
        subscriber->thread.reset();
    }
    if (!first) return;
    if (thread) {
        const std::lock_guard lock(mutex_);
        for (const auto& [event, times] : thread->times()) {
            ThreadTimes& past = past_accounting_[{subscriber->id, event}].thread;
            past.seconds += times.seconds;
            past.dropped += times.dropped;
        }
    }
    post([this, id = subscriber->id, requester = std::move(requester)] {
        SubscriberDetached event{id, requester};
        emit(event_type<SubscriberDetached>(), &event);
    });
}

void deliver(SubscriberRecord& subscriber, const EventType& event, const void* key, std::function<void()> work) {
    subscriber.core->deliver(subscriber, event, key, std::move(work));
}

/// Called on the training thread within a slot of the subscriber: a detach waits for it, so the thread stays.
void BusCore::deliver(SubscriberRecord& subscriber, const EventType& event, const void* key, std::function<void()> work) {
    std::shared_ptr<DeliveryThread> thread;
    {
        const std::lock_guard lock(mutex_);
        if (!subscriber.attached) return;
        if (!subscriber.thread) subscriber.thread = new_thread(subscriber);
        thread = subscriber.thread;
    }
    thread->give(event, key, std::move(work));
}

/// The thread may be the last to let go of the subscriber or the bus, so it holds neither.
std::shared_ptr<DeliveryThread> BusCore::new_thread(SubscriberRecord& subscriber) {
    const auto failed = [core = weak_from_this(), of = subscriber.weak_from_this()](const EventType& event) {
        const std::string cause = message_of(std::current_exception());
        const auto alive = core.lock();
        if (!alive) return;
        const auto failing = of.lock();
        const int in_a_row = failing ? ++failing->thread_failures : 0;
        alive->post([core, of, &event, cause, in_a_row] {
            if (const auto record = of.lock()) core.lock()->settle_thread_failure(record, event, cause, in_a_row);
        });
    };
    const auto served = [of = subscriber.weak_from_this()] {
        if (const auto record = of.lock()) record->thread_failures = 0;
    };
    return std::make_shared<DeliveryThread>(subscriber.options.queue_capacity, subscriber.options.overflow, failed, served);
}

/// Detaching is rare and emitting is not: the one who waits polls, and the emitter pays nothing for it.
void BusCore::wait_until_idle(const SubscriberRecord& subscriber) const {
    if (emitting_thread_.load() == std::this_thread::get_id()) return;
    while (subscriber.running.load(std::memory_order_seq_cst) > 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

void BusCore::run_slot(SlotRecord& record, Emission& emission) {
    if (emission.aborted || (emission.only && emission.only != record.subscriber.get())) return;
    const Running running(*record.subscriber);
    if (!record.connected->load(std::memory_order_seq_cst)) return;
    try {
        if (!record.type->of_trainer) ++record.emissions;
        if (record.filtered && !(record.based.load(std::memory_order_acquire) && record.filter.passes(moment, record.emissions))) return;
        record.call(emission.event);
        record.failures_in_a_row = 0;
        if (record.type->is_span) hold_until_left(record, emission);
    } catch (...) {
        note_failure(record, emission);
    }
    const std::int64_t now = read_ticks();
    record.ticks.store(record.ticks.load(std::memory_order_relaxed) + now - emission.last_tick, std::memory_order_relaxed);
    record.calls.store(record.calls.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    emission.last_tick = now;
}

/// A wrapper that has entered counts as running until it has left, so that a detach waits for its exit.
void BusCore::hold_until_left(const SlotRecord& record, const Emission& emission) {
    SpanExit& exit = static_cast<SpanEntry*>(emission.event)->exits->back();
    exit.subscriber = record.subscriber;
    exit.span = record.type;
    Running::change(*record.subscriber, 1, std::memory_order_seq_cst);
}

/// Throws: SubscriberError where the exit threw.
void BusCore::leave(const SpanExit& exit) {
    std::exception_ptr error;
    try {
        (*exit.leave)();
    } catch (...) {
        error = as_subscriber_error(exit.subscriber->id, exit.span->name, "leaving", nullptr);
    }
    Running::change(*exit.subscriber, -1, std::memory_order_release);
    if (error) std::rethrow_exception(error);
}

void BusCore::emit(const EventType& type, void* event) {
    Channel* channel = channels[type.index].load(std::memory_order_acquire);
    if (!channel) {
        const std::lock_guard lock(mutex_);
        channel = &channel_of(type);  // taps join at the first emission of a type
    }
    if (channel->slots.load(std::memory_order_acquire) > 0) dispatch(*channel, event);
}

void BusCore::dispatch(Channel& channel, void* event, const SubscriberRecord* only) {
    emitting_thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    Emission emission{event, channel.type, read_ticks()};
    emission.only = only;
    channel.signal(emission);
    try {
        if (!emission.optional_failures.empty()) settle(emission);
    } catch (...) {
        if (!emission.error) emission.error = std::current_exception();  // the first failure is the cause
    }
    if (emission.error) std::rethrow_exception(emission.error);
}

void BusCore::dispatch(Channel& channel, void* event, const std::string& only) {
    const std::shared_ptr<SubscriberRecord> subscriber = find(only);
    if (subscriber) dispatch(channel, event, subscriber.get());
}

std::shared_ptr<SubscriberRecord> BusCore::find(const std::string& id) const {
    const std::lock_guard lock(mutex_);
    const auto known = std::ranges::find(subscribers_, id, [](const auto& record) -> const std::string& { return record->id; });
    return known == subscribers_.end() ? nullptr : *known;
}

void BusCore::dispatch_to_everyone(Channel& channel, void* event) noexcept {
    emitting_thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    Emission emission{event, channel.type, read_ticks(), true};
    channel.signal(emission);
}

void BusCore::post(std::function<void()> task) {
    const std::lock_guard lock(task_mutex_);
    tasks_.push_back(std::move(task));
    has_tasks_.store(true, std::memory_order_release);
}

void BusCore::flush() {
    if (!has_tasks_.load(std::memory_order_acquire)) return;
    std::deque<std::function<void()>> now;
    {
        const std::lock_guard lock(task_mutex_);
        std::swap(now, tasks_);
        has_tasks_.store(false, std::memory_order_release);
    }
    while (!now.empty()) {
        const auto task = std::move(now.front());
        now.pop_front();
        try {
            task();
        } catch (...) {
            // What is left is not lost: it comes first at the next poll point.
            const std::lock_guard lock(task_mutex_);
            tasks_.insert(tasks_.begin(), std::make_move_iterator(now.begin()), std::make_move_iterator(now.end()));
            has_tasks_.store(!tasks_.empty(), std::memory_order_release);
            throw;
        }
    }
}

void BusCore::rebase_filters() {
    const std::lock_guard lock(mutex_);
    for (const auto& weak : links_)
        if (const auto link = weak.lock())
            for (const auto& joint : link->joints) joint.record->filter.rebase(moment, joint.record->emissions, true);
}

void BusCore::drain() {
    std::vector<std::shared_ptr<DeliveryThread>> threads;
    {
        const std::lock_guard lock(mutex_);
        for (const auto& subscriber : subscribers_)
            if (subscriber->thread) threads.push_back(subscriber->thread);
    }
    for (const auto& thread : threads) thread->drain();
    flush();
}

}  // namespace torchbus::detail
