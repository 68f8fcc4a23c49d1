#include "text_queue.hpp"

#include <utility>

namespace torchbus {

TextQueue::TextQueue(std::size_t limit_bytes, std::chrono::milliseconds pace, Work work) : limit_(limit_bytes), pace_(pace), work_(std::move(work)), thread_([this] { run(); }) {}

TextQueue::~TextQueue() {
    {
        const std::lock_guard lock(mutex_);
        is_closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

void TextQueue::run() {
    std::unique_lock lock(mutex_);
    while (!is_closing_ || !waiting_.empty()) {
        changed_.wait_for(lock, pace_, [this] { return is_asked_ || is_closing_; });
        is_asked_ = false;
        if (waiting_.empty()) {
            changed_.notify_all();
            continue;
        }
        std::string batch = std::exchange(waiting_, {});
        waiting_.reserve(batch.capacity());  // the next batch will be as long, and the training thread is not to grow it
        is_working_ = true;
        lock.unlock();
        std::exception_ptr failure;
        try {
            work_(std::move(batch));
        } catch (...) {
            failure = std::current_exception();
        }
        lock.lock();
        is_working_ = false;
        if (failure) failure_ = failure;
        changed_.notify_all();
    }
}

void TextQueue::drain() {
    std::unique_lock lock(mutex_);
    is_asked_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return waiting_.empty() && !is_working_; });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

}  // namespace torchbus
