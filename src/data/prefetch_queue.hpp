#pragma once
/// Makes numbered batches on threads, a bounded number ahead, and hands them out in order.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include <torchbus/data/loader.hpp>

#include "device_copies.hpp"

namespace torchbus {

class PrefetchQueue {
public:
    /// Makes batch `number`, or nothing past the end. Thread: `workers` of them at a time.
    using Make = std::function<std::optional<Batch>(std::int64_t number)>;

    PrefetchQueue(Make make, int workers, int ahead) : make_(std::move(make)), workers_(workers), ahead_(ahead) {}
    ~PrefetchQueue() { stop(); }
    PrefetchQueue(const PrefetchQueue&) = delete;
    PrefetchQueue& operator=(const PrefetchQueue&) = delete;

    /// Batches are brought to a device as soon as they are made, or to none. Requires: stopped.
    void copy_to(c10::Device device, int workers);
    void start(std::int64_t first);
    void stop();
    /// Takes the next batch. Throws: what making it threw. Without workers it is made here and now.
    Fetch take(std::chrono::steady_clock::time_point deadline, Batch& batch);

private:
    struct Made {
        std::optional<Batch> batch;
        std::optional<c10::Event> arrived = {};  ///< where it is brought to a device
        std::exception_ptr error = {};
    };
    void work();
    Made made(std::int64_t number) const;
    Batch delivered(Made made) const;

    Make make_;
    int workers_;
    int ahead_;
    std::optional<DeviceCopies> copies_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable made_, taken_;
    std::map<std::int64_t, Made> ready_;  // guarded by mutex_, like all below
    std::int64_t next_to_make_ = 0;
    std::int64_t next_to_take_ = 0;
    bool ended_ = false;
    bool stopping_ = false;
};

}  // namespace torchbus
