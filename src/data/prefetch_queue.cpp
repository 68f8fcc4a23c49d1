#include "prefetch_queue.hpp"

#include <torchbus/device.hpp>

namespace torchbus {

void PrefetchQueue::copy_to(c10::Device device, int workers) {
    workers_ = workers;
    copies_.reset();
    if (is_accelerator(device)) copies_.emplace(device);
}

PrefetchQueue::Made PrefetchQueue::made(std::int64_t number) const {
    Made made{make_(number)};
    if (made.batch && copies_) made.arrived = copies_->begin(*made.batch);
    return made;
}

Batch PrefetchQueue::delivered(Made made) const {
    if (made.arrived) copies_->await(*made.arrived, *made.batch);
    return std::move(*made.batch);
}

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
        Made now;
        try {
            now = made(number);
        } catch (...) {
            now = {{}, {}, std::current_exception()};
        }
        lock.lock();
        ended_ = ended_ || (!now.batch && !now.error);
        ready_[number] = std::move(now);
        made_.notify_one();
        if (ended_) taken_.notify_all();
    }
}

Fetch PrefetchQueue::take(std::chrono::steady_clock::time_point deadline, Batch& batch) {
    if (workers_ == 0) {
        Made now = made(next_to_take_);
        if (!now.batch) return Fetch::Exhausted;
        ++next_to_take_;
        batch = delivered(std::move(now));
        return Fetch::Ready;
    }
    std::unique_lock lock(mutex_);
    if (!made_.wait_until(lock, deadline, [&] { return ready_.contains(next_to_take_); })) return Fetch::Pending;
    Made& next = ready_.at(next_to_take_);
    if (next.error) std::rethrow_exception(next.error);
    if (!next.batch) return Fetch::Exhausted;
    Made taken = std::move(next);
    ready_.erase(next_to_take_++);
    lock.unlock();
    taken_.notify_all();
    batch = delivered(std::move(taken));
    return Fetch::Ready;
}

}  // namespace torchbus
