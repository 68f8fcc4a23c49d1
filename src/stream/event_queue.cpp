#include "event_queue.hpp"

#include <algorithm>
#include <utility>

namespace torchbus {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kKeptBytes = 4U << 20;
constexpr std::size_t kTextBytes = 4U << 20;  ///< of text at a time
constexpr milliseconds kLongestPause{5000};    ///< after failures

/// An empty text with place for so many bytes, in memory that was written to before: the first write to a page takes longer than a
/// record, and is not for the training thread to make.
std::string emptied(std::string text, std::size_t length) {
    if (text.capacity() > 2 * kKeptBytes) text = {};
    if (text.capacity() < length) text.resize(length + length / 2);
    text.clear();
    return text;
}

}  // namespace

EventQueue::EventQueue(std::size_t limit_bytes, milliseconds pace, Write write, Work work)
    : limit_(limit_bytes), pace_(pace), write_(std::move(write)), work_(std::move(work)), thread_([this] { run(); }) {}

EventQueue::~EventQueue() {
    {
        const std::lock_guard lock(mutex_);
        is_closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

void EventQueue::run() {
    std::string spare;
    std::unique_lock lock(mutex_);
    while (!is_closing_ || (!has_nothing() && failures_in_a_row_ == 0)) {
        const milliseconds pause = failures_in_a_row_ == 0 ? pace_ : std::min(pace_ * (1 << std::min<std::int64_t>(failures_in_a_row_, 10)), std::max(pace_, kLongestPause));
        changed_.wait_for(lock, pause, [this] { return is_asked_ || is_closing_; });
        is_asked_ = false;
        if (has_nothing()) {
            changed_.notify_all();
            continue;
        }
        std::string records = std::exchange(records_, std::exchange(spare, {})), text = std::exchange(text_, {});
        const std::size_t length = std::min(records.size(), kKeptBytes);
        is_working_ = true;
        taken_ = failures_in_a_row_ > 0 ? records.size() + text.size() : 0;
        lock.unlock();
        std::exception_ptr failure;
        try {
            work_off(records, text);
        } catch (...) {
            failure = std::current_exception();
        }
        if (!failure) spare = emptied(std::move(records), length);
        lock.lock();
        is_working_ = false;
        taken_ = 0;
        failures_in_a_row_ = failure ? failures_in_a_row_ + 1 : 0;
        if (failure) {
            text_ = std::move(text);
            records_ = std::move(records += records_);
            newest_failure_ = failure;
            ++failures_;
            if (failures_in_a_row_ == 1) failure_ = failure, has_failed_ = true;
        }
        changed_.notify_all();
    }
}

/// What is not worked off when it throws is left in both.
void EventQueue::work_off(std::string& records, std::string& text) {
    std::size_t written = 0;
    try {
        do {
            text.reserve(usual_text_);
            while (written < records.size() && text.size() < kTextBytes) {
                const std::size_t whole = text.size();
                try {
                    written += write_(std::string_view(records).substr(written), text);
                } catch (...) {
                    text.resize(whole);
                    throw;
                }
            }
            usual_text_ = text.size();
            work_(text);
            text.clear();
        } while (written < records.size());
    } catch (...) {
        records.erase(0, written);
        throw;
    }
}

void EventQueue::rethrow_untold() {
    const std::lock_guard lock(mutex_);
    has_failed_ = false;
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void EventQueue::drain() {
    std::unique_lock lock(mutex_);
    const std::int64_t before = failures_;
    is_asked_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return (has_nothing() && !is_working_) || failures_ > before; });
    const std::exception_ptr untold = std::exchange(failure_, nullptr);
    if (failures_ > before) std::rethrow_exception(newest_failure_);
    if (untold) std::rethrow_exception(untold);
}

void EventQueue::drop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !is_working_; });
    records_.clear();
    text_.clear();
}

}  // namespace torchbus
