#include "webhook_queue.hpp"

#include <algorithm>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "sink.hpp"

namespace torchbus {
namespace {

using WebhookClock = std::chrono::steady_clock;

}  // namespace

void WebhookQueue::add(std::string_view line) {
    const std::lock_guard lock(mutex_);
    if (bytes_ + line.size() > options_.limit_bytes) {
        if (left_out_++ == 0) warn(fmt::format("webhook: the events that wait for {} are as many as may; what comes now is left out until there is place", place()));
        return;
    }
    bytes_ += line.size();
    waiting_.push_back({std::string(line), WebhookClock::now()});
}

DeliveryAttempt WebhookQueue::deliver() {
    std::size_t count = 0;
    std::string body = next(count);
    if (count == 0) return {};
    const HttpAnswer answer = poster_.post(poster_.url().target, options_.batch == 1 ? "application/cloudevents+json" : "application/cloudevents-batch+json; charset=utf-8", std::move(body));
    if (answer.is_temporary()) return fail(answer);
    if (answer.is_success()) {
        if (std::exchange(is_in_trouble_, false)) warn(fmt::format("webhook: {} answers again", place()));
    } else if (std::exchange(refused_, refused_ + count) == 0) {
        first_refused_ = count;
        warn(fmt::format("webhook: {} answered {}; events that are not delivered to it: {}", place(), answer.status, count));
    }
    drop(count);
    return {DeliveryAttempt::Outcome::Delivered, {}};
}

void WebhookQueue::tell_sums() const {
    if (refused_ > first_refused_) warn(fmt::format("webhook: {} refused {} events in all", place(), refused_));
    if (given_up_ > first_given_up_) warn(fmt::format("webhook: {} events for {} were given up in all", given_up_, place()));
    const std::lock_guard lock(mutex_);
    if (!waiting_.empty()) warn(fmt::format("webhook: {} events were not delivered to {} when the run had ended", waiting_.size(), place()));
    if (left_out_ > 0) warn(fmt::format("webhook: {} events for {} were left out, as too many waited", left_out_, place()));
}

std::string WebhookQueue::next(std::size_t& count) const {
    const std::lock_guard lock(mutex_);
    count = std::min(options_.batch, waiting_.size());
    if (options_.batch == 1) return count == 0 ? std::string() : waiting_.front().line;
    std::string body;
    for (std::size_t i = 0; i < count; ++i) body += (i == 0 ? "[" : ",") + waiting_[i].line;
    return body + "]";
}

void WebhookQueue::drop(std::size_t count) {
    const std::lock_guard lock(mutex_);
    for (; count > 0; --count) {
        bytes_ -= waiting_.front().line.size();
        waiting_.pop_front();
    }
}

DeliveryAttempt WebhookQueue::fail(const HttpAnswer& answer) {
    if (!answer.is_given_up) {  // by us, at the end: what waits is told then
        if (!std::exchange(is_in_trouble_, true)) warn(fmt::format("webhook: {}: {}; it is tried again", place(), answer.status == 0 ? answer.error : fmt::format("it answers {}", answer.status)));
        give_up_old();
    }
    return {DeliveryAttempt::Outcome::Failed, std::min<std::chrono::milliseconds>(answer.retry_after.value_or(std::chrono::seconds(0)), kLongestRetryAfter)};
}

void WebhookQueue::give_up_old() {
    std::size_t too_old = 0;
    {
        const std::lock_guard lock(mutex_);
        const auto oldest = WebhookClock::now() - options_.give_up_after;
        while (too_old < waiting_.size() && waiting_[too_old].since < oldest) ++too_old;
    }
    drop(too_old);
    if (too_old == 0 || std::exchange(given_up_, given_up_ + too_old) > 0) return;
    first_given_up_ = too_old;
    warn(fmt::format("webhook: {} events were not delivered to {} in {} s, and are given up", too_old, place(), options_.give_up_after.count() / 1000.0));
}

}  // namespace torchbus
