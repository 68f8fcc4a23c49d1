#pragma once
/// What a sink takes of a run: chosen events and numbers, as messages, off the training thread.

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>
#include <torchbus/interval.hpp>

namespace torchbus {

struct EventFeedOptions {
    std::string owner;                        ///< whose sink it is, for warnings
    std::vector<std::string> events = {"*"};  ///< patterns of their names; "numbers" is one of them
    Interval every = {1, Interval::Unit::Step};  ///< of what comes more often than an epoch or a decision: each such event of the first step of every interval
    std::size_t limit_bytes = 64U << 20;      ///< of events that wait for the sink, as copied: about a third of their text; what comes then is left out, and a gap says so
    std::chrono::milliseconds pace{50};       ///< how often the sink is given what waits
    bool comes_before_saves = false;          ///< a save waits until the sink has all from before it: a run that goes on from there misses nothing
};

/// Connects in the last stage to every event, or to the chosen ones alone where a user's own cannot be among them, and hands batches of
/// whole lines to a sink. A sink that throws fails the subscriber at the next event, by its fault policy, once for all failures in a
/// row; what it has left of its batch it is given again after a while. Whoever owns it drains it before what it stands on goes.
class EventFeed {
public:
    /// `begin`: a run begins, before its first message; `end`: it is over, and its last message was worked on; both by the training
    /// thread. `work`: on a thread of its own; what it takes out of the lines it is not given again.
    EventFeed(EventFeedOptions options, std::function<void(const std::string& run_id, int rank, bool is_resumed)> begin, std::function<void(std::string& lines)> work, std::function<void()> end);
    ~EventFeed();
    void attach(Attachment& run);
    void detach();
    /// Waits until the sink has all. Throws: what the sink threw.
    void drain();

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace torchbus
