#pragma once
/// Delivers what waits, on a thread of its own, and tries again what could not be delivered.

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace torchbus {

/// What came of one.
struct DeliveryAttempt {
    enum class Outcome { NothingWaits, Delivered, Failed };
    Outcome outcome = Outcome::NothingWaits;
    std::chrono::milliseconds not_before{0};  ///< after a failure: where the receiver has asked for time
};

struct CourierOptions {
    std::chrono::milliseconds first_wait{250};     ///< after a failure; twice as long after each further one, less up to a half of it by chance
    std::chrono::milliseconds longest_wait{30000};
};

/// Thread: any, but `attempt`, which is the courier's own, one at a time.
class Courier {
public:
    /// `attempt`: delivers what has waited longest; for what may pass, such as a disk that is full, it should return Failed, so that it is
    /// tried again and nothing is lost. `cancel`: makes an attempt that is under way return.
    Courier(CourierOptions options, std::function<DeliveryAttempt()> attempt, std::function<void()> cancel);
    /// As finish(0).
    ~Courier();
    Courier(const Courier&) = delete;
    Courier& operator=(const Courier&) = delete;

    /// Something waits. Throws: what an attempt threw, each time: nothing is delivered any more then, and who calls is to give up.
    void wake();
    /// Goes on until nothing waits, for at most `limit`, and with one attempt only where none has succeeded yet; then ends the thread.
    /// Returns whether nothing waits.
    bool finish(std::chrono::milliseconds limit);

private:
    void run();
    bool wait_after_failure(std::unique_lock<std::mutex>& lock, int failures, const DeliveryAttempt& attempt);

    const CourierOptions options_;
    std::function<DeliveryAttempt()> attempt_;
    std::function<void()> cancel_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::exception_ptr failure_;  // guarded by mutex_, like all below
    bool is_awake_ = true, is_idle_ = false, is_finishing_ = false, is_ending_ = false, has_ended_ = false, has_delivered_ = false;
    std::thread thread_;
};

}  // namespace torchbus
