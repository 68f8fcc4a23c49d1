#pragma once
/// Texts on their way from the training thread to another one, which takes them away in batches.

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace torchbus {

/// The training thread never waits for the other one: no more than `limit` bytes wait, and nobody is woken for a text.
class TextQueue {
public:
    /// May take the batch. Where it throws, what it leaves is given again after a while, with what has come since.
    /// Thread: the queue's own.
    using Work = std::function<void(std::string& batch)>;

    TextQueue(std::size_t limit_bytes, std::chrono::milliseconds pace, Work work);
    /// Works off what waits, unless that fails.
    ~TextQueue();
    TextQueue(const TextQueue&) = delete;
    TextQueue& operator=(const TextQueue&) = delete;

    /// Calls `append(text)`, which adds to what waits, or returns false where that is too much.
    template <class Append>
    bool add(Append&& append) {
        const std::lock_guard lock(mutex_);
        if (waiting_.size() >= limit_) return false;
        append(waiting_);
        return true;
    }
    /// Throws: what `work` threw, once for all failures in a row.
    void rethrow_failure();
    /// Waits until all that was added is worked off. Throws: what `work` throws meanwhile, or threw and nobody was told.
    void drain();
    /// Forgets what waits.
    void drop();

private:
    void run();
    void settle(std::string&& left, const std::exception_ptr& failure);

    const std::size_t limit_;
    const std::chrono::milliseconds pace_;
    Work work_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::string waiting_;  // guarded by mutex_, like all below
    std::exception_ptr failure_, newest_failure_;  // the first in a row, until it is told; any
    std::int64_t failures_ = 0, failures_in_a_row_ = 0;
    bool is_working_ = false, is_asked_ = false, is_closing_ = false;
    std::thread thread_;
};

}  // namespace torchbus
