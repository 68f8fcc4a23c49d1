#pragma once
#include <memory>

#include <torchbus/metrics/measure_callback.hpp>

namespace torchbus {

/// Perplexity over an epoch: exp of the mean negative log-likelihood of the tokens that count, however they lie in batches.
/// Shapes: output [N, T, C] of logits and targets [N, T]; [N, C] and [N] as well.
/// Publishes and listens as make_measure_callback says: train.perplexity, eval.perplexity, train.running.perplexity.
/// Reads: batch, output. Writes: nothing. Ignored targets do not count; others that are no class are an error.
struct PerplexityOptions {
    bool classes_last = true;          ///< false: output [N, C, T], as torch's cross_entropy takes it
    std::int64_t ignore_index = -100;  ///< targets of this value do not count: padding
    MeasureSchedule schedule = {};
};
std::unique_ptr<Callback> make_perplexity(PerplexityOptions options = {});

}  // namespace torchbus
