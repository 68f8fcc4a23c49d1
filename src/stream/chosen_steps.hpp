#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

namespace torchbus {

/// Of events of one name: all of the first step of every interval.
class ChosenSteps {
public:
    /// Whether one of this step is chosen. `attempts`: of the position; `measured()`: in intervals.
    template <class Measure>
    bool take(std::int64_t attempts, Measure&& measured) {
        if (attempts_ == attempts) return true;
        const double tick = std::floor(measured());
        if (std::exchange(tick_, tick) == tick) return false;
        attempts_ = attempts;
        return true;
    }

private:
    double tick_ = -1;
    std::int64_t attempts_ = -1;  ///< of the step that was chosen last
};

}  // namespace torchbus
