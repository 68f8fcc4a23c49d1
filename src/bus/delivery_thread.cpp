#include "delivery_thread.hpp"

#include <algorithm>
#include <chrono>

namespace torchbus::detail {

DeliveryThread::DeliveryThread(std::size_t capacity, Overflow overflow, Failed failed, std::function<void()> served)
    : capacity_(std::max<std::size_t>(capacity, 1)), overflow_(overflow), shared_(std::make_shared<Shared>()) {
    shared_->failed = std::move(failed);
    shared_->served = std::move(served);
    thread_ = std::thread([shared = shared_] { work_off(shared); });
}

DeliveryThread::~DeliveryThread() {
    {
        const std::lock_guard lock(shared_->mutex);
        shared_->closing = true;
        shared_->changed.notify_all();
    }
    if (thread_.get_id() == std::this_thread::get_id())
        thread_.detach();  // it lets go of itself from its own slot, and ends when that returns
    else
        thread_.join();
}

void DeliveryThread::give(const EventType& event, const void* key, std::function<void()> work) {
    std::unique_lock lock(shared_->mutex);
    Job job{&event, key, std::move(work)};
    if (find_place(lock, job)) shared_->jobs.push_back(std::move(job));
    shared_->changed.notify_all();
}

bool DeliveryThread::find_place(std::unique_lock<std::mutex>& lock, Job& job) {
    auto& jobs = shared_->jobs;
    if (overflow_ == Overflow::Coalesce) {
        const auto waiting = std::ranges::find(jobs, job.key, &Job::key);
        if (waiting != jobs.end()) {
            ++shared_->times[job.event->name].dropped;
            waiting->work = std::move(job.work);
            return false;
        }
    }
    if (jobs.size() < capacity_) return true;
    if (overflow_ == Overflow::Block) {
        shared_->changed.wait(lock, [&] { return jobs.size() < capacity_; });
        return true;
    }
    ++shared_->times[jobs.front().event->name].dropped;
    jobs.pop_front();
    return true;
}

bool DeliveryThread::drain() {
    if (thread_.get_id() == std::this_thread::get_id()) return false;
    std::unique_lock lock(shared_->mutex);
    shared_->changed.wait(lock, [&] { return shared_->jobs.empty() && !shared_->busy; });
    return true;
}

std::map<std::string, ThreadTimes> DeliveryThread::times() const {
    const std::lock_guard lock(shared_->mutex);
    return shared_->times;
}

void DeliveryThread::work_off(const std::shared_ptr<Shared>& shared) {
    std::unique_lock lock(shared->mutex);
    while (true) {
        shared->changed.wait(lock, [&] { return !shared->jobs.empty() || shared->closing; });
        if (shared->jobs.empty()) return;
        Job job = std::move(shared->jobs.front());
        shared->jobs.pop_front();
        shared->busy = true;
        shared->changed.notify_all();
        lock.unlock();
        const auto began = std::chrono::steady_clock::now();
        try {
            job.work();
            shared->served();
        } catch (...) {
            shared->failed(*job.event);
        }
        job.work = {};  // what it held is let go of before the next wait, and without the lock
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
        lock.lock();
        shared->times[job.event->name].seconds += seconds;
        shared->busy = false;
        shared->changed.notify_all();
    }
}

}  // namespace torchbus::detail
