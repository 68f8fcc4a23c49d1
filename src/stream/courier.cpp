#include <torchbus/stream/courier.hpp>

#include <algorithm>
#include <random>
#include <utility>

namespace torchbus {
namespace {

constexpr std::chrono::milliseconds kLongestWaitAtTheEnd{1000};

}  // namespace

Courier::Courier(CourierOptions options, std::function<DeliveryAttempt()> attempt, std::function<void()> cancel)
    : options_(options), attempt_(std::move(attempt)), cancel_(std::move(cancel)), thread_([this] { run(); }) {}

Courier::~Courier() { finish(std::chrono::milliseconds(0)); }

void Courier::run() {
    std::unique_lock lock(mutex_);
    for (int failures = 0; !is_ending_;) {
        is_awake_ = false;
        lock.unlock();
        DeliveryAttempt made;
        std::exception_ptr failure;
        try {
            made = attempt_();
        } catch (...) {
            failure = std::current_exception();
        }
        lock.lock();
        if (failure) {
            failure_ = failure;
            break;
        }
        if (made.outcome == DeliveryAttempt::Outcome::Failed) {
            if (!wait_after_failure(lock, ++failures, made)) break;
            continue;
        }
        failures = 0;
        if (made.outcome == DeliveryAttempt::Outcome::Delivered) {
            has_delivered_ = true;
            continue;
        }
        is_idle_ = !is_awake_;
        changed_.notify_all();
        changed_.wait(lock, [this] { return is_awake_ || is_ending_; });
        is_idle_ = is_idle_ && !is_awake_;
    }
    has_ended_ = true;
    changed_.notify_all();
}

bool Courier::wait_after_failure(std::unique_lock<std::mutex>& lock, int failures, const DeliveryAttempt& attempt) {
    const bool was_finishing = is_finishing_;
    if (was_finishing && !has_delivered_) return false;
    thread_local std::minstd_rand random(std::random_device{}());  // not a generator of the run's
    auto wait = std::min(options_.longest_wait, options_.first_wait * (1 << std::min(failures - 1, 20)));
    if (was_finishing) wait = std::min(wait, kLongestWaitAtTheEnd);
    wait -= wait * std::uniform_int_distribution<int>(0, 500)(random) / 1000;
    // The end of a run is worth an attempt at once, unless the receiver wants to be left alone.
    changed_.wait_for(lock, std::max(wait, attempt.not_before), [&] { return is_ending_ || (is_finishing_ && !was_finishing && attempt.not_before.count() == 0); });
    return true;
}

void Courier::wake() {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    is_awake_ = true;
    changed_.notify_all();
}

bool Courier::finish(std::chrono::milliseconds limit) {
    bool has_delivered_all = false;
    {
        std::unique_lock lock(mutex_);
        is_finishing_ = true;
        changed_.notify_all();
        changed_.wait_for(lock, limit, [this] { return has_ended_ || (is_idle_ && !is_awake_); });
        has_delivered_all = is_idle_ && !is_awake_;
        is_ending_ = true;
        changed_.notify_all();
    }
    if (!thread_.joinable()) return has_delivered_all;
    cancel_();
    thread_.join();
    return has_delivered_all;
}

}  // namespace torchbus
