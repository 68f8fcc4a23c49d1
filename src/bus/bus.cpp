#include <torchbus/bus.hpp>

#include <torchbus/error.hpp>

#include "bus_core.hpp"

namespace torchbus {
namespace {

void require_observer_stage(Stage stage, const std::string& subscriber, const std::string& event) {
    if (stage == Stage::Transform)
        throw ConfigError("subscriber '" + subscriber + "': an observer of " + event +
                          " connects in stage Observe, Report or Persist; use intercept() to change an event");
}

}  // namespace

std::string_view name_of(Stage stage) {
    constexpr std::string_view kNames[] = {"transform", "observe", "report", "persist"};
    return kNames[static_cast<std::size_t>(stage)];
}

std::string_view name_of(Phase phase) {
    constexpr std::string_view kNames[] = {"finalize", "inspect", "change", "decide"};
    return kNames[static_cast<std::size_t>(phase)];
}

Connection& Connection::operator=(Connection&& other) noexcept {
    if (this != &other) {
        disconnect();
        link_ = std::move(other.link_);
    }
    return *this;
}

void Connection::disconnect() {
    if (const auto link = std::move(link_)) link->core->disconnect(*link);
}

bool Connection::connected() const { return link_ && link_->connected->load(); }

Subscriber::Subscriber(std::shared_ptr<detail::BusCore> core, std::shared_ptr<detail::SubscriberRecord> record)
    : core_(std::move(core)), record_(std::move(record)) {}

Subscriber& Subscriber::operator=(Subscriber&& other) noexcept {
    if (this != &other) {
        detach();
        core_ = std::move(other.core_);
        record_ = std::move(other.record_);
    }
    return *this;
}

const std::string& Subscriber::id() const { return record_->id; }
bool Subscriber::attached() const { return record_ && record_->attached; }

void Subscriber::detach(std::string requester) {
    const auto core = core_;  // a slot that detaches itself may see the subscriber destroyed meanwhile
    const auto record = record_;
    if (record) core->detach(record, std::move(requester));
}

std::vector<AccountingRow> Subscriber::accounting() const { return core_->accounting(); }

Connection Subscriber::connect(const detail::EventType& type, Place place, Filter filter, detail::AnySlot slot) {
    if (!place.changes) require_observer_stage(place.stage, id(), type.name);
    return Connection(core_->connect(record_, type, detail::place_bits(place.stage, place.phase), place.changes,
                                     std::move(filter), std::move(slot)));
}

Connection Subscriber::observe_all(Stage stage, std::function<void(const AnyEvent&)> slot, Filter filter) {
    require_observer_stage(stage, id(), "all events");
    return Connection(core_->connect_to_all(record_, detail::place_bits(stage, {}), std::move(filter), std::move(slot)));
}

void Subscriber::emit_event(const detail::EventType& type, void* event) { core_->emit(type, event); }
void Subscriber::emit_on(detail::BusCore& core, const detail::EventType& type, void* event) { core.emit(type, event); }
void Subscriber::post_task(std::function<void()> task) { core_->post(std::move(task)); }

SpanGuard::~SpanGuard() {
    try {
        close();
    } catch (const std::exception& failure) {
        warn(std::string("a wrapper failed while it was leaving: ") + failure.what());
    }
}

void SpanGuard::close() {
    std::exception_ptr first;
    while (!exits_.empty()) {
        const detail::SpanExit exit = std::move(exits_.back());
        exits_.pop_back();
        try {
            detail::BusCore::leave(exit);
        } catch (...) {
            if (!first) first = std::current_exception();
        }
    }
    if (first) std::rethrow_exception(first);
}

Bus::Bus() : core_(std::make_shared<detail::BusCore>()), channels_(core_->channels.data()) {
    // Registered now, so that observe_all joins all of them, in the order of the map in events.hpp.
    []<class... E>(std::type_identity<std::tuple<E...>>) {
        (detail::event_type<E>(), ...);
    }(std::type_identity<TrainerEvents>());
}
Bus::~Bus() = default;

Subscriber Bus::subscribe(std::string id, SubscriberOptions options, std::string_view before, std::string requester) {
    auto record = core_->subscribe(std::move(id), options, before, std::move(requester));
    return Subscriber(core_, std::move(record));
}

Moment& Bus::moment() { return core_->moment; }
void Bus::rebase_filters() { core_->rebase_filters(); }
void Bus::post(std::function<void()> task) { core_->post(std::move(task)); }
void Bus::flush() { core_->flush(); }
void Bus::drain() { core_->drain(); }
std::vector<ConnectedSlot> Bus::slots() const { return core_->slots(); }
std::map<std::string, ConnectionProgress> Bus::connection_progress() const { return core_->connection_progress(); }
void Bus::restore_connection_progress(const std::map<std::string, ConnectionProgress>& progress) { core_->restore_connection_progress(progress); }
std::vector<AccountingRow> Bus::accounting() const { return core_->accounting(); }

bool Bus::listens(const detail::Channel* channel) {
    return channel && channel->slots.load(std::memory_order_acquire) > 0;
}
void Bus::dispatch(detail::Channel& channel, void* event) { core_->dispatch(channel, event); }
void Bus::dispatch(detail::Channel& channel, void* event, const std::string& only) { core_->dispatch(channel, event, only); }
void Bus::dispatch_to_everyone(detail::Channel& channel, void* event) noexcept { core_->dispatch_to_everyone(channel, event); }

}  // namespace torchbus
