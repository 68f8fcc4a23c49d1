#pragma once
#include <cstdint>
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Supplies the training loss: cross entropy with smoothed labels, 1 − smoothing + smoothing/C for a sample's own class
/// and smoothing/C for each other. It takes the place of the run's loss function in training; an evaluation keeps the
/// loss function, so that its loss is that of the labels as they are.
/// Shapes: output [N, C, …]; targets [N, …] as integers, or as class probabilities in the output's shape.
/// Listens: OutputReady (interceptor). Reads: output. Writes: loss. mixup and cutmix smooth by an option of their own.
/// Throws: ConfigError within a run where a loss was supplied before, e.g. by a step function.
/// Source: Szegedy et al. 2016, arXiv:1512.00567; the numbers of torch's cross_entropy(label_smoothing).
struct LabelSmoothingOptions {
    double smoothing = 0.1;           ///< in [0, 1)
    std::int64_t ignore_index = -100; ///< samples with this target count nothing
};
std::unique_ptr<Callback> make_label_smoothing(LabelSmoothingOptions options = {});

}  // namespace torchbus
