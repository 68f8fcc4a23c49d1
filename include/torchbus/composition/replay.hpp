#pragma once
/// A recorded run, told anew to subscribers that were not there: another early stopping, a new alarm, a new plot.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>

namespace torchbus {

/// A decision that was asked for, or taken.
struct ReplayedDecision {
    Position position;
    Decision decision;
    std::string requester, reason;
};

struct ReplayResult {
    std::string run;                       ///< id of the last run in the recording
    std::int64_t events = 0;               ///< emitted
    std::map<std::string, std::int64_t> left_out = {};  ///< a user's own events, which nobody here knows, by name
    std::vector<ReplayedDecision> asked = {};           ///< by the callbacks, each where it was asked for; nobody takes them
    std::vector<ReplayedDecision> taken = {};           ///< in the run
    std::vector<std::string> warnings = {};
};

/// Tells the callbacks every event of the recording, with what was on the blackboard then. What they ask for is noted and has no effect:
/// the run has been. Their run is one of its own, with the id <run>-replay-<time>-<digits>, so that no sink goes on with what the run has
/// told it. Their messages have the times of the replay.
/// Throws: ConfigError that names each callback that reads or changes what was not recorded (tensors, weights, gradients), listens
/// to events that were not, needs numbers that never were, or would write over the recording or another run; DataError for a damaged recording.
ReplayResult replay(const std::filesystem::path& recording, std::vector<ComposedCallback> callbacks);

}  // namespace torchbus
