#pragma once
/// Publishes numbers that a test has written down, one an evaluation: what watches a metric is tested with them.

#include <memory>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>

namespace torchbus::test {

class ScriptedMetric final : public Callback {
public:
    ScriptedMetric(std::vector<double> values, std::string name) : values_(std::move(values)), name_(std::move(name)) {}
    std::string kind() const override { return "scripted_metric"; }
    Declaration declare() const override { return {.listens = {"training_run_start", "eval_epoch_end"}, .publishes = {{name_, "eval_epoch_end"}}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart&) { next_ = 0; });
        connections_ += run.bus.observe<EvalEpochEnd>(Stage::Observe, [this, &run](const EvalEpochEnd&) {
            if (next_ < values_.size()) run.blackboard.publish(name_, values_[next_++]);
        });
    }
    void detach() override { connections_.clear(); }

private:
    std::vector<double> values_;
    std::string name_;
    std::size_t next_ = 0;
    Connections connections_;
};

/// The last value stays when there are no more.
inline ComposedCallback scripted_metric(std::vector<double> values, std::string name = "eval.score") {
    return ComposedCallback(std::make_shared<ScriptedMetric>(std::move(values), std::move(name)));
}

}  // namespace torchbus::test
