#include "trainer_parts.hpp"

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <random>

#include <fmt/format.h>
#include <torch/optim/lbfgs.h>
#include <torch/utils.h>

#include <torchbus/callbacks/limit_batches.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/group_options.hpp>

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

/// Of each update and group: 0.learning_rate, discriminator.1.weight_decay.
nlohmann::json options_of(const std::vector<Update>& updates) {
    nlohmann::json options = nlohmann::json::object();
    for (const Update& update : updates)
        for (std::size_t group = 0; group < update.optimizer->param_groups().size(); ++group)
            for (const auto& [name, value] : group_options(update.optimizer->param_groups()[group]))
                options[fmt::format("{}{}{}.{}", update.name, update.name.empty() ? "" : ".", group, name)] = value;
    return options;
}

/// The time it begins, and four random digits; or what the environment says.
std::string new_run_id() {
    if (const char* given = std::getenv("TORCHBUS_RUN_ID"); given && *given) return given;
    std::random_device random;  // not a generator of the run's
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    char text[32];
    std::strftime(text, sizeof text, "%Y%m%dT%H%M%S", ::gmtime_r(&now, &parts));
    return fmt::format("{}-{:04x}", text, random() & 0xffffU);
}

std::shared_ptr<Consensus> consensus_of(const TrainerOptions& options) {
    std::shared_ptr<Consensus> found = options.consensus;
    std::string from = "TrainerOptions::consensus";
    for (const ComposedCallback& composed : options.callbacks) {
        auto brought = composed.callback ? composed.callback->consensus() : nullptr;
        if (!brought) continue;
        if (found) throw ConfigError(fmt::format("both {} and '{}' say how ranks agree; leave one out", from, composed.id));
        found = std::move(brought);
        from = "'" + composed.id + "'";
    }
    return found ? found : std::make_shared<Consensus>();
}

}  // namespace

Trainer::Parts::Parts(TrainerOptions options)
    : model(std::move(options.model)), loss(std::move(options.loss)), updates(updates_of(options)), seed(options.seed),
      handle_signals(options.handle_signals),
      consensus(consensus_of(options)),
      run_state({model, updates, bus, [this] { return composition.callbacks(); },
                 [this]() -> const nlohmann::json& { return composition.changed_options(); }, [this](const nlohmann::json& saved) { composition.restore_options(saved); }, blackboard, history, 
                 [this] { return own_run().resume_point(); }, [this] { return run && run->is_resumable(); }, [this] { return run ? run->generators_before_evaluation() : nullptr; }, [this] { return configuration_of_run(); }}),
      composition({bus, blackboard, *consensus, requests, run_state, updates,
                   [this](const std::string& id) { if (run_under_way()) run->introduce(id, [this](const RunPlan& plan) { require_nothing_against(plan); }); },
                   [this](const std::vector<std::string>& views) { if (run) run->forget_views(views); }}) {
    require(static_cast<bool>(model), "the trainer has no model; give TrainerOptions::model");
    optimizer_configuration = options_of(updates);
    if (options.configuration.is_object()) run_file_configuration = std::move(options.configuration);
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

const Run& Trainer::Parts::own_run() const {
    if (!run) throw StateError("there is no run that could be saved");
    return *run;
}

nlohmann::json Trainer::Parts::configuration_of_run() const {
    nlohmann::json configuration = own_run().configuration();
    configuration.update(data_configuration);
    configuration["optimizer"] = optimizer_configuration;
    configuration["world_size"] = consensus->world_size();
    configuration["callbacks"] = composition.configuration();
    configuration.update(run_file_configuration);
    return configuration;
}

void Trainer::Parts::name_slow_subscribers() const {
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

void Trainer::Parts::check_before_run(const RunPlan& plan) {
    for (const Finding& finding : require_nothing_against(plan))
        if (consensus->rank() == 0) warn(finding.text);  // all ranks have found the same
}

std::vector<Finding> Trainer::Parts::require_nothing_against(const RunPlan& plan) {
    std::vector<Finding> findings = composition.findings(outlook(plan));
    if (const std::string errors = errors_of(findings); !errors.empty()) throw ConfigError(errors);
    return findings;
}

std::vector<Finding> Trainer::Parts::findings_with_a_batch(const RunPlan& plan) {
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

void Trainer::Parts::require_trainable() const {
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

void Trainer::Parts::require_idle() const {
    if (run_under_way())
        throw StateError(fmt::format("a run is under way (in {}); let it end, or ask it to stop, before the next one", name_of(run->state())));
}

void Trainer::Parts::begin(RunPlan plan, std::vector<std::unique_ptr<Loader>> loaders, Trigger kind, std::optional<ResumePoint> point, std::shared_ptr<const Resume> resume) {
    require_idle();
    run.reset();
    if (seed && kind == Trigger::StartTraining && !point) torch::manual_seed(*seed);
    RunParts parts{.bus = bus, .model = model, .loss = loss, .updates = updates, .requests = requests, .consensus = *consensus,
                   .handle_signals = handle_signals, .run_id = consensus->broadcast(new_run_id()), .plan = std::move(plan), .loaders = std::move(loaders),
                   .make_changes = [this](bool in_evaluation) { composition.make_changes(in_evaluation); },
                   .change_option = [this](const OptionChange& change) { composition.change_now(change); }};
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

SavedRun Trainer::Parts::read_state(const std::vector<std::string>& folders) {
    const auto saved = Resume::newest_of(folders, *consensus);
    return {saved->point(data_configuration.at("batch_size").get<std::int64_t>() * consensus->world_size()), saved->path().string(), [this, saved] {
                blackboard.clear();  // of what is given up
                saved->put_back(run_state);
            }};
}

bool Trainer::Parts::advance() {
    if (run->advance()) return true;
    result = run->result();
    composition.end_run();
    return false;
}

RunResult Trainer::Parts::finish() {
    while (advance()) {}
    if (const auto failure = run->failure()) std::rethrow_exception(failure);
    return result;
}

LoaderOptions Trainer::Parts::loader_options(const EvaluateOptions& options) {
    return {options.batch_size, {}, {}, false, 0, options.workers, options.prefetch, options.transform};
}

std::unique_ptr<Loader> Trainer::Parts::loader_of(const AnyDataset& dataset, LoaderOptions options, Sharding sharding) {
    if (sharding != Sharding::Dispatch) {
        options.shard = consensus->shard();
        options.shard.even = sharding == Sharding::Even;
        return make_loader(dataset, std::move(options));
    }
    options.batch_size *= consensus->world_size();
    return consensus->dispatch(consensus->rank() == 0 ? make_loader(dataset, std::move(options)) : nullptr);
}

void Trainer::Parts::plan_eval(RunPlan& plan, std::vector<std::unique_ptr<Loader>>& loaders, const EvalSplit& split, LoaderOptions options, Sharding sharding) {
    if (std::ranges::any_of(plan.splits, [&](const SplitPlan& known) { return known.name == split.name; }))
        throw ConfigError(fmt::format("two splits are called '{}'; give one of them another name", split.name));
    plan.splits.push_back({split.name, Mode::Eval});
    options.seed = seed.value_or(0);
    loaders.push_back(loader_of(split.dataset, std::move(options), sharding));
}

void Trainer::Parts::start_training(const AnyDataset& train, const AnyDataset& eval, TrainOptions options) {
    require_idle();
    require_trainable();
    if (options.epochs < 1) throw ConfigError(fmt::format("epochs: {} is too few; give at least 1", options.epochs));
    require(!options.resume || options.reset_run_history, "give either `resume`, or reset_run_history = false, not both");
    const std::shared_ptr<const Resume> resume = options.resume ? Resume::find(*options.resume, *consensus) : nullptr;
    std::optional<ResumePoint> point = resume ? std::optional(resume->point(options.batch_size * consensus->world_size())) : std::nullopt;
    if (!options.reset_run_history) point = end_of_last_run();
    RunPlan plan;
    plan.epochs = options.epochs + (options.reset_run_history ? 0 : bus.moment().position.epoch);
    plan.max_steps = options.max_steps;
    plan.seed = seed.value_or(0);
    plan.splits.push_back({"train", Mode::Train});
    auto sampler = options.sampler;
    if (!sampler && train.with_length()) sampler = options.shuffle ? make_random_sampler() : make_sequential_sampler();  // a stream has its own
    std::vector<std::unique_ptr<Loader>> loaders;
    loaders.push_back(loader_of(train, LoaderOptions{options.batch_size, {}, std::move(sampler), options.drop_last, plan.seed, options.workers, options.prefetch, options.transform},
                                options.sharding));
    const LoaderOptions for_eval{options.eval_batch_size.value_or(options.batch_size), {}, {}, false, 0, options.workers, options.prefetch, options.eval_transform};
    const Sharding of_eval = options.sharding == Sharding::Dispatch ? Sharding::Dispatch : Sharding::Uneven;
    // Where rank 0 reads for all, the others may have been given no dataset.
    const bool evaluates = options.sharding == Sharding::Dispatch ? !consensus->broadcast(eval ? "it does" : "").empty() : static_cast<bool>(eval);
    if (evaluates) plan_eval(plan, loaders, {"eval", eval}, for_eval, of_eval);
    for (const EvalSplit& split : options.eval_splits) plan_eval(plan, loaders, split, for_eval, of_eval);
    data_configuration = {{"batch_size", options.batch_size}, {"drop_last", options.drop_last}, {"order", options.sampler ? "sampler" : options.shuffle ? "shuffled" : "as it is"},
                          {"seed", plan.seed}, {"batches", loaders.front()->batches() ? nlohmann::json(*loaders.front()->batches()) : nlohmann::json()}};
    if (options.reset_run_history) {
        history.clear();
        blackboard.clear();
    }
    begin(std::move(plan), std::move(loaders), Trigger::StartTraining, std::move(point), resume);
}

ResumePoint Trainer::Parts::end_of_last_run() {
    for (const auto& [id, callback] : composition.callbacks()) callback->load_state(callback->state());
    ResumePoint point{bus.moment().position, {}, {}};
    point.position.in_epoch = {};
    return point;
}

}  // namespace torchbus
