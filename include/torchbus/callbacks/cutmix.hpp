#pragma once
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Trains on pasted samples: a box of every input is replaced by that of another sample of the batch (a random
/// permutation); one λ ~ Beta(alpha, alpha) a batch gives the box its area, 1 − λ of the whole before it is cut off at
/// the edges, after which λ is what is left of a sample. Targets stay as they are, so that metrics still see classes; the
/// loss is supplied as λ · L(targets) + (1 − λ) · L(permuted targets) with L the cross entropy. The permutation and λ
/// travel with the batch, in its extras `cutmix.permutation` and `cutmix.share`. An evaluation sees nothing of it.
/// A batch that is not mixed keeps the run's loss function, unless labels are smoothed.
/// λ, box and permutation derive from the run's seed, the rank and the position: a resumed run draws the same.
/// Together with mixup one must be ordered after the other: see there.
/// Listens: RunConfigured (interceptor: the seed), BatchReady and OutputReady (interceptors). Reads: output.
/// Writes: batch, loss. A skipped update mixes as any other.
/// Shapes: inputs [N, …, H, W], floating-point or not, or [N, L], where the box is a stretch of L; targets [N, …] as
/// integers, or as class probabilities [N, C].
/// Source: Yun et al. 2019, arXiv:1905.04899; the box as timm's rand_bbox, with its corrected λ.
struct CutmixOptions {
    double alpha = 1.0;          ///< > 0; small values paste nearly nothing or nearly all
    double probability = 1.0;    ///< in [0, 1], of a batch being mixed
    double label_smoothing = 0;  ///< in [0, 1)
};
std::unique_ptr<Callback> make_cutmix(CutmixOptions options = {});

}  // namespace torchbus
