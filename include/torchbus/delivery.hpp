#pragma once
/// How an emission reaches a subscriber: in which stage and phase, with what outcome if it throws, on which thread.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace torchbus {

/// Transform is for interceptors and wrappers; the others are for observers.
enum class Stage : std::uint8_t { Transform, Observe, Report, Persist };

/// The phases of GradientsReady's interceptors.
enum class Phase : std::uint8_t {
    Finalize,  ///< wait for the reduction, unscale
    Inspect,   ///< non-finite values, norm
    Change,    ///< clip
    Decide,    ///< skip
};

/// What happens when an observer throws. An interceptor or wrapper is always critical.
enum class Fault : std::uint8_t {
    Critical,  ///< the other observers are served, then the run fails with a SubscriberError
    Optional,  ///< logged, counted, announced by SubscriberFailed; detached after `max_failures` in a row
};

std::string_view name_of(Stage stage);
std::string_view name_of(Phase phase);

/// What happens when a subscriber's thread cannot keep up and its queue is full.
enum class Overflow : std::uint8_t {
    Block,       ///< the training thread waits for a place
    DropOldest,  ///< the longest waiting snapshot is dropped, and counted
    Coalesce,    ///< a snapshot replaces the waiting one of the same connection, which is counted as dropped
};

struct SubscriberOptions {
    Fault fault = Fault::Critical;
    int max_failures = 3;              ///< in a row, for Fault::Optional
    double budget_us = 0;              ///< mean µs a call that it may take of the training thread; above it is named when a run ends. 0: any
    std::size_t queue_capacity = 256;  ///< snapshots that may wait for its thread, for observe_on_thread
    Overflow overflow = Overflow::Block;
};

/// What one connection has seen, for a run that goes on.
struct ConnectionProgress {
    std::int64_t emissions = 0;       ///< of a user's own event
    std::vector<double> filter = {};  ///< see Filter::progress
};

/// Time spent in one subscriber's slots of one event.
struct AccountingRow {
    std::string subscriber;
    std::string event;
    std::uint64_t calls = 0;
    double seconds = 0;         ///< of the training thread
    double thread_seconds = 0;  ///< of the subscriber's own thread
    std::uint64_t dropped = 0;  ///< snapshots that its queue had no place for
};

}  // namespace torchbus
