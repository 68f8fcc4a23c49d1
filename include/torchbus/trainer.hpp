#pragma once
/// The trainer: a state machine that emits events. Everything else subscribes.
///
///     torchbus::Trainer trainer({.model = net, .loss = cross_entropy, .optimizer = optimizer, .callbacks = {…}});
///     trainer.train(train_dataset, eval_dataset, {.epochs = 3, .batch_size = 32});

#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torchbus/run_config.hpp>
#include <torchbus/run_history.hpp>
#include <torchbus/state_machine.hpp>

namespace torchbus {

/// Metrics by name, as on the blackboard.
using Metrics = std::map<std::string, double, std::less<>>;

/// A run as it would be. Order: by event, stage, phase, subscriber.
struct CompositionReport {
    struct Precedence {
        std::string first, second;
        std::string why;
    };
    std::vector<ConnectedSlot> slots;
    std::vector<Precedence> precedences;
    std::vector<Finding> findings;
    RunPlan plan;
};

/// Thread: the one that started the run, unless stated otherwise.
class Trainer {
public:
    /// Throws: ConfigError where parts are missing or do not fit.
    explicit Trainer(TrainerOptions options);
    ~Trainer();
    Trainer(const Trainer&) = delete;
    Trainer& operator=(const Trainer&) = delete;

    /// Trains to the end. Throws: what failed the run, after RunFailed and RunClosed were heard.
    RunResult train(const AnyDataset& train, TrainOptions options = {});
    RunResult train(const AnyDataset& train, const AnyDataset& eval, TrainOptions options = {});

    /// Evaluates and returns the metrics that were published for this split.
    Metrics evaluate(const AnyDataset& dataset, EvaluateOptions options = {});
    /// Several named splits in one run.
    Metrics evaluate(std::vector<EvalSplit> splits, EvaluateOptions options = {});

    /// The model's outputs in the order of the dataset, of all ranks; of its first batches only where limit_batches says so.
    /// Shapes: [N, …]. Throws: StateError where the run was stopped.
    at::Tensor predict(const AnyDataset& dataset, EvaluateOptions options = {});

    // The same, one transition at a time, for a loop of one's own:
    //     trainer.start_training(dataset, options);
    //     while (trainer.advance()) { … }
    void start_training(const AnyDataset& train, TrainOptions options = {});
    void start_training(const AnyDataset& train, const AnyDataset& eval, TrainOptions options = {});
    /// Makes one transition: one data wait, one micro-batch, one update, one evaluation step, one save.
    /// Returns whether the run goes on. A failure is told by result(). Throws: StateError from another thread.
    bool advance();

    /// What would run, in which order and why, and what stands against it; without running it.
    CompositionReport check(const AnyDataset& train, const AnyDataset& eval = {}, TrainOptions options = {});

    // The composition may change while a run is under way: observers at the next poll point, all else at the next
    // decision point, checked as before a run. A refusal is logged, and thrown by the future as a ConfigError.
    // `requester` says who asked, for the event that tells of it. Thread: any, but between runs that of the trainer.
    std::future<void> attach(ComposedCallback callback, std::string requester);
    std::future<void> detach(std::string id, std::string requester);
    /// A number or an interval of a callback or of the optimizer: ("gradient_clipping", "max_norm", 0.5, "dashboard"),
    /// ("step_evaluation", "every", "500step", …), ("optimizer", "learning_rate", 1e-4, …); an update with a name has
    /// "optimizer.NAME". Of several parameter groups the first gets the value, and the others keep their ratio to it.
    std::future<void> change_option(std::string id, std::string option, nlohmann::json value, std::string requester);

    State state() const;
    /// How this run's processes agree: one of its callbacks brings that, else there is one process.
    Consensus& consensus() const;
    const Position& position() const;
    /// How the last run ended.
    const RunResult& result() const;
    const RunHistory& history() const;
    const Blackboard& blackboard() const;
    std::vector<AccountingRow> accounting() const;
    /// The model's parameters by name, shape and count, as a table.
    std::string summary() const;

    /// Attaches an observer beside the composition. Thread: any.
    Subscriber subscribe(std::string id, SubscriberOptions options = {});
    /// Asks for a decision: of the run under way, or of the next one. Thread: any.
    void ask(Decision decision, std::string requester, std::string reason);

private:
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

}  // namespace torchbus
