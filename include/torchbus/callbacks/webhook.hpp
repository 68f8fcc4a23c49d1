#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>
#include <torchbus/interval.hpp>

namespace torchbus {

/// Posts events of a run to an address, as CloudEvents 1.0 in JSON, on a thread of its own.
/// Listens: every event (stage Persist). Reads: blackboard.
/// With a `batch` of 1 a request is one event (`application/cloudevents+json`), else an array of them (`application/cloudevents-batch+json`).
/// Any answer of 2xx is a receipt. Without an answer, and after 408, 429 and 5xx, it is tried again (0.25 s, doubled up to 30 s, and not
/// before what Retry-After says) until an event is older than `give_up_after`; any other answer is final. What was not delivered is told.
/// An event may come twice, where a receipt was lost: it is the same by its `source` and `id`. Events come in their order.
/// When the run has ended it is waited for no longer than `wait_at_end`, and for one attempt where none has succeeded yet.
/// Rank: only rank 0 posts.
struct WebhookOptions {
    std::string url = "http://127.0.0.1:8080/";
    /// Patterns of names; `numbers` are those of the blackboard.
    std::vector<std::string> events = {"training_run_start", "decision_taken", "checkpoint_saved", "rolled_back", "subscriber_failed", "run_failed", "run_closed"};
    Interval every = Interval(100, Interval::Unit::Step);  ///< of what comes with every step or batch
    std::int64_t batch = 100;                              ///< events of a request; ≥ 1
    Interval timeout = Interval(10, Interval::Unit::Second);         ///< of one request, in time
    Interval give_up_after = Interval(600, Interval::Unit::Second);  ///< in time
    Interval wait_at_end = Interval(10, Interval::Unit::Second);     ///< in time; ≥ 0
    double limit_mib = 16;                                 ///< > 0; of events that wait; what comes then is left out, and told
    std::filesystem::path token_file = {};                      ///< its first line is sent as `Authorization: Bearer`; empty: none
    std::filesystem::path headers_file = {};                    ///< lines "Name: value"; empty: none
};
std::unique_ptr<Callback> make_webhook(WebhookOptions options = {});

}  // namespace torchbus
