// A small run with everything on that has a state, which test/scripts/resume_test.py stops and takes up again: shuffle,
// dropout, batch norm, AdamW, schedule, loss scaling with a skipped update, accumulation with a short last window, clipping,
// mixup, EMA, SWA, early stopping, plateau, evaluations within epochs.
// Writes FOLDER/events.jsonl: every event with its numbers; FOLDER/checkpoints: the newest training state.
#include <csignal>
#include <cstdio>
#include <fstream>
#include <thread>

#include <CLI/CLI.hpp>
#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

using namespace torchbus;
namespace nn = torch::nn;

namespace {

std::shared_ptr<TensorDataset> samples(std::int64_t count, std::uint64_t seed) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    const at::Tensor inputs = torch::randn({count, 6}, generator);
    return std::make_shared<TensorDataset>(inputs, inputs.mm(torch::randn({6, 3}, generator)).argmax(1));
}

/// The same, but that the data comes so late that the run waits for it.
class SlowData final : public Dataset {
public:
    explicit SlowData(std::shared_ptr<TensorDataset> data) : data_(std::move(data)) {}
    std::int64_t size() const override { return data_->size(); }
    Batch gather(std::span<const std::int64_t> indices, SampleSeed seed) const override {
        std::this_thread::sleep_for(std::chrono::milliseconds(250));
        return data_->gather(indices, seed);
    }
    bool prefers_threads() const override { return true; }

private:
    std::shared_ptr<TensorDataset> data_;
};

/// Records what happens, and stops the run or raises SIGTERM where it is told to.
class Onlooker final : public Callback {
public:
    Onlooker(std::int64_t stop_after, std::string raise_at, std::int64_t raise_count) : stop_after_(stop_after), raise_at_(std::move(raise_at)), raise_count_(raise_count) {}
    std::string kind() const override { return "onlooker"; }
    Declaration declare() const override { return {.listens = {"*", "backward_start"}, .writes = {"root"}, .after = {"mixed_precision"}}; }
    void attach(Attachment& run) override {
        // A loss that overflows once: its update is skipped, and the loss scale falls.
        connections_ += run.bus.intercept<BackwardStart>([](BackwardStart& event) {
            if (event.position.attempts == 6 && event.micro_batch.index == 0) event.root = event.root * std::numeric_limits<float>::infinity();
        });
        connections_ += run.bus.observe_all(Stage::Persist, [this, &run](const AnyEvent& event) {
            nlohmann::json data = nlohmann::json::object();
            if (event.has_json()) event.write_json(data);
            lines.push_back(nlohmann::json{{"event", event.name()}, {"data", std::move(data)}}.dump());
            if (event.name() == "eval_step_end") torch::rand({1});  // as a model that samples does
            if (event.name() == "training_run_start") std::puts("begun"), std::fflush(stdout);
            if (event.name() == "checkpoint_saved") std::puts(lines.back().c_str()), std::fflush(stdout);
            if (event.name() == "run_closed") std::printf("closed at %.6f\n", std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count()), std::fflush(stdout);
            if (event.name() == raise_at_ && ++seen_ == raise_count_) std::raise(SIGTERM);
            if (event.name() != "train_step_end" || run.moment.position.attempts != stop_after_) return;
            run.asker.ask(Decision::SaveNow, "to be taken up again");
            run.asker.ask(Decision::StopRun, "to be taken up again");
        });
    }
    void detach() override { connections_.clear(); }
    std::vector<std::string> lines;

private:
    std::int64_t stop_after_;
    std::string raise_at_;
    std::int64_t raise_count_, seen_ = 0;
    Connections connections_;
};

}  // namespace

/// Prints the newest whole state of each folder, or that there is none. Returns 1 where anything newer is not whole.
int verify(const std::vector<std::string>& folders) {
    int status = 0;
    for (const std::string& folder : folders) {
        const FoundState found = newest_whole_training_state({std::filesystem::path(folder) / "checkpoints"});
        std::printf("%s: %s\n", folder.c_str(), found.state ? found.state->path.filename().c_str() : "none");
        for (const std::string& passed : found.passed_over) std::printf("%s\n", passed.c_str()), status = 1;
    }
    return status;
}

int main(int argc, char** argv) {
    CLI::App app{"a small run that is stopped and taken up again"};
    std::string folder, raise_at;
    std::int64_t stop_after = 0, raise_count = 0, epochs = 3, seed = 5, save_every = 0, patience = 20;
    bool resume = false, slow_data = false;
    std::vector<std::string> folders;
    app.add_option("FOLDER", folder);
    app.add_option("--verify", folders, "look at what these folders' runs have saved, and train nothing");
    app.add_option("--stop-after", stop_after, "attempts after which the run saves and stops");
    app.add_option("--raise-at", raise_at, "the event at which SIGTERM is raised");
    app.add_option("--raise-count", raise_count, "which one of them");
    app.add_option("--epochs", epochs);
    app.add_option("--patience", patience, "of early stopping");
    app.add_option("--seed", seed, "of weights that a resumed run replaces");
    app.add_flag("--resume", resume, "from the newest state, where there is one");
    app.add_flag("--slow-data", slow_data, "the training data comes a batch every 250 ms");
    app.add_option("--save-every", save_every, "updates between saves, beside those after epochs");
    CLI11_PARSE(app, argc, argv);
    if (!folders.empty()) return verify(folders);
    catch_signals_until_exit();  // one that comes when the run is over is not to keep the events from being written
    torch::set_num_threads(1);
    torch::manual_seed(static_cast<std::uint64_t>(seed));
    nn::Sequential model(nn::Linear(6, 8), nn::BatchNorm1d(8), nn::ReLU(), nn::Dropout(0.3), nn::Linear(8, 3));
    const std::filesystem::path checkpoints = std::filesystem::path(folder) / "checkpoints";
    const auto onlooker = std::make_shared<Onlooker>(stop_after, raise_at, raise_count);
    MixedPrecisionOptions precision;
    precision.scale_loss = true;
    precision.growth_interval = 5;
    Trainer trainer({.model = model, .loss = [](const at::Tensor& output, const at::Tensor& targets) { return nn::functional::cross_entropy(output, targets); },
                     .optimizer = make_adamw(model->parameters(), {.learning_rate = 0.05, .weight_decay = 0.01}),
                     .callbacks = {make_mixed_precision(precision), make_gradient_accumulation({2}), make_mixup({.alpha = 0.4}), make_metrics({.accuracy = true}),
                                   make_classification_metrics({.metrics = {"precision", "recall"}}), make_gradient_clipping({.max_norm = 0.5}),
                                   make_learning_rate_schedule({make_cosine_schedule({.warmup = "0.1run"})}),
                                   make_reduce_on_plateau({.monitor = "eval.loss", .patience = 0}), make_model_ema({.decay = 0.8}),
                                   make_stochastic_weight_averaging({.start = "0.3run", .every = "3step", .batches = 3}),
                                   make_early_stopping({.monitor = "eval.loss", .patience = patience, .restore_best = true}), make_step_evaluation({"4step"}),
                                   make_nan_policy({.usual = NanPolicyOptions::Usual::Median}), make_gradient_statistics({.every = "4step"}), make_learning_rate_monitor(),
                                   make_save_best({.monitor = "eval.ema.loss", .folder = checkpoints, .at_steps = true}),
                                   make_save_training_state({.folder = checkpoints, .every = {static_cast<double>(save_every), Interval::Unit::Step}, .keep = 1}), ComposedCallback(onlooker)},
                     .seed = 5});
    TrainOptions options{.epochs = epochs, .batch_size = 2};
    if (resume) options.resume = ResumeOptions{checkpoints, true};
    const AnyDataset data = slow_data ? AnyDataset(std::make_shared<SlowData>(samples(22, 1))) : AnyDataset(samples(22, 1));
    options.workers = slow_data ? 1 : 0;
    options.prefetch = 1;
    const RunResult result = trainer.train(data, samples(20, 2), options);
    std::ofstream events(std::filesystem::path(folder) / "events.jsonl");
    for (const std::string& line : onlooker->lines) events << line << '\n';
    save_safetensors(std::filesystem::path(folder) / "final.safetensors", weights_of(Model(model)));
    return events.flush() ? result.exit_code : 1;
}
