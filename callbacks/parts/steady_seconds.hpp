#pragma once
#include <chrono>

namespace torchbus {

/// Seconds of a clock that never falls, since some moment of the past.
inline double steady_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace torchbus
