#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>
#include <torchbus/interval.hpp>

namespace torchbus {

/// Writes the events of a run to a file, one message a line (see stream/message.hpp), on a thread of its own.
/// Listens: every event (stage Persist). Reads: blackboard.
/// A run that begins anew moves the file that is there aside, to <name>.1<extension>, and that one's to .2; one that goes on adds to it,
/// once a torn line is cut off. Where a file would grow above `max_mib` it is moved aside as well;
/// beyond `keep` of them the oldest is deleted. Where the process is killed, every line but the last is whole; readers pass over a torn
/// one. Lines are on the disk within `sync` and at the run's end.
/// No more than `limit_mib` wait to be written, where a disk is slow; what comes then is left out, and a message `torchbus.gap` says so.
/// A file that cannot be written is told, and the run goes on without it.
/// Rank: every rank writes a file of its own, from rank 1 on <name>.rank<n><extension>.
struct EventFileOptions {
    std::filesystem::path path = "events.jsonl";
    std::vector<std::string> events = {"*"};             ///< patterns of names; `numbers` are those of the blackboard
    Interval every = Interval(1, Interval::Unit::Step);  ///< of what comes with every step or batch; all else is written always
    double max_mib = 256;                                ///< > 0
    std::int64_t keep = 8;                               ///< files moved aside; ≥ 0
    double limit_mib = 64;                               ///< > 0
    Interval sync = Interval(5, Interval::Unit::Second); ///< in time
};
std::unique_ptr<Callback> make_event_file(EventFileOptions options = {});

}  // namespace torchbus
