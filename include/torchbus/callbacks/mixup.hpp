#pragma once
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Trains on mixed samples: inputs ← λ · inputs + (1 − λ) · inputs of a random permutation, one λ ~ Beta(alpha, alpha) a
/// batch. Targets stay as they are, so that metrics still see classes; the loss is supplied as λ · L(targets) +
/// (1 − λ) · L(permuted targets) with L the cross entropy, which equals that of mixed soft targets. The permutation and λ
/// travel with the batch, in its extras `mixup.permutation` and `mixup.share`. An evaluation sees nothing of it.
/// A batch that is not mixed keeps the run's loss function, unless labels are smoothed.
/// λ and permutation derive from the run's seed, the rank and the position: a resumed run draws the same.
/// Together with cutmix one must be ordered after the other, and then leaves a batch alone that the first one mixed:
/// mixup with probability 0.5, then cutmix with 1, takes turns as timm does by default.
/// Listens: RunConfigured (interceptor: the seed), BatchReady and OutputReady (interceptors). Reads: output.
/// Writes: batch, loss. A skipped update mixes as any other.
/// Shapes: inputs [N, …], floating-point; targets [N, …] as integers, or as class probabilities [N, C].
/// Source: Zhang et al. 2018, arXiv:1710.09412; λ for each batch and the smoothing as in timm's Mixup.
struct MixupOptions {
    double alpha = 0.8;          ///< > 0; small values mix little
    double probability = 1.0;    ///< in [0, 1], of a batch being mixed
    double label_smoothing = 0;  ///< in [0, 1)
};
std::unique_ptr<Callback> make_mixup(MixupOptions options = {});

}  // namespace torchbus
