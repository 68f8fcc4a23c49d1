#pragma once
/// Records on their way from the training thread to another one, which writes text of them and takes that away in batches.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

namespace torchbus {

/// The training thread never waits for the other one: no more than `limit` bytes wait, and nobody is woken for a record.
class EventQueue {
public:
    /// Writes text of the first record behind `text`. Returns the bytes of that record.
    using Write = std::function<std::size_t(std::string_view records, std::string& text)>;
    /// May take the text. Where it throws, what it leaves is given again after a while, with what has come since.
    using Work = std::function<void(std::string& text)>;

    /// Thread: `write` and `work` are called by the queue's own.
    EventQueue(std::size_t limit_bytes, std::chrono::milliseconds pace, Write write, Work work);
    /// Works off what waits, unless that fails.
    ~EventQueue();
    EventQueue(const EventQueue&) = delete;
    EventQueue& operator=(const EventQueue&) = delete;

    /// Calls `append(records)`, which adds to what waits, or returns false where that is too much.
    template <class Append>
    bool add(Append&& append) {
        const std::lock_guard lock(mutex_);
        if (records_.size() + text_.size() + taken_ >= limit_) return false;
        append(records_);
        // Where the next record goes, the sink's thread has been: the lines are fetched while the step goes on.
        for (std::size_t line = 0; line < 4; ++line) __builtin_prefetch(records_.data() + records_.size() + 64 * line, /*rw=*/1);
        return true;
    }
    /// Throws: what `work` threw, once for all failures in a row.
    void rethrow_failure() {
        if (has_failed_.load(std::memory_order_relaxed)) rethrow_untold();
    }
    /// Waits until all that was added is worked off. Throws: what `work` throws meanwhile, or threw and nobody was told.
    void drain();
    /// Forgets what waits; from then on until something is added, `write` and `work` are not under way.
    void drop();

private:
    bool has_nothing() const { return records_.empty() && text_.empty(); }
    void run();
    void work_off(std::string& records, std::string& text);
    void rethrow_untold();

    const std::size_t limit_;
    const std::chrono::milliseconds pace_;
    Write write_;
    Work work_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::string records_;  // guarded by mutex_, like all below
    std::string text_;     // what `work` left when it threw; older than the records
    std::size_t taken_ = 0;  // bytes of both that are being worked off after a failure
    std::exception_ptr failure_, newest_failure_;  // the first in a row, until it is told; any
    std::int64_t failures_ = 0, failures_in_a_row_ = 0;
    std::atomic<bool> has_failed_{false};          // there is a failure_; read without the mutex
    std::size_t usual_text_ = 0;   ///< bytes of the last one; of the thread alone
    bool is_working_ = false, is_asked_ = false, is_closing_ = false;
    std::thread thread_;
};

}  // namespace torchbus
