#pragma once
/// One subscriber's own thread with its bounded queue.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include <torchbus/delivery.hpp>
#include <torchbus/event_type.hpp>

namespace torchbus::detail {

/// Time and losses of one event's work on a thread.
struct ThreadTimes {
    double seconds = 0;
    std::uint64_t dropped = 0;
};

/// Works off what it is given, one at a time and in order. What waits when it is destroyed is worked off first.
class DeliveryThread {
public:
    /// `failed` is called on the thread, while the exception is being handled.
    using Failed = std::function<void(const EventType& event)>;
    /// `served` is called on the thread after work that did not throw.
    DeliveryThread(std::size_t capacity, Overflow overflow, Failed failed, std::function<void()> served);
    DeliveryThread(const DeliveryThread&) = delete;
    DeliveryThread& operator=(const DeliveryThread&) = delete;
    ~DeliveryThread();

    /// Thread: the training thread. `key` tells the connection, for Overflow::Coalesce.
    void give(const EventType& event, const void* key, std::function<void()> work);
    /// Returns true when nothing waits and nothing runs; false at once on its own thread.
    bool drain();
    /// By name of the event.
    std::map<std::string, ThreadTimes> times() const;

private:
    struct Job {
        const EventType* event;
        const void* key;
        std::function<void()> work;
    };
    /// Shared with the thread, which may outlive the owner where it is the one that lets go.
    struct Shared {
        std::mutex mutex;
        std::condition_variable changed;
        std::deque<Job> jobs;
        bool busy = false;
        bool closing = false;
        std::map<std::string, ThreadTimes> times;
        Failed failed;
        std::function<void()> served;
    };
    static void work_off(const std::shared_ptr<Shared>& shared);
    /// Makes room in a full queue. Returns whether the job has found a place of its own.
    bool find_place(std::unique_lock<std::mutex>& lock, Job& job);

    std::size_t capacity_;
    Overflow overflow_;
    std::shared_ptr<Shared> shared_;
    std::thread thread_;
};

}  // namespace torchbus::detail
