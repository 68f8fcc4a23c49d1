#pragma once
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Updates the weights with the gradient taken at the worst point near by (SAM): a window's first pass climbs by
/// rho · g / ‖g‖, the window goes forward and backward again there, and that gradient is applied at the weights as they
/// were, to the bit. With `adaptive` (ASAM) the climb is rho · w² g / ‖|w| g‖, so that rescaled weights climb alike.
/// The climb is made of the unscaled gradient before clipping; clipping bounds the gradient of the second pass, and
/// grad_norm is of that pass. Twice the forwards and backwards, and a copy of weights and buffers. Losses, metrics and
/// buffers (batch norm) are those of the first pass. An update that is skipped after its first pass is not repeated.
/// Listens: RunConfigured (interceptor: at least two passes), GradientsReady (interceptor, phases `inspect`: the climb is
/// computed, and the weights are put back, `decide`: again), RunFailed (observer). Reads: gradients.
/// Writes: gradients.inspect, gradients.decide, parameters.
/// Source: Foret et al. 2021, arXiv:2010.01412, algorithm 1; adaptive: Kwon et al. 2021, arXiv:2102.11600.
struct SharpnessAwareOptions {
    double rho = 0.05;        ///< > 0, length of the climb; adaptive: ten times as much is usual
    bool adaptive = false;
    std::string update = "";  ///< name of the update; empty: each
};
std::unique_ptr<Callback> make_sharpness_aware(SharpnessAwareOptions options = {});

}  // namespace torchbus
