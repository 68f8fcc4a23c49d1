#pragma once
/// Texts on their way from the training thread to another one, which takes them away in batches.

#include <chrono>
#include <condition_variable>
#include <cstddef>
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
    /// Thread: the queue's own.
    using Work = std::function<void(std::string&& batch)>;

    TextQueue(std::size_t limit_bytes, std::chrono::milliseconds pace, Work work);
    /// Works off what waits.
    ~TextQueue();
    TextQueue(const TextQueue&) = delete;
    TextQueue& operator=(const TextQueue&) = delete;

    /// Calls `append(text)`, which adds to what waits, or returns false where that is too much.
    /// Throws: what `work` threw, once.
    template <class Append>
    bool add(Append&& append) {
        const std::lock_guard lock(mutex_);
        if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
        if (waiting_.size() >= limit_) return false;
        append(waiting_);
        return true;
    }
    /// Waits until all that was added is worked off. Throws: what `work` threw.
    void drain();

private:
    void run();

    const std::size_t limit_;
    const std::chrono::milliseconds pace_;
    Work work_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::string waiting_;  // guarded by mutex_, like all below
    std::exception_ptr failure_;
    bool is_working_ = false, is_asked_ = false, is_closing_ = false;
    std::thread thread_;
};

}  // namespace torchbus
