#pragma once
/// The inside of the bus: Boost.Signals2 is included here and nowhere else.

#include <array>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include <boost/signals2/signal.hpp>

#include <torchbus/bus.hpp>

#include "delivery_thread.hpp"
#include "tick_clock.hpp"

namespace torchbus::detail {

inline constexpr std::size_t kMaxEventTypes = 512;

const EventType& event_type_at(std::size_t index);
std::size_t event_type_count();

/// A slot's sort key: stage, then phase, then the subscriber's order, then the connection.
inline std::uint64_t place_bits(Stage stage, Phase phase) {
    return (static_cast<std::uint64_t>(stage) << 62) | (static_cast<std::uint64_t>(phase) << 60);
}
inline Stage stage_of(std::uint64_t key) { return static_cast<Stage>(key >> 62); }
inline Phase phase_of(std::uint64_t key) { return static_cast<Phase>((key >> 60) & 3); }

struct SubscriberRecord : std::enable_shared_from_this<SubscriberRecord> {
    std::string id;
    SubscriberOptions options;
    std::uint64_t order = 0;
    std::atomic<bool> attached{true};
    std::atomic<int> running{0};  ///< depth of this subscriber's slots on the training thread
    std::vector<std::weak_ptr<Link>> links;  ///< guarded by the core's mutex
    BusCore* core = nullptr;
    std::shared_ptr<DeliveryThread> thread;  ///< made when it is first needed; guarded by the core's mutex
    std::atomic<int> thread_failures{0};     ///< in a row
};

/// One slot of one event type.
struct SlotRecord {
    std::shared_ptr<SubscriberRecord> subscriber;
    const EventType* type = nullptr;
    AnySlot call;
    Filter filter;
    bool filtered = false;
    bool changes = false;  ///< an interceptor or wrapper: critical, and nothing runs after its failure
    std::shared_ptr<std::atomic<bool>> connected;
    std::int64_t emissions = 0;  ///< counted for a user's own events only
    std::atomic<bool> based{false};  ///< the filter has its starting point; until then it does not pass
    int failures_in_a_row = 0;
    std::atomic<std::uint64_t> calls{0};
    std::atomic<std::int64_t> ticks{0};
};

/// What a Connection holds: one slot, or for observe_all one slot of every event type.
struct Link {
    std::shared_ptr<BusCore> core;
    std::shared_ptr<SubscriberRecord> subscriber;
    std::shared_ptr<std::atomic<bool>> connected = std::make_shared<std::atomic<bool>>(true);
    struct Joint {
        Channel* channel;
        std::shared_ptr<SlotRecord> record;
        boost::signals2::connection connection;
    };
    std::vector<Joint> joints;  ///< guarded by the core's mutex
    // For observe_all, to join channels that come later.
    bool every_event = false;
    std::shared_ptr<std::function<void(const AnyEvent&)>> tap;  ///< shared with its slots, which may outlive the link
    std::uint64_t key = 0;
    bool changes = false;
    Filter filter;
};

/// One emission on its way through the slots.
struct Emission {
    void* event;
    const EventType* type;
    std::int64_t last_tick = 0;
    bool closing = false;   ///< everyone hears it, whatever throws
    const SubscriberRecord* only = nullptr;  ///< nobody else hears it
    bool aborted = false;   ///< an interceptor failed: the event is not fit to be seen
    std::exception_ptr error = nullptr;
    std::vector<std::pair<SlotRecord*, std::string>> optional_failures = {};
};

/// Runs every slot. Slots never throw: they leave their failure in the Emission.
struct RunEverySlot {
    using result_type = void;
    template <class Iterator>
    void operator()(Iterator slot, Iterator end) const {
        for (; slot != end; ++slot) *slot;
    }
};

using Signal = boost::signals2::signal<void(Emission&), RunEverySlot, std::uint64_t, std::less<std::uint64_t>,
                                       std::function<void(Emission&)>>;

struct Channel {
    const EventType* type = nullptr;
    std::atomic<int> slots{0};
    Signal signal;
};

std::string message_of(std::exception_ptr error);
/// The exception being handled, as a SubscriberError that tells whose it is; one that tells already is kept.
std::exception_ptr as_subscriber_error(const std::string& subscriber, const std::string& event, const std::string& where, const Moment* moment);

class BusCore : public std::enable_shared_from_this<BusCore> {
public:
    std::array<std::atomic<Channel*>, kMaxEventTypes> channels{};
    Moment moment;

    ~BusCore();
    std::shared_ptr<SubscriberRecord> subscribe(std::string id, SubscriberOptions options, std::string_view before, std::string requester);
    std::shared_ptr<Link> connect(const std::shared_ptr<SubscriberRecord>& subscriber, const EventType& type,
                                  std::uint64_t place, bool changes, Filter filter, AnySlot slot);
    std::shared_ptr<Link> connect_to_all(const std::shared_ptr<SubscriberRecord>& subscriber, std::uint64_t place,
                                         Filter filter, std::function<void(const AnyEvent&)> slot);
    void disconnect(Link& link);
    void detach(const std::shared_ptr<SubscriberRecord>& subscriber, std::string requester);
    void deliver(SubscriberRecord& subscriber, const EventType& event, const void* key, std::function<void()> work);

    void emit(const EventType& type, void* event);
    void dispatch(Channel& channel, void* event, const SubscriberRecord* only = nullptr);
    void dispatch(Channel& channel, void* event, const std::string& only);
    static void leave(const SpanExit& exit);
    void dispatch_to_everyone(Channel& channel, void* event) noexcept;

    void post(std::function<void()> task);
    void flush();
    void drain();
    std::vector<ConnectedSlot> slots() const;
    std::map<std::string, ConnectionProgress> connection_progress() const;
    void restore_connection_progress(const std::map<std::string, ConnectionProgress>& progress);
    void rebase_filters();
    std::vector<AccountingRow> accounting() const;

private:
    Channel& channel_of(const EventType& type);
    void join(const std::shared_ptr<Link>& link, Channel& channel, std::uint64_t key, bool changes, Filter filter, AnySlot slot);
    void run_slot(SlotRecord& record, Emission& emission);
    void note_failure(SlotRecord& record, Emission& emission) noexcept;
    void base_filter(const std::shared_ptr<SlotRecord>& record);
    std::shared_ptr<Link> new_link(const std::shared_ptr<SubscriberRecord>& subscriber);
    static void hold_until_left(const SlotRecord& record, const Emission& emission);
    void settle(Emission& emission);
    void tell_failure(const std::shared_ptr<SubscriberRecord>& subscriber, const EventType& type, const char* where, const std::string& cause,
                      bool too_often);
    void wait_until_idle(const SubscriberRecord& subscriber) const;
    std::shared_ptr<DeliveryThread> new_thread(SubscriberRecord& subscriber);
    std::shared_ptr<SubscriberRecord> find(const std::string& id) const;
    std::uint64_t place_in_order(std::string_view before) const;
    std::vector<std::shared_ptr<Link>> live_links() const;
    /// Calls `visit(key, record)` for every slot with a filter or of a user's own event, with a key that is the same in an equal composition.
    void for_each_filter(const std::function<void(const std::string&, SlotRecord&)>& visit) const;
    void settle_thread_failure(const std::shared_ptr<SubscriberRecord>& subscriber, const EventType& event, const std::string& cause, int in_a_row);
    void fold(const SlotRecord& record);

    mutable std::recursive_mutex mutex_;  ///< connecting may create a channel, which joins the taps
    std::vector<std::shared_ptr<SubscriberRecord>> subscribers_;
    std::vector<std::weak_ptr<Link>> links_;
    std::uint32_t next_connection_ = 0;
    std::atomic<std::thread::id> emitting_thread_{};
    struct Past {
        std::uint64_t calls = 0;
        std::int64_t ticks = 0;
        ThreadTimes thread = {};
    };
    std::map<std::pair<std::string, std::string>, Past> past_accounting_;
    TickScale tick_scale_;

    std::mutex task_mutex_;
    std::deque<std::function<void()>> tasks_;
    std::atomic<bool> has_tasks_{false};
};

}  // namespace torchbus::detail
