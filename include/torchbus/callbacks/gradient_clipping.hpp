#pragma once
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Bounds the gradients of an update, once per update, after unscaling.
/// Listens: GradientsReady (interceptor, phase `change`). Reads and writes: gradients.
/// Publishes: grad_norm, before clipping (not with mode Value). Rank: a norm is a collective where the update is divided.
/// Source: norm: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1; adaptive: Brock et al. 2021, arXiv:2102.06171.
struct GradientClippingOptions {
    enum class By {
        Norm,      ///< scales all gradients so that their total norm is at most `max_norm`
        Value,     ///< clamps each element to [−max_value, max_value]
        Adaptive,  ///< scales each unit's gradient to at most `ratio` of the norm of its weights
    };
    By by = By::Norm;
    double max_norm = 1.0;    ///< > 0; unit of the gradients after unscaling
    double norm_type = 2.0;   ///< p of the p-norm; > 0, infinity allowed
    double max_value = 1.0;   ///< > 0
    double ratio = 0.01;      ///< > 0
    double epsilon = 1e-3;    ///< > 0; smallest weight norm that Adaptive takes, so that zero weights can grow
};
std::unique_ptr<Callback> make_gradient_clipping(GradientClippingOptions options);

}  // namespace torchbus
