#include <torchbus/callbacks/webhook.hpp>

#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include <torchbus/name_pattern.hpp>
#include <torchbus/stream/event_feed.hpp>

#include "entries.hpp"
#include "parts/sink.hpp"
#include "parts/webhook_queue.hpp"

namespace torchbus {
namespace {

class Webhook final : public Callback {
public:
    explicit Webhook(WebhookOptions options)
        : options_(std::move(options)), http_{.url = http_url(options_.url, "webhook: url"), .headers = http_headers(options_.token_file, options_.headers_file, kind()), .limit = milliseconds_in(options_.timeout)},
          wants_start_(matches_any(options_.events, "stream_start")),
          feed_({.owner = "webhook", .events = options_.events, .every = options_.every}, [this](const std::string&, int, bool) { begin(); }, [this](std::string& lines) { work(std::exchange(lines, {})); }, [this] { end(milliseconds_in(options_.wait_at_end)); }) {}
    std::string kind() const override { return "webhook"; }
    Declaration declare() const override { return {.listens = {"*"}, .reads = {"blackboard"}, .subscriber = {.fault = Fault::Optional}}; }
    void attach(Attachment& run) override {
        if (run.consensus.rank() == 0) feed_.attach(run);
    }
    void detach() override {
        feed_.detach();
        end(kPatienceWhenDetached);
    }

private:
    void begin() {
        if (courier_) return;
        queue_ = std::make_unique<WebhookQueue>(WebhookQueueOptions{.batch = static_cast<std::size_t>(options_.batch), .limit_bytes = static_cast<std::size_t>(options_.limit_mib * kBytesOfMib), .give_up_after = milliseconds_in(options_.give_up_after)}, http_);
        courier_ = std::make_unique<Courier>(CourierOptions{}, [this] { return queue_->deliver(); }, [this] { queue_->cancel(); });
    }
    void work(std::string_view lines) {
        if (!courier_) return;  // an event of a user's that comes when the run was closed
        while (!lines.empty()) {
            const std::string_view line = lines.substr(0, lines.find('\n'));
            lines.remove_prefix(std::min(lines.size(), line.size() + 1));
            if (wants_start_ || line.find(R"("type":"torchbus.stream_start")") == std::string_view::npos) queue_->add(line);
        }
        courier_->wake();
    }
    void end(std::chrono::milliseconds patience) {
        if (!courier_) return;
        courier_->finish(patience);
        courier_.reset();
        queue_->tell_sums();
        queue_.reset();
    }

    WebhookOptions options_;
    HttpPosterOptions http_;
    bool wants_start_;
    std::unique_ptr<WebhookQueue> queue_;  ///< while a run is under way
    std::unique_ptr<Courier> courier_;     ///< before it this goes
    EventFeed feed_;                       ///< and before all this
};

}  // namespace

std::unique_ptr<Callback> make_webhook(WebhookOptions options) {
    require_of_sink(options.every.amount > 0, "webhook", "every", to_string(options.every), "an interval, e.g. 100step");
    require_of_sink(options.batch >= 1, "webhook", "batch", fmt::format("{}", options.batch), "a number of events, e.g. 100, or 1 for each alone");
    require_of_sink(options.limit_mib > 0, "webhook", "limit_mib", fmt::format("{}", options.limit_mib), "MiB, e.g. 16");
    require_time_of_sink(options.timeout, false, "webhook", "timeout", "a time, e.g. 10s");
    require_time_of_sink(options.give_up_after, false, "webhook", "give_up_after", "a time, e.g. 10min");
    require_time_of_sink(options.wait_at_end, true, "webhook", "wait_at_end", "a time, e.g. 10s");
    return std::make_unique<Webhook>(std::move(options));
}

std::unique_ptr<Callback> webhook_from_json(OptionReader& reader) {
    WebhookOptions options;
    std::string token_file, headers_file;
    reader.text("url", options.url, "where events are posted to; http only")
        .texts("events", options.events, "patterns of names; numbers: what is on the blackboard")
        .interval("every", options.every, "of what comes with every step or batch; all else is posted always")
        .integer("batch", options.batch, "events of a request at most; 1: each alone", Range::at_least(1))
        .interval("timeout", options.timeout, "of one request, in time")
        .interval("give_up_after", options.give_up_after, "how long an event is tried to be delivered, in time")
        .interval("wait_at_end", options.wait_at_end, "how long the end of the run may wait for the receiver, in time")
        .number("limit_mib", options.limit_mib, "events that may wait; what comes then is left out, and told", Range::positive())
        .text("token_file", token_file, "its first line is sent as Authorization: Bearer; empty: none")
        .text("headers_file", headers_file, "lines \"Name: value\" that are sent as well; empty: none");
    options.token_file = token_file;
    options.headers_file = headers_file;
    return make_webhook(std::move(options));
}

}  // namespace torchbus
