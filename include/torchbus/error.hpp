#pragma once
/// The errors torchbus throws. Every message says where, what was found, what was expected, what to do.

#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace torchbus {

/// Root of all errors of this library. What is quoted in a message may hold NULs, where what() would end: they become `?`.
struct Error : std::runtime_error {
    explicit Error(std::string message);
};

/// The user's input: an option, a run file, a composition, a command line.
struct ConfigError : Error {
    using Error::Error;
};

/// The content of a data file.
struct DataError : Error {
    using Error::Error;
};

/// A call that does not fit the state of the run.
struct StateError : Error {
    using Error::Error;
};

/// A checkpoint that cannot be written or read.
struct CheckpointError : Error {
    using Error::Error;
    CheckpointError(const std::string& where, const std::string& what) : Error(where + ": " + what) {}
};

/// Another rank failed, hung or disagreed.
struct DistributedError : Error {
    using Error::Error;
};

/// A critical subscriber threw. The exception it threw is nested (std::rethrow_if_nested).
struct SubscriberError : Error {
    SubscriberError(const std::string& message, std::string subscriber_id, std::string event_name)
        : Error(message), subscriber(std::move(subscriber_id)), event(std::move(event_name)) {}
    std::string subscriber;  ///< id of the subscriber
    std::string event;       ///< snake_case name of the event it was handling
};

/// `; did you mean 'gradient_clipping'?`, or nothing where no known word is near.
std::string did_you_mean(std::string_view word, std::span<const std::string> known);

/// Writes one warning to standard error, prefixed `torchbus: warning: `.
void warn(std::string_view message);

}  // namespace torchbus
