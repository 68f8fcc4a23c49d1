#pragma once
#include <cstdint>
#include <memory>
#include <optional>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Runs forward under autocast, and for fp16 scales the loss so that small gradients survive.
/// Listens: Forward (wrapper: autocast), BackwardStart (interceptor: scale), GradientsReady (interceptor, phases
/// `finalize`: unscale, `decide`: skip a non-finite update), OptimizerStepEnd and OptimizerStepSkipped (new scale).
/// Reads and writes: gradients. Publishes: loss_scale.
/// Syncs: one number per update, in `decide`, where the loss is scaled.
/// Source: Micikevicius et al. 2018, arXiv:1710.03740; the scale's rule is that of torch.amp.GradScaler.
struct MixedPrecisionOptions {
    enum class Precision { Bf16, Fp16 };
    Precision precision = Precision::Bf16;
    std::optional<bool> scale_loss = {};   ///< default: with fp16
    double initial_scale = 65536;          ///< > 0
    double growth_factor = 2;              ///< > 1
    double backoff_factor = 0.5;           ///< in (0, 1)
    std::int64_t growth_interval = 2000;   ///< updates without a skip until the scale grows; ≥ 1
};
std::unique_ptr<Callback> make_mixed_precision(MixedPrecisionOptions options = {});

}  // namespace torchbus
