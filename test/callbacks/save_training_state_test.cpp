#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

using Names = std::vector<std::string>;

struct Setup {
    torch::nn::Sequential model = toy_model();
    std::shared_ptr<torch::optim::Optimizer> optimizer = make_adamw(model->parameters(), {.learning_rate = 0.05});
    std::shared_ptr<Callback> saver;
    Names saved;
    std::function<void(Attachment&)> at_start = [](Attachment&) {};
    std::function<void(Attachment&, const TrainStepEnd&)> at_step = [](Attachment&, const TrainStepEnd&) {};
    Trainer trainer;
    explicit Setup(SaveTrainingStateOptions options)
        : saver(make_save_training_state(std::move(options))),
          trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer, .callbacks = {make_metrics(), ComposedCallback(saver), callback_of("tap", [this](Attachment& run, Connections& connections) {
                       connections += run.bus.observe<TrainingRunStart>(Stage::Observe, [this, &run](const TrainingRunStart&) { at_start(run); });
                       connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [this, &run](const TrainStepEnd& event) { at_step(run, event); });
                       connections += run.bus.observe<CheckpointSaved>(Stage::Report, [this](const CheckpointSaved& event) {
                           saved.push_back(std::filesystem::path(event.path).filename().string() + (std::filesystem::exists(std::filesystem::path(event.path) / "state.json") ? "" : " is not whole"));
                       });
                   })}, .seed = 7, .handle_signals = false}) {}
    RunResult train(std::int64_t epochs, bool shuffle = true) { return trainer.train(toy_data(8), {.epochs = epochs, .batch_size = 2, .shuffle = shuffle}); }  // four steps an epoch
};

}  // namespace

TEST_CASE("a training state is saved after every n-th epoch, and the newest are kept", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    Setup every({.folder = folder / "a/b", .keep = 2});
    every.train(3);
    CHECK(every.saved == Names{"step_4", "step_8", "step_12"});
    CHECK(names_in(folder / "a/b") == Names{"step_12", "step_8"});
    Setup second({.folder = folder / "b", .every_epochs = 2, .keep = 0});
    second.train(5);
    CHECK(names_in(folder / "b") == Names{"step_16", "step_8"});
}

TEST_CASE("a training state is saved at an interval, and whenever a save is asked for", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    Setup setup({.folder = folder.path(), .every = "3step", .every_epochs = 0, .keep = 0});
    setup.at_step = [](Attachment& run, const TrainStepEnd& event) { if (event.position.step == 4) run.asker.ask(Decision::SaveNow, "a test"); };
    setup.train(2);
    CHECK(setup.saved == Names{"step_3", "step_4", "step_6"});
    Setup asked({.folder = folder / "none", .every_epochs = 0});
    asked.train(1);
    CHECK_FALSE(std::filesystem::exists(folder / "none"));
}

TEST_CASE("a save of a step that is saved already replaces it", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    Setup setup({.folder = folder.path(), .every = "4step", .keep = 2});
    setup.train(3);
    CHECK(setup.saved == Names{"step_4", "step_4", "step_8", "step_8", "step_12", "step_12"});  // at the step, and after the epoch
    CHECK(names_in(folder.path()) == Names{"step_12", "step_8"});
}

TEST_CASE("what others have put into the folder is never deleted", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    std::filesystem::create_directories(folder / "step_1");
    std::filesystem::create_directories(folder / "notes");
    Setup setup({.folder = folder.path(), .keep = 1});
    setup.at_step = [&](Attachment&, const TrainStepEnd& event) { if (event.position.step == 6) std::filesystem::remove_all(folder / "step_4"); };
    setup.train(3);
    CHECK(names_in(folder.path()) == Names{"notes", "step_1", "step_12"});
}

TEST_CASE("weights, optimizer and generators put back go on bit for bit", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    // Without shuffling the second epoch has the batches of the first, so that two epochs are one epoch, resumed.
    Setup whole({.folder = folder / "whole", .keep = 0});
    whole.train(2, false);
    Setup half({.folder = folder / "half", .keep = 0});
    half.train(1, false);
    Setup resumed({.folder = folder / "resumed", .keep = 0});
    RestoredState restored;
    resumed.at_start = [&](Attachment& run) { restored = load_training_state(folder / "half/step_4", run.run_state); };
    resumed.train(1, false);
    CHECK(equal_bits(copies_of(resumed.model->parameters()), copies_of(whole.model->parameters())));
    CHECK_FALSE(equal_bits(copies_of(half.model->parameters()), copies_of(whole.model->parameters())));
    CHECK(restored.put_back.front() == "update");
    CHECK(restored.left_out == Names{"data", "position"});
    CHECK(restored.not_saved.empty());
}

TEST_CASE("the saved state knows of itself, so that a resumed run deletes what came before", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    Setup first({.folder = folder.path(), .keep = 2});
    first.train(3);  // step_8 and step_12 are there
    const auto state = first.saver->state();
    CHECK(state.values.dump() == R"({"written":["step_8","step_12"]})");
    Setup resumed({.folder = folder.path(), .keep = 2});
    resumed.saver->load_state(state);
    resumed.train(1);
    CHECK(names_in(folder.path()) == Names{"step_12", "step_4"});
    Setup anew({.folder = folder.path(), .keep = 1});
    anew.train(1);
    CHECK(names_in(folder.path()) == Names{"step_12", "step_4"});  // step_12 is not its own
}

TEST_CASE("a state of another model is refused", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    Setup setup({.folder = folder.path()});
    setup.train(1);
    torch::nn::Sequential wide(torch::nn::Linear(6, 9), torch::nn::ReLU(), torch::nn::Linear(9, 3));
    Trainer trainer({.model = wide, .loss = cross_entropy, .optimizer = make_adamw(wide->parameters(), {}), .callbacks = {callback_of("loader", [&](Attachment& run, Connections& connections) {
                         connections += run.bus.observe<TrainingRunStart>(Stage::Observe, [&](const TrainingRunStart&) { load_training_state(folder / "step_4", run.run_state); });
                     })}, .handle_signals = false});
    CHECK_THROWS_WITH(trainer.train(toy_data(8)), containing("it is of another model: '0.bias' has shape [8], the model's has [9]") && Catch::Matchers::EndsWith("nothing was loaded"));
}

TEST_CASE("the disk's refusal fails the run with the path", "[callbacks][save_training_state]") {
    Setup setup({.folder = "/proc/self/nowhere"});
    CHECK_THROWS_WITH(setup.train(1), containing("/proc/self/nowhere/.step_4.part: cannot make the folder"));
    CHECK(setup.saved.empty());
}

TEST_CASE("save_training_state refuses options out of range", "[callbacks][save_training_state]") {
    CHECK_THROWS_WITH(make_save_training_state({.keep = -1}), "save_training_state: keep: -1 is too few; give how many are kept, or 0 for all");
    CHECK_THROWS_WITH(make_save_training_state({.every_epochs = -1}), "save_training_state: every_epochs: -1 is too few; give a number of epochs, or 0 for none");
    CHECK_THROWS_AS(make_save_training_state({.folder = ""}), ConfigError);
}
