#pragma once
/// What a trainer is made of, and how its runs begin and end.

#include <nlohmann/json.hpp>

#include <torchbus/trainer.hpp>

#include "attached_composition.hpp"
#include "resume.hpp"
#include "run.hpp"
#include "trainer_run_state.hpp"

namespace torchbus {

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
    nlohmann::json optimizer_configuration;  ///< as it was given
    nlohmann::json run_file_configuration = nlohmann::json::object();  ///< of model, data and loss
    nlohmann::json data_configuration;       ///< of the training run: what its batches are made of
    TrainerRunState run_state;
    AttachedComposition composition;
    Subscriber keeper;  ///< keeps the history: last in order
    Connections keeper_connections;

    explicit Parts(TrainerOptions options);
    const Run& own_run() const;
    /// What two runs must have in common for one to go on from the other, and on what it ran.
    nlohmann::json configuration_of_run() const;
    bool run_under_way() const { return run && run->state() != State::Closed; }
    /// Names the subscribers that took more time than they were given.
    void name_slow_subscribers() const;
    Outlook outlook(const RunPlan& plan) { return {plan, bus.moment().length, model, updates}; }
    /// Refuses a run that would fail later, and tells of what deserves a warning.
    void check_before_run(const RunPlan& plan);
    std::vector<Finding> require_nothing_against(const RunPlan& plan);
    /// Where nobody changes it on its way, the first batch is tried.
    std::vector<Finding> findings_with_a_batch(const RunPlan& plan);
    void require_trainable() const;
    void require_idle() const;
    void begin(RunPlan plan, std::vector<std::unique_ptr<Loader>> loaders, Trigger kind, std::optional<ResumePoint> point = {}, std::shared_ptr<const Resume> resume = {});
    /// What the run under way may be rolled back to.
    SavedRun read_state(const std::vector<std::string>& folders);
    bool advance();
    RunResult finish();
    static LoaderOptions loader_options(const EvaluateOptions& options);
    void plan_eval(RunPlan& plan, std::vector<std::unique_ptr<Loader>>& loaders, const EvalSplit& split, LoaderOptions options, Sharding sharding);
    /// This rank's part of a dataset.
    std::unique_ptr<Loader> loader_of(const AnyDataset& dataset, LoaderOptions options, Sharding sharding);
    void start_training(const AnyDataset& train, const AnyDataset& eval, TrainOptions options);
    /// For a run that goes on with the next epoch where the last one ended. Callbacks are to keep their state.
    ResumePoint end_of_last_run();
};

}  // namespace torchbus
