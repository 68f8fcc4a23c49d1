#pragma once
/// Signals that a launcher is sent for its ranks.

#include <array>
#include <csignal>
#include <functional>

namespace torchbus {

struct PassedOnSignal {
    int number;
    int for_ranks;  ///< what they are sent
    bool ends;      ///< whether the launch ends with it
};

/// Catches them while it lives. One at a time in a process.
class PassedOnSignals {
public:
    PassedOnSignals();
    ~PassedOnSignals();
    PassedOnSignals(const PassedOnSignals&) = delete;
    PassedOnSignals& operator=(const PassedOnSignals&) = delete;

    /// Each that has come since the last call, as often as it came.
    static void take(const std::function<void(const PassedOnSignal&)>& pass_on);

private:
    std::array<struct sigaction, 6> former_{};
};

}  // namespace torchbus
