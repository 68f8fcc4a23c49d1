#pragma once
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Measures gradients, weights and what the optimizer made of them, at an interval, in total or for every parameter.
/// Listens: RunConfigured; GradientsReady (before clipping: interceptor in phase `inspect` that changes nothing; after:
/// observer); OptimizerStepEnd, OptimizerStepSkipped with `update_ratio`. Reads: gradients, parameters.
/// Publishes norm, mean, max_abs (largest absolute value) and zeros (share of elements that are exactly zero) as
/// gradients.norm, weights.norm, …, and update_ratio: ‖w_after − w_before‖ / ‖w_before‖, infinite where all weights were zero.
/// Of a named update: gradients.<update>.norm, update_ratio.<update>. With `per_parameter` also
/// gradients.<parameter>.norm, …, update_ratio.<parameter>; those names are known once the run is configured; what is
/// not a parameter of the model, or attached while a run is under way, is called parameter_0, parameter_1, …
/// On a skipped update gradients and weights are measured, and the ratio stays that of the last measured update.
/// Where GradientsReady is answered `again`, the last pass counts. Rank: this rank's gradients, no collective.
/// Syncs: none of its own; numbers are copied from a device when they are read, all of one kind at once.
/// Memory: with `update_ratio` a copy of the weights from GradientsReady to OptimizerStepEnd, of measured updates only.
struct GradientStatisticsOptions {
    enum class When {
        BeforeClipping,  ///< after unscaling and reduction, before phase `change`
        AfterClipping,   ///< what the optimizer gets
    };
    Interval every = "100step";   ///< between measured updates; counted for every update of its own
    When when = When::BeforeClipping;
    bool per_parameter = false;
    bool gradients = true;
    bool weights = true;
    bool update_ratio = true;
};
std::unique_ptr<Callback> make_gradient_statistics(GradientStatisticsOptions options = {});

}  // namespace torchbus
