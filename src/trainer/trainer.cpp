#include <torchbus/trainer.hpp>

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/optim/lbfgs.h>
#include <torch/utils.h>

#include <torchbus/callbacks/limit_batches.hpp>
#include <torchbus/error.hpp>

#include "attached_composition.hpp"
#include "resume.hpp"
#include "run.hpp"
#include "trainer_run_state.hpp"

namespace torchbus {
namespace {

void require(bool holds, const char* message) {
    if (!holds) throw ConfigError(message);
}

std::vector<Update> updates_of(TrainerOptions& options) {
    require(!options.optimizer || options.updates.empty(), "give either `optimizer` or `updates`, not both");
    if (options.optimizer) return {Update{"", options.optimizer, {}, 1}};
    for (const Update& update : options.updates) {
        require(update.optimizer != nullptr, "an update has no optimizer; give it one");
        require(update.every >= 1, "an update's `every` must be at least 1");
    }
    const bool one_always_due = options.updates.empty() || std::ranges::any_of(options.updates, [](const Update& u) { return u.every == 1; });
    require(one_always_due, "no update is due on every window; give one of them `every` 1");
    return std::move(options.updates);
}

}  // namespace

struct Trainer::Parts {
    Model model;
    Loss loss;
    std::vector<Update> updates;
    std::optional<std::uint64_t> seed;
    bool handle_signals;
    std::shared_ptr<Consensus> consensus;
    Bus bus;
    Blackboard blackboard;
    Requests requests;
    RunHistory history;
    RunResult result;
    std::unique_ptr<Run> run;
    nlohmann::json data_configuration;  ///< of the training run: what its batches are made of
    TrainerRunState run_state;
    AttachedComposition composition;
    Subscriber keeper;  ///< keeps the history: last in order
    Connections keeper_connections;

    explicit Parts(TrainerOptions options)
        : model(std::move(options.model)), loss(std::move(options.loss)), updates(updates_of(options)), seed(options.seed),
          handle_signals(options.handle_signals),
          consensus(options.consensus ? options.consensus : std::make_shared<Consensus>()),
          run_state({model, updates, bus, [this] { return composition.callbacks(); },
                     [this]() -> const nlohmann::json& { return composition.changed_options(); }, [this](const nlohmann::json& changed) { composition.restore_options(changed); }, blackboard, history, 
                     [this] { return own_run().resume_point(); }, [this] { return run && run->is_resumable(); }, [this] { return configuration_of_run(); }}),
          composition({bus, blackboard, *consensus, requests, run_state, updates,
                       [this](const std::string& id) { if (run_under_way()) run->introduce(id, [this](const RunPlan& plan) { require_nothing_against(plan); }); },
                       [this](const std::vector<std::string>& views) { if (run) run->forget_views(views); }}) {
        require(static_cast<bool>(model), "the trainer has no model; give TrainerOptions::model");
        if (auto limit = limit_batches_from_environment()) options.callbacks.emplace_back("TORCHBUS_LIMIT_BATCHES", std::move(limit));
        composition.attach_all(std::move(options.callbacks));
        keeper = bus.subscribe("run_history");
        keeper_connections += keeper.observe<TrainingRunEpochEnd>(Stage::Report, [this](const TrainingRunEpochEnd& event) {
            EpochRecord record{event.position.epoch, event.position.step, {}};
            for (const std::string& name : blackboard.names()) record.metrics[name] = *blackboard.number(name);
            history.add(std::move(record));
        });
        keeper_connections += keeper.observe<RunClosed>(Stage::Report, [this](const RunClosed&) { name_slow_subscribers(); });
    }

    const Run& own_run() const {
        if (!run) throw StateError("there is no run that could be saved");
        return *run;
    }
    /// What two runs must have in common for one to go on from the other, and on what it ran.
    nlohmann::json configuration_of_run() const {
        nlohmann::json configuration = own_run().configuration();
        configuration.update(data_configuration);
        configuration["world_size"] = consensus->world_size();
        configuration["callbacks"] = composition.configuration();
        return configuration;
    }
    bool run_under_way() const { return run && run->state() != State::Closed; }

    /// Names the subscribers that took more time than they were given.
    void name_slow_subscribers() const {
        const auto rows = bus.accounting();
        for (const auto& [id, budget_us] : composition.budgets()) {
            double seconds = 0;
            std::uint64_t calls = 0;
            for (const AccountingRow& row : rows)
                if (row.subscriber == id) seconds += row.seconds, calls += row.calls;
            const double mean_us = calls ? seconds * 1e6 / static_cast<double>(calls) : 0;
            if (mean_us > budget_us) warn(fmt::format("'{}' took {:.1f} µs a call on average, over its budget of {:.1f} µs", id, mean_us, budget_us));
        }
    }

    Outlook outlook(const RunPlan& plan) { return {plan, bus.moment().length, model, updates}; }

    /// Refuses a run that would fail later, and tells of what deserves a warning.
    void check_before_run(const RunPlan& plan) {
        for (const Finding& finding : require_nothing_against(plan)) warn(finding.text);
    }
    std::vector<Finding> require_nothing_against(const RunPlan& plan) {
        std::vector<Finding> findings = composition.findings(outlook(plan));
        if (const std::string errors = errors_of(findings); !errors.empty()) throw ConfigError(errors);
        return findings;
    }

    /// Where nobody changes it on its way, the first batch is tried.
    std::vector<Finding> findings_with_a_batch(const RunPlan& plan) {
        Outlook run = outlook(plan);
        const bool computed_by_steps = std::ranges::any_of(updates, [](const Update& update) { return static_cast<bool>(update.step); });
        if (computed_by_steps || composition.changes_data()) return composition.findings(run);
        std::optional<TriedBatch> tried;
        std::string refusal;
        try {
            tried = this->run->try_first_batch();
            run.tried = &*tried;
        } catch (const c10::Error& error) {
            refusal = error.what_without_backtrace();
        } catch (const std::exception& error) {
            refusal = error.what();
        }
        std::vector<Finding> findings = composition.findings(run);
        if (!tried) findings.push_back({Finding::Weight::Error, fmt::format("model and loss do not take the data's first batch: {}", refusal)});
        return findings;
    }

    void require_trainable() const {
        require(!updates.empty(), "the trainer has no optimizer; give TrainerOptions::optimizer to train");
        for (const Update& update : updates) {
            if (dynamic_cast<torch::optim::LBFGS*>(update.optimizer.get()))
                throw ConfigError("L-BFGS evaluates the loss several times an update, which the trainer does not do yet; take another optimizer");
            const auto parameters = update.parameters();
            const bool any = std::ranges::any_of(parameters, [](const at::Tensor& p) { return p.requires_grad(); });
            if (!any) throw ConfigError(fmt::format("the model has no trainable parameters in {}; add some, or unfreeze one (requires_grad)",
                                                    update.name.empty() ? "its optimizer" : "update '" + update.name + "'"));
        }
        const bool computed_by_steps = std::ranges::all_of(updates, [](const Update& u) { return static_cast<bool>(u.step); });
        require(loss || computed_by_steps, "the trainer has no loss; give TrainerOptions::loss, or a step function for every update");
    }

    void require_idle() const {
        if (run_under_way())
            throw StateError(fmt::format("a run is under way (in {}); let it end, or ask it to stop, before the next one", name_of(run->state())));
    }

    void begin(RunPlan plan, std::vector<std::unique_ptr<Loader>> loaders, Trigger kind, std::optional<ResumePoint> point = {}, std::shared_ptr<const Resume> resume = {}) {
        require_idle();
        run.reset();
        if (seed && kind == Trigger::StartTraining && !point) torch::manual_seed(*seed);
        RunParts parts{.bus = bus, .model = model, .loss = loss, .updates = updates, .requests = requests, .consensus = *consensus,
                       .handle_signals = handle_signals, .plan = std::move(plan), .loaders = std::move(loaders),
                       .make_changes = [this](bool in_evaluation) { composition.make_changes(in_evaluation); }};
        parts.resume = std::move(point);
        if (resume) {
            parts.restore_before_start = [this, resume] { resume->before_start(run_state); };
            parts.restore_after_start = [this, resume] { resume->after_start(run_state); };
        }
        parts.read_state = [this](const std::vector<std::string>& folders) { return read_state(folders); };
        if (kind == Trigger::StartTraining) parts.check = [this](const RunPlan& of_run) { check_before_run(of_run); };
        run = std::make_unique<Run>(std::move(parts), kind);
        composition.begin_run();
    }

    /// What the run under way may be rolled back to.
    SavedRun read_state(const std::vector<std::string>& folders) {
        const auto saved = Resume::first_whole(folders);
        return {saved->point(data_configuration.at("batch_size")), saved->path().string(), [this, saved] {
                    blackboard.clear();  // of what is given up
                    saved->put_back(run_state);
                }};
    }

    bool advance() {
        if (run->advance()) return true;
        result = run->result();
        composition.end_run();
        return false;
    }

    RunResult finish() {
        while (advance()) {}
        if (const auto failure = run->failure()) std::rethrow_exception(failure);
        return result;
    }

    static LoaderOptions loader_options(const EvaluateOptions& options) {
        return {options.batch_size, {}, false, 0, options.workers, options.prefetch, options.transform};
    }

    void plan_eval(RunPlan& plan, std::vector<std::unique_ptr<Loader>>& loaders, const EvalSplit& split, LoaderOptions options) {
        if (std::ranges::any_of(plan.splits, [&](const SplitPlan& known) { return known.name == split.name; }))
            throw ConfigError(fmt::format("two splits are called '{}'; give one of them another name", split.name));
        plan.splits.push_back({split.name, Mode::Eval});
        options.seed = seed.value_or(0);
        loaders.push_back(make_loader(split.dataset, std::move(options)));
    }

    void start_training(const AnyDataset& train, const AnyDataset& eval, TrainOptions options) {
        require_idle();
        require_trainable();
        if (options.epochs < 1) throw ConfigError(fmt::format("epochs: {} is too few; give at least 1", options.epochs));
        require(!options.resume || options.reset_run_history, "give either `resume`, or reset_run_history = false, not both");
        const std::shared_ptr<const Resume> resume = options.resume ? Resume::find(*options.resume) : nullptr;
        std::optional<ResumePoint> point = resume ? std::optional(resume->point(options.batch_size)) : std::nullopt;
        if (!options.reset_run_history) point = end_of_last_run();
        RunPlan plan;
        plan.epochs = options.epochs + (options.reset_run_history ? 0 : bus.moment().position.epoch);
        plan.max_steps = options.max_steps;
        plan.seed = seed.value_or(0);
        plan.splits.push_back({"train", Mode::Train});
        auto sampler = options.sampler;
        if (!sampler && train.with_length()) sampler = options.shuffle ? make_random_sampler() : make_sequential_sampler();  // a stream has its own
        std::vector<std::unique_ptr<Loader>> loaders;
        loaders.push_back(make_loader(train, LoaderOptions{options.batch_size, std::move(sampler), options.drop_last,
                                      plan.seed, options.workers, options.prefetch, options.transform}));
        const LoaderOptions for_eval{options.eval_batch_size.value_or(options.batch_size), {}, false, 0, options.workers, options.prefetch, options.eval_transform};
        if (eval) plan_eval(plan, loaders, {"eval", eval}, for_eval);
        for (const EvalSplit& split : options.eval_splits) plan_eval(plan, loaders, split, for_eval);
        data_configuration = {{"batch_size", options.batch_size}, {"drop_last", options.drop_last}, {"order", options.sampler ? "sampler" : options.shuffle ? "shuffled" : "as it is"},
                              {"seed", plan.seed}, {"batches", loaders.front()->batches() ? nlohmann::json(*loaders.front()->batches()) : nlohmann::json()}};
        if (options.reset_run_history) {
            history.clear();
            blackboard.clear();
        }
        begin(std::move(plan), std::move(loaders), Trigger::StartTraining, std::move(point), resume);
    }

    /// For a run that goes on with the next epoch where the last one ended. Callbacks are to keep their state.
    ResumePoint end_of_last_run() {
        for (const auto& [id, callback] : composition.callbacks()) callback->load_state(callback->state());
        ResumePoint point{bus.moment().position, {}, {}};
        point.position.in_epoch = {};
        return point;
    }
};

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
    require(!splits.empty(), "there is nothing to evaluate; give at least one split");
    for (const EvalSplit& split : splits)
        parts_->plan_eval(plan, loaders, split, Parts::loader_options(options));
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
    loaders.push_back(make_loader(dataset, Parts::loader_options(options)));
    std::vector<at::Tensor> outputs;
    Subscriber collector = parts_->bus.subscribe("prediction_outputs");
    const Connection connection = collector.observe<PredictStepEnd>(Stage::Observe, [&](const PredictStepEnd& event) {
        outputs.push_back(event.output.tensor.narrow(0, 0, event.batch.valid).cpu());
    });
    parts_->begin(std::move(plan), std::move(loaders), Trigger::StartPrediction);
    const RunResult result = parts_->finish();
    if (result.outcome != Outcome::Finished)
        throw StateError(fmt::format("the prediction was stopped by {} ({}); its outputs are not complete", result.requester, result.reason));
    return torch::cat(outputs);
}

State Trainer::state() const { return parts_->run ? parts_->run->state() : State::Ready; }
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
