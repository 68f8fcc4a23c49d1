#include "prefetch_queue.hpp"

namespace torchbus {

void PrefetchQueue::start(std::int64_t first) {
    stop();
    ready_.clear();
    next_to_make_ = next_to_take_ = first;
    ended_ = stopping_ = false;
    for (int i = 0; i < workers_; ++i) threads_.emplace_back([this] { work(); });
}

void PrefetchQueue::stop() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    taken_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
}

void PrefetchQueue::work() {
    std::unique_lock lock(mutex_);
    for (;;) {
        taken_.wait(lock, [&] { return stopping_ || ended_ || next_to_make_ < next_to_take_ + ahead_; });
        if (stopping_ || ended_) return;
        const std::int64_t number = next_to_make_++;
        lock.unlock();
        Made made;
        try {
            made.batch = make_(number);
        } catch (...) {
            made.error = std::current_exception();
        }
        lock.lock();
        ended_ = ended_ || (!made.batch && !made.error);
        ready_[number] = std::move(made);
        made_.notify_one();
        if (ended_) taken_.notify_all();
    }
}

Fetch PrefetchQueue::take(std::chrono::steady_clock::time_point deadline, Batch& batch) {
    if (workers_ == 0) {
        std::optional<Batch> made = make_(next_to_take_);
        if (!made) return Fetch::Exhausted;
        ++next_to_take_;
        batch = std::move(*made);
        return Fetch::Ready;
    }
    std::unique_lock lock(mutex_);
    if (!made_.wait_until(lock, deadline, [&] { return ready_.contains(next_to_take_); })) return Fetch::Pending;
    Made& made = ready_.at(next_to_take_);
    if (made.error) std::rethrow_exception(made.error);
    if (!made.batch) return Fetch::Exhausted;
    batch = std::move(*made.batch);
    ready_.erase(next_to_take_++);
    lock.unlock();
    taken_.notify_all();
    return Fetch::Ready;
}

}  // namespace torchbus
