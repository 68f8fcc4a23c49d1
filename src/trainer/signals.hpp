#pragma once
/// SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 while a run is under way.

#include <torchbus/decision.hpp>

namespace torchbus {

/// Catches the four signals while it lives, and puts the former handlers back. A second SIGINT or SIGTERM ends the process
/// at once. One at a time in a process: a second catcher does nothing.
class SignalCatcher {
public:
    SignalCatcher();
    ~SignalCatcher();
    SignalCatcher(const SignalCatcher&) = delete;
    SignalCatcher& operator=(const SignalCatcher&) = delete;
    /// Turns the signals that have arrived into requests: save and stop, or save.
    void poll(Requests& requests);

private:
    bool active_ = false;
};

}  // namespace torchbus
