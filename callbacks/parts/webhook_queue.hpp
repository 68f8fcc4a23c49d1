#pragma once
/// Events that wait for the receiver of a webhook, and how they are delivered.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include <torchbus/stream/courier.hpp>
#include <torchbus/stream/http_poster.hpp>

namespace torchbus {

struct WebhookQueueOptions {
    std::size_t batch = 1;                       ///< events of a request at most; 1: each alone, and not in an array
    std::size_t limit_bytes = 0;                 ///< of events that wait; what comes then is left out
    std::chrono::milliseconds give_up_after{0};  ///< how long an event is tried to be delivered
};

/// Warns of the first event that is refused, given up or left out, and counts the others.
/// Thread: any, but deliver(), which is the courier's.
class WebhookQueue {
public:
    WebhookQueue(WebhookQueueOptions options, HttpPosterOptions http) : options_(options), poster_(std::move(http)) {}
    /// `line`: an event, without its line break.
    void add(std::string_view line);
    /// What has waited longest, in one request.
    DeliveryAttempt deliver();
    void cancel() { poster_.cancel(); }
    /// Warns of what was not delivered, in sums. Requires: the courier has ended.
    void tell_sums() const;

private:
    struct Waiting {
        std::string line;
        std::chrono::steady_clock::time_point since;
    };
    std::string next(std::size_t& count) const;
    void drop(std::size_t count);
    DeliveryAttempt fail(const HttpAnswer& answer);
    void give_up_old();
    const std::string& place() const { return poster_.url().place; }

    const WebhookQueueOptions options_;
    HttpPoster poster_;  ///< of the courier's thread, like what follows
    bool is_in_trouble_ = false;
    std::size_t refused_ = 0, first_refused_ = 0, given_up_ = 0, first_given_up_ = 0;  ///< events; the first of them are told at once
    mutable std::mutex mutex_;
    std::deque<Waiting> waiting_;  // guarded by mutex_, like all below
    std::size_t bytes_ = 0, left_out_ = 0;
};

}  // namespace torchbus
