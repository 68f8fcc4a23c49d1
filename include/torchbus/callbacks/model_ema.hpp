#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Keeps an exponential moving average of the weights, and evaluates it beside them: average ← decay · average +
/// (1 − decay) · weights after an update. The average is a weights view: evaluations show `eval.<view>.loss`. While the
/// view is shown the averages lie in the model, and afterwards the very bits of the trained weights are put back.
/// Several live side by side under ids and views of their own. A training run begins with the weights as they are then,
/// unless a state was loaded; an evaluation after it shows the average that it left.
/// A skipped update changes nothing and counts for nothing here.
/// Listens: RunConfigured (interceptor: the plan's views), TrainEpochStart, OptimizerStepEnd, ParametersChanged and
/// WeightsViewChanged (observers). Writes: plan.views. Holds the weights view `view`.
/// Source: Polyak and Juditsky 1992; decay and its warm-up (Power) as ModelEmaV3 of timm, to the bit.
struct ModelEmaOptions {
    enum class Warmup {
        None,         ///< `decay` from the second average on; the first is a copy of the weights
        Power,        ///< decay_n = 1 − (1 + n/gamma)^−power, n the updates averaged before, at most `decay`
        Exponential,  ///< decay_n = decay · (1 − e^(−n/gamma)): give a gamma such as 2000
    };
    enum class Buffers {
        Copy,     ///< the view shows the buffers as they were at the last average
        Average,  ///< they are averaged as the weights are; integers are copied
        None,     ///< the view shows the model's buffers as they are
    };
    double decay = 0.9999;  ///< in [0, 1); 1 − momentum, where that is the share of the new weights
    Warmup warmup = Warmup::None;
    double warmup_gamma = 1;           ///< > 0, in averages
    double warmup_power = 2.0 / 3.0;   ///< > 0
    double min_decay = 0;              ///< in [0, decay]: with warm-up, the smallest decay after the first average
    std::int64_t start_step = 0;       ///< ≥ 0: up to this update, and the one after it, the average is a copy of the weights
    std::int64_t every = 1;            ///< updates between two averages; ≥ 1
    Buffers buffers = Buffers::Copy;
    std::string view = "ema";
    bool evaluate = true;              ///< adds the view to the plan, so that evaluations go through it
    std::string update = "";           ///< after which of the named updates; empty: after each
};
std::unique_ptr<Callback> make_model_ema(ModelEmaOptions options = {});

}  // namespace torchbus
