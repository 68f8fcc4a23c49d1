#pragma once
#include <memory>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Publishes the learning rate that every update and parameter group is about to use.
/// Listens: RunConfigured, TrainStepStart (observers, after the schedules). Reads: learning_rate.
/// Publishes: rate.<update>.<group>, the group being its number and the unnamed update being left out: rate.0, rate.1,
/// rate.generator.0. With `momentum` also momentum.<update>.<group>: SGD's and RMSprop's momentum, Adam's and AdamW's beta1.
/// The names are known once the run is configured. On a skipped update the rate is that of the attempt.
struct LearningRateMonitorOptions {
    bool momentum = false;  ///< publish the momentum too; optimizers of other kinds publish none
};
std::unique_ptr<Callback> make_learning_rate_monitor(LearningRateMonitorOptions options = {});

}  // namespace torchbus
