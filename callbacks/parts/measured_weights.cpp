#include "measured_weights.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/error.hpp>
#include <torchbus/events.hpp>

namespace torchbus {

SavedState cloned(SavedState state) {
    for (auto& [name, tensor] : state.tensors) tensor = tensor.detach().clone();
    return state;
}

void MeasuredWeights::attach(Attachment& run) {
    run_ = &run;
    connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart& event) {
        view_ = "training";
        shown_ = {};
        for (const std::string& view : event.plan.views)
            if (monitor_.find("." + view + ".") != std::string::npos) view_ = view;
    });
    connections_ += run.bus.observe<EvalEpochEnd>(Stage::Observe, [this](const EvalEpochEnd& event) {
        if (view_ != "training" && event.scope.view == view_) shown_ = cloned(run_->run_state.save("model"));
    });
}

void MeasuredWeights::detach() {
    connections_.clear();
    shown_ = {};
    run_ = nullptr;
}

SavedState MeasuredWeights::get() const {
    if (view_ == "training") return run_->run_state.save("model");
    if (shown_.tensors.empty()) throw StateError(fmt::format("the weights view '{}', which {} is measured with, has not been evaluated yet", view_, monitor_));
    return shown_;
}

}  // namespace torchbus
