#include <torchbus/callbacks/step_evaluation.hpp>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class StepEvaluation final : public Callback {
public:
    explicit StepEvaluation(StepEvaluationOptions options) : options_(options) {}
    std::string kind() const override { return "step_evaluation"; }
    Declaration declare() const override { return {.listens = {"train_step_end"}, .asks = {Decision::EvaluateNow}}; }
    void attach(Attachment& run) override {
        run_ = &run;
        connect();
    }
    void detach() override {
        connection_.disconnect();
        run_ = nullptr;
    }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        const auto before = change_interval(options_.every, "every", kind(), option, value);
        connect();
        return before;
    }

private:
    void connect() {
        connection_ = run_->bus.observe<TrainStepEnd>(Stage::Report, [this](const TrainStepEnd&) {
            // Clocks differ between ranks: rank 0 asks, and all take the decision.
            if (options_.every.unit == Interval::Unit::Second && run_->consensus.rank() != 0) return;
            if (!epoch_ends(run_->moment)) run_->asker.ask(Decision::EvaluateNow, fmt::format("an evaluation is due every {}", to_string(options_.every)));
        }, every(options_.every));
    }
    static bool epoch_ends(const Moment& moment) {
        const auto& [epochs, batches_per_epoch, steps] = moment.length;
        return (batches_per_epoch && moment.position.in_epoch.micro_batch >= *batches_per_epoch) || (steps && moment.position.step >= *steps);
    }

    StepEvaluationOptions options_;
    Attachment* run_ = nullptr;
    Connection connection_;
};

}  // namespace

std::unique_ptr<Callback> make_step_evaluation(StepEvaluationOptions options) {
    if (!(options.every.amount > 0))
        throw ConfigError(fmt::format("step_evaluation: every: {} is not positive; give an interval, e.g. \"1000step\"", to_string(options.every)));
    return std::make_unique<StepEvaluation>(options);
}

std::unique_ptr<Callback> step_evaluation_from_json(OptionReader& reader) {
    StepEvaluationOptions options;
    reader.interval("every", options.every, "between evaluations within an epoch, e.g. 1000step or 10min; > 0").changeable();
    return make_step_evaluation(options);
}

}  // namespace torchbus
