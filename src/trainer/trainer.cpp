#include <torchbus/trainer.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/utils.h>

#include <torchbus/error.hpp>

#include "gathered_outputs.hpp"
#include "trainer_parts.hpp"

namespace torchbus {

Trainer::Trainer(TrainerOptions options) : parts_(std::make_unique<Parts>(std::move(options))) {}
Trainer::~Trainer() = default;

RunResult Trainer::train(const AnyDataset& train, TrainOptions options) { return this->train(train, nullptr, std::move(options)); }
RunResult Trainer::train(const AnyDataset& train, const AnyDataset& eval, TrainOptions options) {
    parts_->start_training(train, eval, std::move(options));
    return parts_->finish();
}

void Trainer::start_training(const AnyDataset& train, TrainOptions options) { parts_->start_training(train, nullptr, std::move(options)); }
void Trainer::start_training(const AnyDataset& train, const AnyDataset& eval, TrainOptions options) {
    parts_->start_training(train, eval, std::move(options));
}

CompositionReport Trainer::check(const AnyDataset& train, const AnyDataset& eval, TrainOptions options) {
    parts_->start_training(train, eval, std::move(options));
    const RunPlan& plan = parts_->run->prepare();
    CompositionReport report{parts_->bus.slots(), {}, parts_->findings_with_a_batch(plan), plan};
    const auto& ids = parts_->composition.composed_ids();
    for (const Precedence& precedence : parts_->composition.precedences())
        report.precedences.push_back({ids[precedence.first], ids[precedence.second], precedence.why});
    parts_->run.reset();
    parts_->composition.end_run();
    return report;
}

std::future<void> Trainer::attach(ComposedCallback callback, std::string requester) {
    return parts_->composition.attach(std::move(callback), std::move(requester));
}
std::future<void> Trainer::detach(std::string id, std::string requester) {
    return parts_->composition.detach(std::move(id), std::move(requester));
}
std::future<void> Trainer::change_option(std::string id, std::string option, nlohmann::json value, std::string requester) {
    return parts_->composition.change_option(std::move(id), std::move(option), std::move(value), std::move(requester));
}

bool Trainer::advance() {
    if (!parts_->run) throw StateError("advance() without a run; call start_training() first");
    return parts_->advance();
}

Metrics Trainer::evaluate(const AnyDataset& dataset, EvaluateOptions options) {
    return evaluate({EvalSplit{options.split, dataset}}, options);
}

Metrics Trainer::evaluate(std::vector<EvalSplit> splits, EvaluateOptions options) {
    RunPlan plan;
    std::vector<std::unique_ptr<Loader>> loaders;
    if (splits.empty()) throw ConfigError("there is nothing to evaluate; give at least one split");
    for (const EvalSplit& split : splits)
        parts_->plan_eval(plan, loaders, split, Parts::loader_options(options), options.dispatch ? Sharding::Dispatch : Sharding::Uneven);
    parts_->require_idle();
    for (const std::string& name : parts_->blackboard.names())
        if (name.starts_with("eval.")) parts_->blackboard.withdraw(name);  // those of another split or another time
    parts_->begin(std::move(plan), std::move(loaders), Trigger::StartEvaluation);
    parts_->finish();
    Metrics metrics;
    for (const std::string& name : parts_->blackboard.names())
        if (name.starts_with("eval.")) metrics[name] = *parts_->blackboard.number(name);
    return metrics;
}

at::Tensor Trainer::predict(const AnyDataset& dataset, EvaluateOptions options) {
    RunPlan plan;
    plan.splits.push_back({"predict", Mode::Predict});
    std::vector<std::unique_ptr<Loader>> loaders;
    loaders.push_back(parts_->loader_of(dataset, Parts::loader_options(options), options.dispatch ? Sharding::Dispatch : Sharding::Uneven));
    std::vector<at::Tensor> outputs;
    Subscriber collector = parts_->bus.subscribe("prediction_outputs");
    const Connection connection = collector.observe<PredictStepEnd>(Stage::Observe, [&](const PredictStepEnd& event) {
        outputs.push_back(event.output.tensor.narrow(0, 0, event.batch.valid).cpu());
    });
    parts_->begin(std::move(plan), std::move(loaders), Trigger::StartPrediction);
    const RunResult result = parts_->finish();
    if (result.outcome != Outcome::Finished)
        throw StateError(fmt::format("the prediction was stopped by {} ({}); its outputs are not complete", result.requester, result.reason));
    return gathered_outputs(outputs, *parts_->consensus);
}

State Trainer::state() const { return parts_->run ? parts_->run->state() : State::Ready; }
Consensus& Trainer::consensus() const { return *parts_->consensus; }
const Position& Trainer::position() const { return parts_->bus.moment().position; }
const RunResult& Trainer::result() const { return parts_->result; }
const RunHistory& Trainer::history() const { return parts_->history; }
const Blackboard& Trainer::blackboard() const { return parts_->blackboard; }
std::vector<AccountingRow> Trainer::accounting() const { return parts_->bus.accounting(); }

Subscriber Trainer::subscribe(std::string id, SubscriberOptions options) { return parts_->bus.subscribe(std::move(id), options); }
void Trainer::ask(Decision decision, std::string requester, std::string reason) {
    parts_->requests.ask(decision, {std::move(requester), std::move(reason)});
}

std::string Trainer::summary() const {
    std::int64_t all = 0, trainable = 0;
    std::string table = fmt::format("{:<40} {:<20} {:>12}\n", "parameter", "shape", "count");
    for (const auto& [name, tensor] : parts_->model->named_parameters()) {
        all += tensor.numel();
        if (tensor.requires_grad()) trainable += tensor.numel();
        table += fmt::format("{:<40} {:<20} {:>12}\n", name, fmt::format("[{}]", fmt::join(tensor.sizes(), ", ")), tensor.numel());
    }
    return table + fmt::format("{} parameters, {} trainable\n", all, trainable);
}

}  // namespace torchbus
