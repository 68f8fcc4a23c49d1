#pragma once
/// What callbacks share that watch one number over a run.

#include <cmath>
#include <cstdint>
#include <utility>

namespace torchbus {

/// Which way a number gets better.
enum class Goal : std::uint8_t { Min, Max };

inline bool is_better(double value, double than, Goal goal) { return goal == Goal::Min ? value < than : value > than; }

/// Tells a run that begins anew from one that goes on from a state put back before it.
class RunBeginning {
public:
    void loaded() { loaded_ = !running_; }  // within a run there is nothing to begin
    /// At TrainingRunStart: whether what is remembered belongs to a run of before.
    bool is_anew() {
        running_ = true;
        return !std::exchange(loaded_, false);
    }
    /// At RunClosed.
    void closed() { running_ = false; }

private:
    bool running_ = false, loaded_ = false;
};

}  // namespace torchbus
