#include "text_queue.hpp"

#include <algorithm>
#include <utility>

namespace torchbus {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kKeptBytes = 4U << 20;
constexpr milliseconds kLongestWait{5000};  ///< after failures

/// An empty text with place for so many bytes, in memory that was written to before: the first write to a page takes longer than a
/// message, and is not for the training thread to make.
std::string emptied(std::string text, std::size_t length) {
    if (text.capacity() > 2 * kKeptBytes) text = {};
    if (text.capacity() < length) text.resize(length + length / 2);
    text.clear();
    return text;
}

}  // namespace

TextQueue::TextQueue(std::size_t limit_bytes, milliseconds pace, Work work) : limit_(limit_bytes), pace_(pace), work_(std::move(work)), thread_([this] { run(); }) {}

TextQueue::~TextQueue() {
    {
        const std::lock_guard lock(mutex_);
        is_closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

void TextQueue::run() {
    std::string spare;
    std::unique_lock lock(mutex_);
    while (!is_closing_ || (!waiting_.empty() && failures_in_a_row_ == 0)) {
        const milliseconds pause = failures_in_a_row_ == 0 ? pace_ : std::min(pace_ * (1 << std::min<std::int64_t>(failures_in_a_row_, 10)), std::max(pace_, kLongestWait));
        changed_.wait_for(lock, pause, [this] { return is_asked_ || is_closing_; });
        is_asked_ = false;
        if (waiting_.empty()) {
            changed_.notify_all();
            continue;
        }
        std::string batch = std::exchange(waiting_, std::exchange(spare, {}));
        const std::size_t length = std::min(batch.size(), kKeptBytes);
        is_working_ = true;
        lock.unlock();
        std::exception_ptr failure;
        try {
            work_(batch);
        } catch (...) {
            failure = std::current_exception();
        }
        if (!failure) spare = emptied(std::move(batch), length);
        lock.lock();
        settle(std::move(batch), failure);
        changed_.notify_all();
    }
}

void TextQueue::settle(std::string&& left, const std::exception_ptr& failure) {
    is_working_ = false;
    if (!failure) {
        failures_in_a_row_ = 0;
        return;
    }
    if (!left.empty()) {
        left += waiting_;
        waiting_ = std::move(left);
    }
    newest_failure_ = failure;
    ++failures_;
    if (failures_in_a_row_++ == 0) failure_ = failure;
}

void TextQueue::rethrow_failure() {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void TextQueue::drain() {
    std::unique_lock lock(mutex_);
    const std::int64_t before = failures_;
    is_asked_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return (waiting_.empty() && !is_working_) || failures_ > before; });
    const std::exception_ptr untold = std::exchange(failure_, nullptr);
    if (failures_ > before) std::rethrow_exception(newest_failure_);
    if (untold) std::rethrow_exception(untold);
}

void TextQueue::drop() {
    const std::lock_guard lock(mutex_);
    waiting_.clear();
}

}  // namespace torchbus
