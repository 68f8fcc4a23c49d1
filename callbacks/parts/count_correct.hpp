#pragma once
/// How many outputs are right, in one pass over them, where argmax and eq would make three tensors.

#include <cmath>
#include <cstdint>

namespace torchbus {

/// How many rows of [N, C] have their largest element where the target says. A row with a NaN counts as torch::argmax
/// does: the NaN is the largest.
inline std::int64_t count_correct(const float* outputs, const std::int64_t* targets, std::int64_t samples, std::int64_t classes) {
    std::int64_t correct = 0;
    for (std::int64_t sample = 0; sample < samples; ++sample, outputs += classes) {
        std::int64_t best = 0;
        for (std::int64_t c = 1; c < classes && !std::isnan(outputs[best]); ++c)
            if (outputs[c] > outputs[best] || std::isnan(outputs[c])) best = c;
        correct += best == targets[sample] ? 1 : 0;
    }
    return correct;
}

}  // namespace torchbus
