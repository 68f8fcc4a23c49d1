#include <torchbus/callbacks/early_stopping.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/model_ema.hpp>
#include <torchbus/callbacks/save_best.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/checkpoint/disk.hpp>
#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/checkpoint/weights.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include <cerrno>
#include <fstream>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/scripted_metric.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
using Options = SaveBestOptions;

struct SaveBestSetup {
    torch::nn::Sequential model = toy_model();
    std::shared_ptr<Callback> saver;
    std::vector<std::vector<at::Tensor>> after_epoch;  ///< the weights, by epoch
    std::vector<std::string> saved;                    ///< told by CheckpointSaved, with whether the file was there
    Trainer trainer;
    SaveBestSetup(std::vector<double> scores, SaveBestOptions options, std::vector<ComposedCallback> more = {})
        : saver(make_save_best([&] { options.monitor = "eval.score"; return options; }())),
          trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.5}),
                   .callbacks = [&] {
                       more.push_back(scripted_metric(std::move(scores)));
                       more.emplace_back(saver);
                       more.push_back(callback_of("tap", [this](Attachment& run, Connections& connections) { tap(run, connections); }));
                       return std::move(more);
                   }(), .handle_signals = false}) {}
    void tap(Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainEpochEnd>(Stage::Persist, [this](const TrainEpochEnd&) { after_epoch.push_back(copies_of(model->parameters())); });
        connections += run.bus.observe<CheckpointSaved>(Stage::Report, [this](const CheckpointSaved& event) {
            saved.push_back(std::filesystem::path(event.path).filename().string() + (std::filesystem::exists(event.path) ? "" : " is not there"));
        });
    }
    RunResult train(std::int64_t epochs, std::int64_t samples = 8) {
        after_epoch.clear();
        saved.clear();
        return trainer.train(toy_data(samples), toy_data(4), {.epochs = epochs, .batch_size = 4});
    }
};

bool holds(const std::filesystem::path& file, const std::vector<at::Tensor>& weights) {
    Model model(toy_model(99));
    load_weights(file, model);
    std::vector<at::Tensor> loaded;
    for (const auto& [name, tensor] : model->named_parameters()) loaded.push_back(tensor);
    return equal_bits(loaded, weights);
}

/// Asks for something after one step.
ComposedCallback asking(Decision decision, std::int64_t step) {
    return callback_of("asker", [=](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Report, [=, &run](const TrainStepEnd& event) { if (event.position.step == step) run.asker.ask(decision, "a test"); });
    });
}

/// A callback that says of itself that it asks for evaluations.
class EvaluatesAt final : public Callback {
public:
    explicit EvaluatesAt(std::int64_t step) : step_(step) {}
    std::string kind() const override { return "evaluates_at"; }
    Declaration declare() const override { return {.listens = {"train_step_end"}, .asks = {Decision::EvaluateNow}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.observe<TrainStepEnd>(Stage::Report, [this, &run](const TrainStepEnd& event) {
            if (event.position.step == step_) run.asker.ask(Decision::EvaluateNow, "a test");
        });
    }
    void detach() override { connections_.clear(); }

private:
    std::int64_t step_;
    Connections connections_;
};

}  // namespace

TEST_CASE("the best weights lie in best.safetensors, and the folder is made by the first save", "[callbacks][save_best]") {
    const TemporaryFolder folder("save-best");
    SaveBestSetup setup({3, 1, 2}, {.folder = folder / "a/b"});
    CHECK_FALSE(std::filesystem::exists(folder / "a"));
    CHECK(setup.train(3).outcome == Outcome::Finished);
    CHECK(names_in(folder / "a/b") == std::vector<std::string>{"best.safetensors"});
    CHECK(holds(folder / "a/b/best.safetensors", setup.after_epoch[1]));
    CHECK(setup.saved == std::vector<std::string>{"best.safetensors", "best.safetensors"});  // epochs 1 and 2
}

TEST_CASE("the k best are kept under the metric's name, and other files are left alone", "[callbacks][save_best]") {
    const TemporaryFolder folder("save-best");
    std::ofstream(folder / "eval.score_9_step_1.safetensors") << "another's";
    SaveBestSetup setup({0.5, 0.7, 0.4, 0.6}, {.mode = Options::Mode::Max, .keep = 2, .folder = folder.path()});
    setup.train(4);  // two steps an epoch
    CHECK(names_in(folder.path()) == std::vector<std::string>{"eval.score_0.6_step_8.safetensors", "eval.score_0.7_step_4.safetensors", "eval.score_9_step_1.safetensors"});
    CHECK(holds(folder / "eval.score_0.7_step_4.safetensors", setup.after_epoch[1]));
    CHECK(holds(folder / "eval.score_0.6_step_8.safetensors", setup.after_epoch[3]));
    CHECK(setup.saved.size() == 3);  // 0.4 was not among the best two
}

TEST_CASE("of equal numbers the earlier stays, or the later if that is wanted", "[callbacks][save_best]") {
    const TemporaryFolder folder("save-best");
    for (const bool later : {false, true}) {
        SaveBestSetup setup({1, 1}, {.later_wins_ties = later, .folder = folder.path()});
        setup.train(2);
        CHECK(holds(folder / "best.safetensors", setup.after_epoch[later ? 1 : 0]));
        CHECK(setup.saved.size() == (later ? 2 : 1));
    }
}

TEST_CASE("a NaN is never among the best, also as the first number", "[callbacks][save_best]") {
    const TemporaryFolder folder("save-best");
    for (const auto mode : {Options::Mode::Min, Options::Mode::Max}) {
        SaveBestSetup setup({kNan, 2, kNan}, {.mode = mode, .keep = 3, .folder = folder / (mode == Options::Mode::Min ? "min" : "max")});
        setup.train(3);
        CHECK(setup.saved == std::vector<std::string>{"eval.score_2_step_4.safetensors"});
    }
    SaveBestSetup none({kNan, std::numeric_limits<double>::infinity()}, {.mode = Options::Mode::Max, .folder = folder / "none", .load_best_at_end = true});
    CHECK(none.train(2).outcome == Outcome::Finished);
    CHECK_FALSE(std::filesystem::exists(folder / "none"));
    CHECK(equal_bits(copies_of(none.model->parameters()), none.after_epoch[1]));
}

TEST_CASE("with load_best_at_end the run ends with the best weights", "[callbacks][save_best]") {
    const TemporaryFolder folder("save-best");
    SaveBestSetup setup({3, 1, 2}, {.folder = folder.path(), .load_best_at_end = true});
    setup.train(3);
    CHECK(equal_bits(copies_of(setup.model->parameters()), setup.after_epoch[1]));
}

TEST_CASE("with at_steps the weights of an evaluation within an epoch are saved, and stale numbers save nothing", "[callbacks][save_best]") {
    const TemporaryFolder folder("save-best");
    const auto evaluates = [] { return ComposedCallback(std::make_shared<EvaluatesAt>(1)); };
    SaveBestSetup setup({1, 2}, {.keep = 5, .folder = folder / "a", .at_steps = true}, {evaluates()});  // 1 after step 1, 2 after the epoch
    setup.train(1);
    CHECK(setup.saved == std::vector<std::string>{"eval.score_1_step_1.safetensors", "eval.score_2_step_2.safetensors"});
    // A save asked for after step 3 finds the number of step 2: those are other weights.
    SaveBestSetup stale({5, 4, 3}, {.keep = 5, .folder = folder / "b", .at_steps = true}, {evaluates(), asking(Decision::SaveNow, 3)});
    stale.train(2);
    CHECK(stale.saved == std::vector<std::string>{"eval.score_5_step_1.safetensors", "eval.score_4_step_2.safetensors", "eval.score_3_step_4.safetensors"});
    SaveBestSetup pointless({1}, {.folder = folder / "c", .at_steps = true});
    CHECK_THROWS_WITH(pointless.train(1), containing("needs eval.score at step_checkpoint"));
}

TEST_CASE("the list of kept files goes with the state, so that a resumed run deletes what an earlier one wrote", "[callbacks][save_best]") {
    const TemporaryFolder folder("save-best");
    SaveBestSetup first({3, 2}, {.keep = 2, .folder = folder.path()});
    first.train(2);
    const SavedState state = first.saver->state();
    SaveBestSetup resumed({1}, {.keep = 2, .folder = folder.path()});
    resumed.saver->load_state({nlohmann::json::parse(state.values.dump()), {}});
    resumed.train(1, 12);
    CHECK(names_in(folder.path()) == std::vector<std::string>{"eval.score_1_step_3.safetensors", "eval.score_2_step_4.safetensors"});
    SaveBestSetup anew({1, 0.5, 0.25}, {.keep = 2, .folder = folder.path()});
    anew.train(3);
    CHECK(names_in(folder.path()) == std::vector<std::string>{"eval.score_0.25_step_6.safetensors", "eval.score_0.5_step_4.safetensors",
                                                              "eval.score_1_step_3.safetensors", "eval.score_2_step_4.safetensors"});
}

TEST_CASE("states are saved after the best weights, so that they know of them", "[callbacks][save_best]") {
    const TemporaryFolder folder("save-best");
    SaveBestSetup setup({3}, {.folder = folder / "best"}, {make_save_training_state({.folder = folder / "states"})});
    std::vector<std::string> order;
    for (const ConnectedSlot& slot : setup.trainer.check(toy_data(8), toy_data(4)).slots)
        if (slot.event == "epoch_checkpoint") order.push_back(slot.subscriber);
    CHECK(std::ranges::find(order, "save_best") < std::ranges::find(order, "save_training_state"));
}

TEST_CASE("a file that is gone or was replaced is not among the best of a run that goes on, and half files go", "[callbacks][save_best]") {
    const TemporaryFolder folder("save-best");
    SaveBestSetup first({1}, {.folder = folder.path()});
    first.train(1);
    const SavedState state = first.saver->state();
    SaveBestSetup other({7, 6}, {.folder = folder.path()});  // from elsewhere, into the same folder
    other.train(2);
    SaveBestSetup second({5}, {.folder = folder.path()});
    second.saver->load_state(state);
    std::ofstream(folder / "best.safetensors.part") << "half";
    std::ofstream(folder / "model.safetensors.part") << "another's";
    second.train(1);
    CHECK(second.saved == std::vector<std::string>{"best.safetensors"});  // 1 is lost, so 5 is the best
    CHECK(names_in(folder.path()) == std::vector<std::string>{"best.safetensors", "model.safetensors.part"});
    CHECK(holds(folder / "best.safetensors", second.after_epoch[0]));
}

TEST_CASE("a folder that cannot be made or written fails the run with its path, and the former file stays", "[callbacks][save_best]") {
    const TemporaryFolder folder("save-best");
    SaveBestSetup setup({1}, {.folder = folder / "occupied"}, {callback_of("occupier", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainingRunStart>(Stage::Observe, [&](const TrainingRunStart&) { std::ofstream(folder / "occupied") << "a file"; });
    })});
    CHECK_THROWS_WITH(setup.train(1), containing("occupied: cannot make the folder: Not a directory; nothing was changed"));
    SaveBestSetup fills({2, 1}, {.folder = folder / "full"});
    fills.train(1);
    class Full final : public Disk {
        ssize_t write(int, const void*, std::size_t) override { return errno = ENOSPC, -1; }
    } disk;
    const DiskInPlace in_place(disk);
    SaveBestSetup full({1}, {.folder = folder / "full"});
    CHECK_THROWS_WITH(full.train(1), containing("No space left on device; nothing was changed"));
    CHECK(holds(folder / "full/best.safetensors", fills.after_epoch[0]));
    CHECK(full.saved.empty());
}

TEST_CASE("save_best refuses what it cannot do", "[callbacks][save_best]") {
    CHECK_THROWS_WITH(make_save_best({.keep = 0}), "save_best: keep: 0 is too few; give at least 1");
    CHECK_THROWS_WITH(make_save_best({.folder = ""}), "save_best: folder: there is no name; give a folder, e.g. checkpoints");
    CHECK_THROWS_AS(make_save_best({.monitor = ""}), ConfigError);
}

TEST_CASE("the weights of the view that the metric was measured with are kept, and the file says so", "[callbacks][save-best]") {
    const TemporaryFolder folder("save-best-view");
    const auto model = toy_model();
    std::vector<at::Tensor> shown;
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.5}),
                     .callbacks = {make_metrics(), make_model_ema({.decay = 0.5}),
                                   make_save_best({.monitor = "eval.ema.loss", .folder = folder.path()}),
                                   make_early_stopping({.monitor = "eval.ema.loss", .restore_best = true}),
                                   callback_of("tap", [&](Attachment& run, Connections& connections) {
                                       connections += run.bus.observe<EvalEpochStart>(Stage::Observe, [&](const EvalEpochStart& event) {
                                           if (event.scope.view == "ema") shown = copies_of(model->parameters());
                                       });
                                   })},
                     .handle_signals = false});
    trainer.train(toy_data(16), toy_data(8, 3), {.batch_size = 4});
    REQUIRE_FALSE(shown.empty());
    CHECK(holds(folder / "best.safetensors", shown));
    CHECK(equal_bits(copies_of(model->parameters()), shown));
    std::ifstream file(folder / "best.safetensors", std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    CHECK(bytes.find(R"("__metadata__":{"step":"4","view":"ema",)") != std::string::npos);
}
