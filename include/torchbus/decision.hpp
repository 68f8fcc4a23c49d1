#pragma once
/// What a subscriber, a signal or a command may ask of a run, and how a run may end.

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/batch_range.hpp>

namespace torchbus {

enum class Decision : std::uint8_t {
    FailRun,      ///< end as StopRun does, but as a failure with the reason as its message
    StopRun,      ///< finish the step under way, then end the run
    StopEpoch,    ///< end the epoch here, go on with its evaluation and the next one
    SkipBatch,    ///< the next window counts nothing: weight zero, forward and backward still run
    SkipUpdate,   ///< the next update is not made
    EvaluateNow,  ///< evaluate before the next step
    SaveNow,      ///< StepCheckpoint before the next step
    RollBack,     ///< put back the newest training state, and leave out some batches when they come by again
    Pause,        ///< wait before the next step; decisions are taken meanwhile
    Resume,       ///< go on
    ChangeOption, ///< set numbers that steer the run
};
inline constexpr std::size_t kDecisionCount = 11;
std::string_view name_of(Decision decision);

/// A number or an interval of a callback or an optimizer that takes another value.
struct OptionChange {
    std::string subscriber, option;
    std::string value;      ///< JSON, as in a run file
    std::string requester;  ///< who asked for it
};

struct Request {
    std::string requester;  ///< id of the subscriber, name of the signal, …
    std::string reason;
    int rank = 0;
    int exit_code = 0;  ///< for StopRun by a signal: 128 + n
    bool by_signal = false;
    BatchRange leave_out = {};  ///< for RollBack: what is not trained on any more
    std::vector<OptionChange> changes = {};  ///< for ChangeOption, in the order in which they were asked for
};

/// Batches that a run does not train on any more since it was rolled back, and why.
struct LeftOut {
    BatchRange batches;
    std::string requester, reason;
};

/// At most one request of each kind; the first one asked wins, and a signal wins over all others. Changes of options add up.
using RequestSet = std::array<std::optional<Request>, kDecisionCount>;

/// Takes what is asked for later into what waits.
void merge(std::optional<Request>& waiting, Request later);

/// Where requests wait for the next decision point.
/// Thread: ask() may be called from any thread; not from a signal handler.
class Requests {
public:
    void ask(Decision decision, Request request);
    /// All that waits, which is then forgotten here.
    RequestSet take();
    bool is_any_waiting();

private:
    std::mutex mutex_;
    RequestSet waiting_;
};

enum class Outcome : std::uint8_t {
    Finished,   ///< all epochs done
    Stopped,    ///< ended by a decision
    Signalled,  ///< ended by a signal, after a clean save where a saver is attached
    Failed,     ///< ended by an exception
};
std::string_view name_of(Outcome outcome);

/// How a run ended, and why.
struct RunResult {
    Outcome outcome = Outcome::Finished;
    std::string requester;  ///< who asked for the end; empty for Finished
    std::string reason;     ///< why; the error message for Failed
    int exit_code = 0;      ///< for a command line: 0, 1, or 128 + n
};

}  // namespace torchbus
