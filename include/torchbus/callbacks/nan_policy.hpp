#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Watches loss and gradient norm of every update for values that are not finite or far above the usual, and says which
/// parameter's gradient and which samples it was.
/// A spike is a loss or a norm above `spike_factor` times what is usual: the median of the last `window` updates, or an
/// exponential moving average with weight 2 / (window + 1) for the newest. Updates that are made count into it, spikes that
/// were let through included; skipped ones do not. Losses at or below 0 are no measure, and never spikes.
/// Rolling back puts the whole run back to the newest state that save_training_state has written: weights, optimizers,
/// generators, data, the state of every callback. When the data comes by again, the window with the fault and, as `leave_out`
/// says, those before it within the epoch are not trained on; WindowLeftOut names them, and a state that is saved from then on
/// knows of them. An epoch has so many steps less.
/// Listens: RunConfigured, TrainingRunStart, RolledBack, ForwardEnd, GradientsReady (interceptor, phases `inspect`: norm before clipping, and `decide`),
/// OptimizerStepEnd, RunClosed. Reads: batch, loss, gradients. Publishes: nan_policy.faults, how many there were in the run.
/// Asks for: FailRun, StopRun or RollBack. An update that someone else has skipped already, such as loss scaling, is not judged.
/// With several updates each has a history of its own.
/// Rank: sums the loss over ranks at an update, so that all ranks judge alike; each names the samples of its own. A norm is a
/// collective where the update is divided.
/// Syncs: one read per update where the loss lies on a device.
struct NanPolicyOptions {
    enum class Action {
        Fail,  ///< skips the update and ends the run as failed
        Stop,  ///< skips the update and ends the run as stopped
        Skip,  ///< skips the update and goes on
        Warn,  ///< makes the update
        RollBack,  ///< skips the update, puts back the newest training state, and leaves out the data that led here
    };
    enum class Usual { Median, MovingAverage };
    Action non_finite = Action::Skip;
    Action spike = Action::Warn;
    double spike_factor = 10;          ///< > 1; 0: no spikes are looked for
    Usual usual = Usual::Median;
    std::int64_t window = 64;          ///< updates; ≥ 1
    std::int64_t warmup = 16;          ///< updates that are made before spikes are looked for; ≥ 1
    std::int64_t max_in_a_row = 10;    ///< updates skipped in a row, after which the run fails; ≥ 1
    std::int64_t leave_out = 1;        ///< windows that a roll-back leaves out: the one with the fault and those before it; ≥ 1
    std::int64_t max_roll_backs = 10;  ///< in a run; the run fails at the next fault; ≥ 1
    std::string record = {};           ///< a file that gets every fault as a line of JSON, all sample indices included; empty: none
};
std::unique_ptr<Callback> make_nan_policy(NanPolicyOptions options = {});

}  // namespace torchbus
