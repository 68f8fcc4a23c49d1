#include <cerrno>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iterator>
#include <thread>

#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/checkpoint/folder_lock.hpp>
#include <torchbus/checkpoint/disk.hpp>
#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/scripted_metric.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

using Names = std::vector<std::string>;

/// Without the links.
Names states_in(const std::filesystem::path& folder) {
    Names names = names_in(folder);
    std::erase(names, "latest");
    std::erase(names, "best");
    return names;
}

struct SaveTrainingStateSetup {
    torch::nn::Sequential model = toy_model();
    std::shared_ptr<torch::optim::Optimizer> optimizer = make_adamw(model->parameters(), {.learning_rate = 0.05});
    std::shared_ptr<Callback> saver;
    Names saved;
    std::function<void(Attachment&)> at_start = [](Attachment&) {};
    std::function<void(Attachment&, const TrainStepEnd&)> at_step = [](Attachment&, const TrainStepEnd&) {};
    Trainer trainer;
    explicit SaveTrainingStateSetup(SaveTrainingStateOptions options)
        : saver(make_save_training_state(std::move(options))),
          trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer, .callbacks = {make_metrics(), ComposedCallback(saver), callback_of("tap", [this](Attachment& run, Connections& connections) {
                       connections += run.bus.observe<TrainingRunStart>(Stage::Observe, [this, &run](const TrainingRunStart&) { at_start(run); });
                       connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [this, &run](const TrainStepEnd& event) { at_step(run, event); });
                       connections += run.bus.observe<CheckpointSaved>(Stage::Report, [this](const CheckpointSaved& event) {
                           saved.push_back(std::filesystem::path(event.path).filename().string() + (std::filesystem::exists(std::filesystem::path(event.path) / "manifest.json") ? "" : " is not whole"));
                       });
                   })}, .seed = 7, .handle_signals = false}) {}
    RunResult train(std::int64_t epochs, bool shuffle = true) { return trainer.train(toy_data(8), {.epochs = epochs, .batch_size = 2, .shuffle = shuffle}); }  // four steps an epoch
};

}  // namespace

TEST_CASE("a training state is saved after every n-th epoch, and the newest are kept", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    SaveTrainingStateSetup every({.folder = folder / "a/b", .keep = 2});
    every.train(3);
    CHECK(every.saved == Names{"step_4", "step_8", "step_12"});
    CHECK(states_in(folder / "a/b") == Names{"step_12", "step_8"});
    SaveTrainingStateSetup second({.folder = folder / "b", .every_epochs = 2, .at_end = false, .keep = 0});
    second.train(5);
    CHECK(states_in(folder / "b") == Names{"step_16", "step_8"});
    SaveTrainingStateSetup at_end({.folder = folder / "c", .every_epochs = 2, .keep = 0});
    at_end.train(5);
    CHECK(states_in(folder / "c") == Names{"step_16", "step_20", "step_8"});
    CHECK(std::filesystem::read_symlink(folder / "c/latest") == "step_20");
}

TEST_CASE("a training state is saved at an interval, and whenever a save is asked for", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    SaveTrainingStateSetup setup({.folder = folder.path(), .every = "3step", .every_epochs = 0, .at_end = false, .keep = 0});
    setup.at_step = [](Attachment& run, const TrainStepEnd& event) { if (event.position.step == 4) run.asker.ask(Decision::SaveNow, "a test"); };
    setup.train(2);
    CHECK(setup.saved == Names{"step_3", "step_4", "step_6"});
    SaveTrainingStateSetup asked({.folder = folder / "none", .every_epochs = 0, .at_end = false});
    asked.train(1);
    CHECK_FALSE(std::filesystem::exists(folder / "none"));
}

TEST_CASE("a save of a step that is saved already replaces it", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    SaveTrainingStateSetup setup({.folder = folder.path(), .every = "4step", .keep = 2});
    setup.train(3);
    CHECK(setup.saved == Names{"step_4", "step_4", "step_8", "step_8", "step_12", "step_12"});  // at the step, and after the epoch
    CHECK(states_in(folder.path()) == Names{"step_12", "step_8"});
}

TEST_CASE("what others have put into the folder is never deleted", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    std::filesystem::create_directories(folder / "step_1");
    std::filesystem::create_directories(folder / "notes");
    SaveTrainingStateSetup setup({.folder = folder.path(), .keep = 1});
    setup.at_step = [&](Attachment&, const TrainStepEnd& event) { if (event.position.step == 6) std::filesystem::remove_all(folder / "step_4"); };
    setup.train(3);
    CHECK(states_in(folder.path()) == Names{"notes", "step_1", "step_12"});
    for (const char* name : {".download.part", ".notes.old", ".step_x.part"}) std::filesystem::create_directories(folder / name / "of another program");
    setup.train(1);
    for (const char* name : {".download.part", ".notes.old", ".step_x.part"}) CHECK(std::filesystem::exists(folder / name / "of another program"));
    std::filesystem::remove(folder / "latest");
    std::filesystem::create_directories(folder / "latest/of another program");
    CHECK_THROWS_WITH(setup.train(1), containing("latest: it is not a link, as the name of the latest checkpoint is to be; move it away, or save into another folder"));
    CHECK(std::filesystem::exists(folder / "latest/of another program"));
}

TEST_CASE("weights, optimizer and generators put back go on bit for bit", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    // Without shuffling the second epoch has the batches of the first, so that two epochs are one epoch, resumed.
    SaveTrainingStateSetup whole({.folder = folder / "whole", .keep = 0});
    whole.train(2, false);
    SaveTrainingStateSetup half({.folder = folder / "half", .keep = 0});
    half.train(1, false);
    SaveTrainingStateSetup resumed({.folder = folder / "resumed", .keep = 0});
    RestoredState restored;
    resumed.at_start = [&](Attachment& run) { restored = load_training_state(folder / "half/step_4", run.run_state); };
    resumed.train(1, false);
    CHECK(equal_bits(copies_of(resumed.model->parameters()), copies_of(whole.model->parameters())));
    CHECK_FALSE(equal_bits(copies_of(half.model->parameters()), copies_of(whole.model->parameters())));
    CHECK(restored.put_back.front() == "update");
    CHECK(restored.left_out == Names{"position", "data", "decisions", "configuration"});
    CHECK(restored.not_saved.empty());
}

TEST_CASE("the saved state knows of itself, so that a resumed run deletes what came before", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    SaveTrainingStateSetup first({.folder = folder.path(), .keep = 2});
    first.train(3);  // step_8 and step_12 are there
    const auto state = first.saver->state();
    CHECK(state.values.at("written").dump() == R"([{"asked":false,"step":8},{"asked":false,"step":12}])");
    CHECK(state.values.at("folder") == std::filesystem::weakly_canonical(folder.path()).string());
    SaveTrainingStateSetup elsewhere({.folder = folder / "elsewhere", .keep = 1});
    elsewhere.saver->load_state(state);
    elsewhere.train(1);
    CHECK(states_in(folder.path()) == Names{"elsewhere", "step_12", "step_8"});  // there they are not its own
    std::filesystem::remove_all(folder / "elsewhere");
    SaveTrainingStateSetup resumed({.folder = folder.path(), .keep = 2});
    resumed.saver->load_state(state);
    resumed.train(1);
    CHECK(states_in(folder.path()) == Names{"step_12", "step_4"});
    SaveTrainingStateSetup anew({.folder = folder.path(), .keep = 1});
    anew.train(1);
    CHECK(states_in(folder.path()) == Names{"step_12", "step_4"});  // step_12 is not its own
}

TEST_CASE("a state of another model is refused", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    SaveTrainingStateSetup setup({.folder = folder.path()});
    setup.train(1);
    torch::nn::Sequential wide(torch::nn::Linear(6, 9), torch::nn::ReLU(), torch::nn::Linear(9, 3));
    Trainer trainer({.model = wide, .loss = cross_entropy, .optimizer = make_adamw(wide->parameters(), {}), .callbacks = {callback_of("loader", [&](Attachment& run, Connections& connections) {
                         connections += run.bus.observe<TrainingRunStart>(Stage::Observe, [&](const TrainingRunStart&) { load_training_state(folder / "step_4", run.run_state); });
                     })}, .handle_signals = false});
    CHECK_THROWS_WITH(trainer.train(toy_data(8)), containing("it is of another model: '0.bias' has shape [8], the model's has [9]") && Catch::Matchers::EndsWith("nothing was loaded"));
}

TEST_CASE("the disk's refusal fails the run with the path", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("refusal");
    SaveTrainingStateSetup before({.folder = "/proc/self/nowhere"});
    CHECK_THROWS_WITH(before.train(1), containing("'save_training_state' cannot write to '/proc/self/nowhere'"));
    // What was a folder when the run began is a file when it is written to.
    const auto becomes_a_file = [&](SaveTrainingStateSetup& setup) { setup.at_start = [&](Attachment&) { std::ofstream(folder / "states") << "a file"; }; };
    const auto refused = containing((folder / "states").string() + ": cannot make the folder");
    SaveTrainingStateSetup setup({.folder = folder / "states"});
    becomes_a_file(setup);
    CHECK_THROWS_WITH(setup.train(1), refused);
    CHECK(setup.saved.empty());
    std::filesystem::remove(folder / "states");
    SaveTrainingStateSetup early({.folder = folder / "states", .every = "1step"});
    becomes_a_file(early);
    CHECK_THROWS_WITH(early.train(1000), refused);  // long before the end
    CHECK(early.trainer.position().epoch < 1000);
    std::filesystem::remove(folder / "states");
    SaveTrainingStateSetup at_once({.folder = folder / "states", .background = false});
    becomes_a_file(at_once);
    CHECK_THROWS_WITH(at_once.train(1), containing("subscriber 'save_training_state' failed at epoch_checkpoint") && refused);
}

TEST_CASE("save_training_state refuses options out of range", "[callbacks][save_training_state]") {
    CHECK_THROWS_WITH(make_save_training_state({.keep = -1}), "save_training_state: keep: -1 is too few; give how many are kept, or 0 for all");
    CHECK_THROWS_WITH(make_save_training_state({.every_epochs = -1}), "save_training_state: every_epochs: -1 is too few; give a number of epochs, or 0 for none");
    CHECK_THROWS_AS(make_save_training_state({.folder = ""}), ConfigError);
}

TEST_CASE("what a thread writes in the background is what the run was, to the byte", "[callbacks][save_training_state][thread]") {
    const TemporaryFolder folder("save-training-state");
    SaveTrainingStateSetup behind({.folder = folder / "behind", .every = "1step", .keep = 0}), at_once({.folder = folder / "at_once", .every = "1step", .keep = 0, .background = false});
    behind.train(3);
    at_once.train(3);
    CHECK(behind.saved == at_once.saved);
    CHECK(states_in(folder / "behind") == states_in(folder / "at_once"));
    for (const std::string& state : states_in(folder / "behind"))
        for (const std::string& file : names_in(folder / "behind" / state)) {
            const auto bytes = [&](const char* which) {
                std::ifstream stream(folder / which / state / file, std::ios::binary);
                std::string text(std::istreambuf_iterator<char>(stream), {});
                for (auto at = text.find(which); at != std::string::npos; at = text.find(which)) text.replace(at, std::string_view(which).size(), "folder");
                return text;
            };
            if (file != "manifest.json") CHECK(bytes("behind") == bytes("at_once"));  // that says when it was written
        }
}

TEST_CASE("a save that comes while another is written waits, or is left out and counted", "[callbacks][save_training_state][thread]") {
    /// Writes as slowly as it is told.
    class SlowDisk final : public Disk {
    public:
        int mkdir(const char* path, unsigned mode) override {
            std::this_thread::sleep_for(std::chrono::milliseconds(60));
            return Disk::mkdir(path, mode);
        }
    };
    SlowDisk slow;
    const DiskInPlace in_place(slow);
    const TemporaryFolder folder("save-training-state");
    SaveTrainingStateSetup waits({.folder = folder / "waits", .every = "1step", .at_end = false, .keep = 0});
    waits.train(1);
    CHECK(waits.saved == Names{"step_1", "step_2", "step_3", "step_4", "step_4"});
    SaveTrainingStateSetup skips({.folder = folder / "skips", .every = "1step", .at_end = false, .keep = 0, .skip_when_busy = true});
    const CapturedStderr captured;
    skips.train(1);
    CHECK(skips.saved == Names{"step_1", "step_4"});  // the last one of the run is not left out
    CHECK(captured.text() == "torchbus: warning: save_training_state: 3 saves were left out while another was written\n");
    // What others ask for waits, too.
    SaveTrainingStateSetup asked({.folder = folder / "asked", .every = "1step", .at_end = false, .keep = 0, .skip_when_busy = true});
    asked.trainer.attach(callback_of("asker", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&run](const TrainStepEnd& event) { if (event.position.step == 2) run.asker.ask(Decision::SaveNow, "before it is too late"); });
    }), "test").get();
    asked.train(1);
    CHECK(asked.saved == Names{"step_1", "step_2", "step_4"});
}

TEST_CASE("a folder has one saver, in this run and in others", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    auto model = toy_model();
    CHECK_THROWS_WITH(Trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                               .callbacks = {ComposedCallback("one", make_save_training_state({.folder = folder.path()})), ComposedCallback("other", make_save_training_state({.folder = folder / "."}))}, .handle_signals = false}),
                      "'one' and 'other' both save into '" + std::filesystem::canonical(folder.path()).string() + "', and would delete each other's; give one of them another folder");
    SaveTrainingStateSetup setup({.folder = folder.path()});
    std::filesystem::create_directories(folder / ".step_9.part");
    {
        const FolderLock held(folder.path());
        CHECK_THROWS_WITH(setup.train(1), containing("another run saves here, and each would delete the other's; wait until it has ended, or give another folder"));
        CHECK(std::filesystem::exists(folder / ".step_9.part"));  // it may be the other's
    }
    CHECK(setup.train(1).outcome == Outcome::Finished);
    CHECK_FALSE(std::filesystem::exists(folder / ".step_9.part"));
    const FolderLock free_again(folder.path());
}

TEST_CASE("states that are gone are not kept in a list, and best points to one that is there", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    const auto train = [&](std::vector<double> scores, std::optional<ResumeOptions> resume = {}) {
        auto model = toy_model();
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_adamw(model->parameters(), {}),
                         .callbacks = {scripted_metric(scores), make_save_training_state({.folder = folder / "states", .keep = 1, .keep_every = 4, .monitor = "eval.score"})}, .handle_signals = false});
        trainer.train(toy_data(4), toy_data(2), {.epochs = static_cast<std::int64_t>(scores.size()), .batch_size = 2, .resume = std::move(resume)});
    };
    train({1, 2, 0.5});  // the best of step_4 is step_2, which goes when step_6 is better
    CHECK(states_in(folder / "states") == Names{"step_4", "step_6"});
    train({9, 9, 3}, ResumeOptions{folder / "states" / "step_4"});  // and step_6 is not of this run: it replaces it
    CHECK(std::filesystem::read_symlink(folder / "states" / "best") == "step_4");
    CHECK(states_in(folder / "states") == Names{"step_4", "step_6"});
}

TEST_CASE("multiples of keep_every are kept for ever", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    SaveTrainingStateSetup setup({.folder = folder.path(), .every = "1step", .every_epochs = 0, .at_end = false, .keep = 1, .keep_every = 3});
    setup.train(2);
    CHECK(states_in(folder.path()) == Names{"step_3", "step_6", "step_8"});
}

TEST_CASE("those that others asked for are kept for ever where that is wanted, also in a resumed run", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    const auto ask_at = [](std::int64_t step) {
        return [step](Attachment& run, const TrainStepEnd& event) { if (event.position.step == step) run.asker.ask(Decision::SaveNow, "a test"); };
    };
    SaveTrainingStateSetup kept({.folder = folder / "kept", .every = "2step", .keep = 1, .keep_asked = true});
    kept.at_step = ask_at(4);  // an epoch ends there, too, and the saver saves there by itself
    kept.train(2);
    CHECK(states_in(folder / "kept") == Names{"step_4", "step_8"});
    SaveTrainingStateSetup resumed({.folder = folder / "kept", .keep = 1, .keep_asked = true});
    resumed.saver->load_state(kept.saver->state());
    resumed.train(3);
    CHECK(states_in(folder / "kept") == Names{"step_12", "step_4"});
    SaveTrainingStateSetup first_version({.folder = folder / "kept", .keep = 1});
    first_version.saver->load_state({{{"written", {"step_4"}}}, {}, 1});
    first_version.train(1);
    CHECK(states_in(folder / "kept") == Names{"step_12", "step_4"});  // written anew by this run
    SaveTrainingStateSetup not_kept({.folder = folder / "not", .every = "2step", .keep = 1});
    not_kept.at_step = ask_at(4);
    not_kept.train(2);
    CHECK(states_in(folder / "not") == Names{"step_8"});
}

TEST_CASE("the best by a number are kept beside the newest, and best points to the first of them", "[callbacks][save_training_state]") {
    const TemporaryFolder folder("save-training-state");
    // Two steps an epoch; the scores are those of the epochs.
    const auto train = [](SaveTrainingStateOptions options, std::vector<double> scores, const SavedState* from = nullptr) {
        const auto epochs = static_cast<std::int64_t>(scores.size());
        options.monitor = "eval.score";
        std::shared_ptr<Callback> saver = make_save_training_state(std::move(options));
        if (from) saver->load_state(*from);
        auto model = toy_model();
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_adamw(model->parameters(), {}), .callbacks = {scripted_metric(std::move(scores)), ComposedCallback(saver)}, .handle_signals = false});
        trainer.train(toy_data(4), toy_data(2), {.epochs = epochs, .batch_size = 2});
        return saver->state();
    };
    const auto link = [&](const char* name) { return std::filesystem::read_symlink(folder / name).string(); };
    const SavedState state = train({.folder = folder / "a", .keep = 1, .keep_best = 2}, {3, 1, 2, 1, 4});
    CHECK(states_in(folder / "a") == Names{"step_10", "step_4", "step_8"});
    CHECK(link("a/best") == "step_4");  // the earlier of equal ones
    CHECK(link("a/latest") == "step_10");
    train({.folder = folder / "a", .keep = 1, .keep_best = 2}, {9}, &state);  // a run that goes on knows them
    CHECK(states_in(folder / "a") == Names{"step_2", "step_4", "step_8"});
    CHECK(link("a/best") == "step_4");
    CHECK(link("a/latest") == "step_2");
    train({.folder = folder / "max", .keep = 1, .mode = SaveTrainingStateOptions::Mode::Max}, {3, 1, 2});
    CHECK(states_in(folder / "max") == Names{"step_2", "step_6"});
    const CapturedStderr captured;
    train({.folder = folder / "nan", .keep = 1}, {5, std::nan(""), 6});
    CHECK(states_in(folder / "nan") == Names{"step_2", "step_6"});
    CHECK_THAT(captured.text(), containing("save_training_state: eval.score is nan at step 4; this state is not among the best"));
}

TEST_CASE("a save that is not known to be durable is warned of, and nothing older is deleted for it", "[callbacks][save_training_state]") {
    /// The folder of the checkpoints cannot be synced from the third save on.
    class Unsyncable final : public Disk {
    public:
        explicit Unsyncable(std::filesystem::path folder) : folder_(std::move(folder)) {}
        int open(const char* path, int flags, unsigned mode) override {
            const int descriptor = Disk::open(path, flags, mode);
            if (folder_ == path) watched_ = descriptor;
            return descriptor;
        }
        int close(int descriptor) override {
            if (descriptor == watched_) watched_ = -1;
            return Disk::close(descriptor);
        }
        int fsync(int descriptor) override {
            if (descriptor == watched_ && ++syncs_ > 4) return errno = EIO, -1;  // two a save: its name, and the link's
            return Disk::fsync(descriptor);
        }

    private:
        std::filesystem::path folder_;
        int watched_ = -1, syncs_ = 0;
    };
    for (const bool background : {true, false}) {
        const TemporaryFolder folder("save-training-state");
        Unsyncable disk(folder.path());
        const DiskInPlace in_place(disk);
        SaveTrainingStateSetup setup({.folder = folder.path(), .keep = 1, .background = background});
        const CapturedStderr captured;
        setup.train(3);
        CHECK(setup.saved == Names{"step_4", "step_8"});
        CHECK_THAT(captured.text(), containing("cannot sync the folder: Input/output error; step_12 was written, but may not outlast a power failure"));
        CHECK(states_in(folder.path()) == Names{"step_12", "step_8"});
        CHECK(std::filesystem::read_symlink(folder / "latest") == "step_8");
    }
}
