#pragma once
/// Schedules: pure functions of where a run is, so that resuming needs no replay.
///
/// Lengths are intervals: 100 or "100step" (updates), "2epoch", "1e6sample", and shares such as "0.1run", which stand
/// for a part of the run's length as soon as that is known. A share is rounded down to whole updates. The lengths of one
/// schedule are in one unit and shares of the run; steps and epochs may be mixed. Steps stand still at a skipped update;
/// epochs, samples and tokens go on.

#include <concepts>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <torchbus/declaration.hpp>
#include <torchbus/option_reader.hpp>
#include <torchbus/position.hpp>

namespace torchbus {

struct Outlook;
namespace detail {
struct Curve;
}

/// A factor of the base value, for the update to come; the first update gets f(0). Thread: any.
class Schedule {
public:
    Schedule() = default;
    /// Any function of the run's moment.
    template <class F>
        requires(std::is_invocable_r_v<double, F&, const Moment&> && !std::same_as<std::remove_cvref_t<F>, Schedule>)
    Schedule(F function) : Schedule(std::in_place, std::function<double(const Moment&)>(std::move(function))) {}  // NOLINT
    /// Throws: ConfigError for lengths whose units do not go together.
    explicit Schedule(detail::Curve curve);

    explicit operator bool() const { return curve_ != nullptr; }
    /// Throws: ConfigError for a share of a run whose length is not known.
    double operator()(const Moment& moment) const;
    /// Whether the update to come is one of a warm-up–stable–decay schedule's decay; no other kind has one.
    bool in_decay(const Moment& moment) const;
    bool has_decay() const;
    const std::shared_ptr<const detail::Curve>& curve() const { return curve_; }

private:
    Schedule(std::in_place_t, std::function<double(const Moment&)> function);
    std::shared_ptr<const detail::Curve> curve_;
};

inline const Interval kWholeRun{1.0, Interval::Unit::Run};

Schedule make_constant_schedule(double factor = 1);

/// From 1 to `final_factor` in a straight line.
struct LinearScheduleOptions {
    Interval warmup = 0;         ///< rises from `warmup_start` to 1 in a straight line
    double warmup_start = 0;     ///< factor of the first update
    Interval length = kWholeRun; ///< warm-up included; afterwards the last factor stays
    double final_factor = 0;
};
Schedule make_linear_schedule(LinearScheduleOptions options);

/// From 1 to `final_factor` along (1 − progress)^power. Source: torch.optim.lr_scheduler.PolynomialLR.
struct PolynomialScheduleOptions {
    Interval warmup = 0;
    double warmup_start = 0;
    Interval length = kWholeRun;
    double final_factor = 0;
    double power = 1;  ///< > 0
};
Schedule make_polynomial_schedule(PolynomialScheduleOptions options);

/// factor^(position / every), at least `minimum`; in between it falls as well. Source: torch.optim.lr_scheduler.ExponentialLR.
struct ExponentialScheduleOptions {
    Interval every = {1.0, Interval::Unit::Epoch};
    double factor = 0.95;  ///< > 0
    double minimum = 0;
};
Schedule make_exponential_schedule(ExponentialScheduleOptions options);

/// Multiplies by `factor` after every `every`. Source: torch.optim.lr_scheduler.StepLR.
struct StepScheduleOptions {
    Interval every = {1.0, Interval::Unit::Epoch};
    double factor = 0.1;
};
Schedule make_step_schedule(StepScheduleOptions options);

/// Multiplies by `factor` at every milestone. Source: torch.optim.lr_scheduler.MultiStepLR.
struct MultiStepScheduleOptions {
    std::vector<Interval> milestones = {{0.5, Interval::Unit::Run}, {0.75, Interval::Unit::Run}};
    double factor = 0.1;
};
Schedule make_multi_step_schedule(MultiStepScheduleOptions options);

/// Source: Loshchilov and Hutter 2017, arXiv:1608.03983; k-decay: Zhang and Li 2020, arXiv:2004.05909; the options are
/// those of timm's CosineLRScheduler, with lengths that fill `length`.
struct CosineScheduleOptions {
    Interval warmup = 0;
    double warmup_start = 0;
    Interval length = kWholeRun;  ///< warm-up and cooldown included; afterwards `minimum` stays
    Interval cooldown = 0;        ///< at the end, at `minimum`
    double minimum = 0;           ///< factor at the end of every cycle
    std::int64_t cycles = 1;      ///< ≥ 1; each begins at the top again
    double cycle_factor = 1;      ///< > 0; a cycle is so much longer than the one before
    double cycle_decay = 1;       ///< > 0; the top of a cycle is so much of the one before
    double k_decay = 1;           ///< > 0; above 1 the factor stays high for longer
};
Schedule make_cosine_schedule(CosineScheduleOptions options);

/// Up from `initial_factor` to `peak_factor`, and down to `final_factor` at the last update. With three phases it comes
/// back to `initial_factor` as fast as it rose, and falls from there. torch's div_factor is 1 / initial_factor, its
/// final_div_factor initial_factor / final_factor, its pct_start `rise`. For momentum: 1, base / max and 1.
/// Source: Smith and Topin 2018, arXiv:1708.07120, as in torch.optim.lr_scheduler.OneCycleLR.
struct OneCycleScheduleOptions {
    enum class Annealing { Cosine, Linear };
    Interval length = kWholeRun;
    double rise = 0.3;              ///< share of the length, in [0, 1]; with three phases in [0, 0.5]
    double initial_factor = 0.04;
    double peak_factor = 1;
    double final_factor = 4e-6;
    Annealing annealing = Annealing::Cosine;
    bool three_phase = false;
};
Schedule make_one_cycle_schedule(OneCycleScheduleOptions options);

/// Rises, stays at 1, and decays at the end. A longer run decays later: from a checkpoint before the decay it goes on as
/// if it had been planned so. From a checkpoint after the decay, `continued_from` begins a stable stretch anew.
/// Source: Hu et al. 2024, arXiv:2404.06395; 1 − sqrt: Hägele et al. 2024, arXiv:2405.18392; inverse-proportional and
/// several decays: Wen et al. 2024, arXiv:2410.05192.
struct WarmupStableDecayScheduleOptions {
    enum class Decay {
        Linear,
        Cosine,
        Sqrt,                 ///< 1 − sqrt(progress)
        InverseProportional,  ///< 1 / (progress / minimum + 1 − progress); needs a minimum above 0
    };
    Interval warmup = {0.01, Interval::Unit::Run};
    double warmup_start = 0;
    Interval decay = {0.1, Interval::Unit::Run};  ///< a share is one of the stretch that it ends
    Decay shape = Decay::Sqrt;
    double minimum = 0;                        ///< factor at the end of a decay
    Interval length = kWholeRun;
    std::vector<Interval> earlier_decays = {};  ///< where decays before the last one end; after each the factor is 1 again
    Interval continued_from = 0;               ///< where a run that had decayed was taken up again; no warm-up after it
};
Schedule make_warmup_stable_decay_schedule(WarmupStableDecayScheduleOptions options);

/// Schedules one after the other; each starts at its own beginning, and `run` is within it the length of its part.
/// Functions of the user's own see the moment as it is. The last part may have no length: it gets the rest.
struct SequencePart {
    Schedule schedule;
    std::optional<Interval> length = {};
};
Schedule make_sequence_schedule(std::vector<SequencePart> parts);

/// Reads `{"kind": "cosine", …}`. Throws: ConfigError with the JSON path.
Schedule schedule_from_json(const nlohmann::json& json, const std::string& where);

/// What stands against a schedule in a run: shares of an unknown length (an error), lengths beyond the run's or phases
/// beyond the schedule's (warnings: a trial run may be short).
std::vector<Finding> check_schedule(const Schedule& schedule, const Outlook& run, std::string_view owner);

/// A run whose values are wanted beforehand.
struct SampledRun {
    RunLength length;                  ///< `steps` must be known
    std::int64_t steps_per_epoch = 0;  ///< 0: steps / epochs
    double samples_per_step = 0;       ///< for lengths in samples
};
/// The factor of every update of a run in which none is skipped. Throws: ConfigError where its steps are not known.
std::vector<double> sample_schedule(const Schedule& schedule, const SampledRun& run);

}  // namespace torchbus
