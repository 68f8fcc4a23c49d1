#pragma once
/// What the callbacks have in common that take a run out of the process.

#include <chrono>
#include <cmath>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include <torchbus/checkpoint/writable.hpp>
#include <torchbus/error.hpp>
#include <torchbus/interval.hpp>

namespace torchbus {

inline constexpr double kBytesOfMib = 1024.0 * 1024.0;
inline constexpr std::chrono::hours kLongestRetryAfter(1);                ///< a receiver that asks for more is asked again then
inline constexpr std::chrono::milliseconds kPatienceWhenDetached(500);    ///< for the receiver, where the run has not ended

/// What stands against writing in a folder: warnings, as the run is worth more than what is told of it. Empty: the working folder.
inline std::vector<Finding> check_sink_folder(std::string_view sink, std::string_view option, const std::filesystem::path& folder) {
    auto findings = check_folder(sink, option, folder.empty() ? "." : folder);
    for (Finding& finding : findings) finding.weight = Finding::Weight::Warning;
    return findings;
}

/// Requires: an interval in time.
inline std::chrono::milliseconds milliseconds_in(const Interval& time) { return std::chrono::milliseconds(std::llround(time.amount * 1000)); }

/// Throws: ConfigError that names the option, what it is and what to give, unless it `holds`.
inline void require_of_sink(bool holds, std::string_view sink, std::string_view option, std::string_view found, std::string_view expected) {
    if (!holds) throw ConfigError(fmt::format("{}: {}: {} is out of range; give {}", sink, option, found, expected));
}
/// Throws: ConfigError unless it is a time, and more than 0, or where `may_be_zero` no less.
inline void require_time_of_sink(const Interval& time, bool may_be_zero, std::string_view sink, std::string_view option, std::string_view expected) {
    require_of_sink(time.unit == Interval::Unit::Second && (may_be_zero ? time.amount >= 0 : time.amount > 0), sink, option, to_string(time), expected);
}

}  // namespace torchbus
