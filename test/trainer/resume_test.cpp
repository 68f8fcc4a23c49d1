// Which state a run may go on from. That it goes on exactly, test/scripts/resume_test.py shows in processes of their own.
#include <atomic>
#include <fstream>
#include <thread>

#include <torchbus/callbacks/freeze.hpp>
#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/fake_world.hpp"
#include "support/event_trace.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
namespace fs = std::filesystem;

namespace {

struct ResumeSetup {
    torch::nn::Sequential model = toy_model();
    std::shared_ptr<EventTrace> recording = std::make_shared<EventTrace>();
    std::unique_ptr<Trainer> trainer;
    explicit ResumeSetup(const fs::path& folder, std::vector<ComposedCallback> callbacks = {}, torch::nn::Sequential its_model = toy_model(), double rate = 0.05) : model(std::move(its_model)) {
        callbacks.emplace_back(make_metrics());
        callbacks.emplace_back(make_save_training_state({.folder = folder, .keep = 0}));
        callbacks.emplace_back(recording);
        trainer = std::make_unique<Trainer>(TrainerOptions{.model = model, .loss = cross_entropy, .optimizer = make_adamw(model->parameters(), {.learning_rate = rate}),
                                                           .callbacks = std::move(callbacks), .seed = 3, .handle_signals = false});
    }
    RunResult train(std::int64_t epochs, std::optional<ResumeOptions> resume = {}, TrainOptions options = {}) {
        options.epochs = epochs;
        options.batch_size = 4;
        options.resume = std::move(resume);
        return trainer->train(toy_data(12), toy_data(4, 3), options);
    }
};

std::string refusal(ResumeSetup& setup, ResumeOptions resume) {
    try {
        setup.train(4, std::move(resume));
    } catch (const CheckpointError& error) {
        return error.what();
    }
    return "nothing";
}

}  // namespace

TEST_CASE("a run goes on with more epochs from the newest state of a folder, with its history", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup whole(folder / "whole"), first(folder / "half"), second(folder / "half", {}, toy_model(99));
    whole.train(4);
    first.train(2);
    second.train(4, ResumeOptions{folder / "half"});
    CHECK(equal_bits(copies_of(second.model->parameters()), copies_of(whole.model->parameters())));
    REQUIRE(second.trainer->history().epochs().size() == 4);
    for (std::size_t i = 0; i < 4; ++i) CHECK(second.trainer->history().epochs()[i].metrics == whole.trainer->history().epochs()[i].metrics);
    CHECK(second.trainer->position() == whole.trainer->position());
    const auto names = second.recording->names();
    CHECK(std::ranges::count(names, "train_epoch_start") == 2);
    // One that is over has nothing more to do.
    ResumeSetup third(folder / "half");
    CHECK(third.train(4, ResumeOptions{folder / "half/latest"}).outcome == Outcome::Finished);
    CHECK(std::ranges::count(third.recording->names(), "train_epoch_start") == 0);
    CHECK(equal_bits(copies_of(third.model->parameters()), copies_of(whole.model->parameters())));
}

TEST_CASE("a trainer's last run goes on for more epochs where its history is not reset", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup whole(folder / "whole"), twice(folder / "twice");
    whole.train(4);
    twice.train(2);
    twice.train(2, {}, {.reset_run_history = false});
    CHECK(equal_bits(copies_of(twice.model->parameters()), copies_of(whole.model->parameters())));
    CHECK(twice.trainer->history().epochs().size() == 4);
    CHECK(twice.trainer->position() == whole.trainer->position());
    CHECK_THROWS_WITH(twice.train(2, ResumeOptions{folder / "whole"}, {.reset_run_history = false}), "give either `resume`, or reset_run_history = false, not both");
    twice.train(1);
    CHECK(twice.trainer->history().epochs().size() == 1);
}

TEST_CASE("a state of another run is refused with every difference, each allowed by its name", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder.path(), {ComposedCallback(make_gradient_clipping({.max_norm = 1.0}))});
    first.train(2);
    ResumeSetup other(folder.path(), {make_gradient_accumulation({3})});
    const auto before = copies_of(other.model->parameters());
    const std::string path = (folder / "step_6").string();
    CHECK(refusal(other, {folder.path()}) ==
          path + ": it is of another run: callback.gradient_accumulation is new, and has no saved state to go on with; callback.gradient_clipping was saved, and is not in this run; "
                 "micro_batches_per_step was 1, is 3; to go on all the same allow by name: callback.gradient_accumulation, callback.gradient_clipping, micro_batches_per_step; nothing was loaded");
    CHECK(equal_bits(copies_of(other.model->parameters()), before));
    CHECK(other.trainer->result().outcome == Outcome::Failed);
    CHECK(refusal(other, {folder.path(), false, {"callback.gradient_accumulation", "micro_batches_per_step"}}) ==
          path + ": it is of another run: callback.gradient_clipping was saved, and is not in this run; to go on all the same allow by name: callback.gradient_clipping; nothing was loaded");
    CHECK(refusal(other, {folder.path(), false, {"callback.gradient_accumulation", "callback.gradient_clipping", "micro_batches_per_step"}}) == "nothing");
    CHECK(other.trainer->position().epoch == 4);
}

TEST_CASE("batch size, order and data are differences, and another model is never allowed", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder.path());
    first.train(2);
    ResumeSetup other(folder.path());
    TrainOptions options{.epochs = 4, .batch_size = 6, .shuffle = false, .resume = ResumeOptions{folder.path()}};
    CHECK_THROWS_WITH(other.trainer->train(toy_data(12), toy_data(4, 3), options), containing("batch_size was 4, is 6; batches was 3, is 2; order was \"shuffled\", is \"as it is\"; to go on all the same"));
    options.resume->allow = {"batch_size", "batches", "order"};
    CHECK(other.trainer->train(toy_data(12), toy_data(4, 3), options).outcome == Outcome::Finished);
    torch::nn::Sequential wide(torch::nn::Linear(6, 9), torch::nn::ReLU(), torch::nn::Linear(9, 3));
    ResumeSetup of_wide(folder.path(), {}, wide);
    CHECK_THAT(refusal(of_wide, {folder.path()}), containing("it is of another model: '0.bias' has shape [8], the model's has [9]") && Catch::Matchers::EndsWith("nothing was loaded"));
}

TEST_CASE("options from a run file are compared, and a changed one is named with both values", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    const auto clipping = [](double max_norm) {
        ComposedCallback composed(make_gradient_clipping({.max_norm = max_norm}));
        composed.options = {{"kind", "gradient_clipping"}, {"max_norm", max_norm}};
        return composed;
    };
    ResumeSetup first(folder.path(), {clipping(1)});
    first.train(1);
    ResumeSetup other(folder.path(), {clipping(2)});
    CHECK_THAT(refusal(other, {folder.path()}), containing("callback.gradient_clipping: options.max_norm was 1.0, is 2.0; to go on all the same allow by name: callback.gradient_clipping; nothing was loaded"));
}

TEST_CASE("what change_option changed goes on", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder.path(), {ComposedCallback(make_gradient_clipping({.max_norm = 1.0}))});
    first.trainer->change_option("gradient_clipping", "max_norm", 1e-3, "test").get();
    first.train(2);
    ResumeSetup whole(folder / "whole", {ComposedCallback(make_gradient_clipping({.max_norm = 1e-3}))}), second(folder.path(), {ComposedCallback(make_gradient_clipping({.max_norm = 1.0}))});
    whole.train(3);
    second.train(3, ResumeOptions{folder.path()});
    CHECK(equal_bits(copies_of(second.model->parameters()), copies_of(whole.model->parameters())));
}

TEST_CASE("the newest state is the one that was written last, not that of an earlier run that came further", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup earlier(folder / "states"), anew(folder / "states"), on(folder / "states"), whole(folder / "whole");
    earlier.train(4);
    anew.train(1);
    on.train(2, ResumeOptions{folder / "states"});
    whole.train(2);
    CHECK(std::ranges::count(on.recording->names(), "train_epoch_start") == 1);  // of the second epoch
    CHECK(equal_bits(copies_of(on.model->parameters()), copies_of(whole.model->parameters())));
}

TEST_CASE("a state that an interrupted save has moved aside is gone on from", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder / "states"), second(folder / "states");
    first.train(1);
    fs::rename(folder / "states/step_3", folder / "states/.step_3.old");  // where two names cannot be exchanged
    second.train(2, ResumeOptions{folder / "states"});
    CHECK(second.trainer->history().epochs().size() == 2);
}

TEST_CASE("a folder that is no whole state is named where it is passed over", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder / "states"), second(folder / "states");
    first.train(1);
    fs::create_directory(folder / "states/step_9");
    CapturedStderr captured;
    second.train(2, ResumeOptions{folder / "states"});
    CHECK_THAT(captured.text(), containing("passed over") && containing("step_9: it holds no manifest.json"));
}

TEST_CASE("another option of the optimizer is refused, and what a schedule or a hand has changed since is none", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    const auto scheduled = [] { return make_learning_rate_schedule({make_cosine_schedule({.length = "4epoch"})}); };
    ResumeSetup first(folder / "states", {scheduled()}), other(folder / "states", {scheduled()}, toy_model(), 0.01), same(folder / "states", {scheduled()});
    first.train(2);
    CHECK_THAT(refusal(other, ResumeOptions{folder / "states"}), containing("optimizer: 0.learning_rate was 0.05, is 0.01; to go on all the same allow by name: optimizer"));
    CHECK(refusal(same, ResumeOptions{folder / "states"}) == "nothing");
}

TEST_CASE("a state of another world size is refused", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder / "states");
    first.train(1);
    FakeWorld world(2);
    std::vector<std::string> refusals(2);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 2; ++rank)
        ranks.emplace_back([&, rank] {
            auto model = torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::ReLU(), torch::nn::Linear(8, 3));
            Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_adamw(model->parameters(), {.learning_rate = 0.05}),
                             .callbacks = {make_metrics(), make_save_training_state({.folder = folder / "states", .keep = 0}), ComposedCallback(std::make_shared<EventTrace>())},
                             .seed = 3, .consensus = world.consensus(rank), .handle_signals = false});
            try {
                trainer.train(toy_data(12), toy_data(4, 3), {.epochs = 2, .batch_size = 4, .resume = ResumeOptions{folder / "states"}});
            } catch (const CheckpointError& error) {
                refusals[static_cast<std::size_t>(rank)] = error.what();
            }
        });
    for (std::thread& rank : ranks) rank.join();
    for (const std::string& refusal : refusals) CHECK_THAT(refusal, containing("it is of another run: world_size was 1, is 2; to go on all the same allow by name: world_size"));
}

TEST_CASE("a damaged state is passed over, with what is wrong with it; none at all is an error unless that is allowed", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder.path());
    first.train(2);
    fs::resize_file(folder / "step_6/model.safetensors", 100);
    ResumeSetup second(folder.path());
    const CapturedStderr captured;
    second.train(2, ResumeOptions{folder.path()});
    CHECK_THAT(captured.text(), Catch::Matchers::StartsWith("torchbus: warning: passed over " + (folder / "step_6/model.safetensors").string() + ": 100 bytes, expected ") && containing("the file is truncated"));
    CHECK(second.trainer->position().epoch == 2);
    ResumeSetup third(folder.path());
    CHECK(refusal(third, {folder / "nowhere"}) == (folder / "nowhere").string() + ": there is no whole training state to resume from; give a folder that was saved, e.g. checkpoints/step_100, or one that holds some");
    CHECK(third.train(1, ResumeOptions{folder / "nowhere", true}).outcome == Outcome::Finished);
    CHECK(third.trainer->position().epoch == 1);
}

TEST_CASE("states that are there and cannot be read are no reason to begin anew", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder.path());
    first.train(1);
    fs::resize_file(folder / "step_3/manifest.json", 10);
    ResumeSetup again(folder.path());
    CHECK_THAT(refusal(again, {folder.path(), true}), Catch::Matchers::StartsWith(folder.path().string() + ": none of the training states there can be read: " + (folder / "step_3/manifest.json").string()) &&
                                                          Catch::Matchers::EndsWith("; mend them, or move them away to begin anew"));
    std::ofstream(folder / "file") << "no folder";
    CHECK_THAT(refusal(again, {folder / "file", true}), containing("file: cannot list the folder: Not a directory"));
}

TEST_CASE("of several savers' folders the newest state is gone on from", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder / "epochs"), more(folder / "steps");
    first.train(1);
    more.train(2);
    ResumeSetup again(folder / "epochs");
    again.train(3, ResumeOptions{folder / "epochs", true, {}, {folder / "steps", folder / "nowhere"}});
    CHECK(std::ranges::count(again.recording->names(), "train_epoch_start") == 1);
}

TEST_CASE("an evaluation that begins anew draws the same random numbers", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    const auto train = [&](const fs::path& states, std::int64_t stop_at, bool fails, std::optional<ResumeOptions> resume = {}) {
        torch::manual_seed(1);
        torch::nn::Sequential model(torch::nn::Linear(6, 8), torch::nn::Dropout(0.5), torch::nn::Linear(8, 3));
        std::vector<float> drawn;
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_adamw(model->parameters(), {.learning_rate = 0.05}),
                         .callbacks = {make_save_training_state({.folder = states}), callback_of("draws", [&, stop_at](Attachment& run, Connections& connections) {
                             connections += run.bus.observe<EvalStepEnd>(Stage::Observe, [&, stop_at](const EvalStepEnd& event) {
                                 drawn.push_back(torch::rand({1}).item<float>());
                                 if (event.position.epoch != 1 || event.step != stop_at) return;
                                 if (fails) throw std::runtime_error("power is out");
                                 for (const Decision decision : {Decision::SaveNow, Decision::StopRun}) run.asker.ask(decision, "to be taken up again");
                             });
                         })}, .seed = 3, .handle_signals = false});
        try {
            trainer.train(toy_data(12), toy_data(80, 3), {.epochs = 2, .batch_size = 4, .resume = std::move(resume)});
        } catch (const SubscriberError&) {
        }
        return std::pair(drawn, copies_of(model->parameters()));
    };
    const auto whole = train(folder / "whole", -1, false);
    REQUIRE(whole.first.size() == 40);
    for (const bool fails : {false, true}) {
        const fs::path states = folder / (fails ? "failed" : "stopped");
        const auto half = train(states, 5, fails);
        CHECK(half.first.size() == (fails ? 6 : 8));
        const auto rest = train(states, -1, false, ResumeOptions{states});
        CHECK(rest.first == whole.first);
        CHECK(equal_bits(rest.second, whole.second));
    }
}

TEST_CASE("the rest of an epoch that max_steps cut off is not left out in silence", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup cut(folder.path()), same(folder.path()), longer(folder.path()), allowed(folder.path());
    cut.train(4, {}, {.max_steps = 4});  // three make an epoch
    same.train(4, ResumeOptions{folder.path()}, {.max_steps = 4});
    CHECK(same.trainer->position().step == 4);
    CHECK_THAT(refusal(longer, {folder.path()}), containing("its last epoch was cut off by max_steps after step 4, and the rest of that epoch's data would be left out; to go on all the same allow by name: max_steps"));
    allowed.train(3, ResumeOptions{folder.path(), false, {"max_steps"}});
    CHECK(allowed.trainer->position().step == 7);
    ResumeSetup whole(folder / "whole"), more(folder / "whole");
    whole.train(4, {}, {.max_steps = 6});  // the end of an epoch
    more.train(4, ResumeOptions{folder / "whole"}, {.max_steps = 9});
    CHECK(more.trainer->position().step == 9);
}

TEST_CASE("weights of another type are of another model", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder.path());
    first.train(1);
    auto wide = toy_model();
    wide->to(torch::kFloat64);
    ResumeSetup other(folder.path(), {}, wide);
    CHECK_THAT(refusal(other, {folder.path()}), containing("'0.weight' is of type Float, the model's of type Double"));
}

TEST_CASE("a run that waits for data saves and stops before it comes", "[trainer][resume][signal][thread]") {
    /// From the fifth batch on it comes when the run has saved, or after seconds.
    class Stalled final : public Dataset {
    public:
        explicit Stalled(std::shared_ptr<TensorDataset> data) : data_(std::move(data)) {}
        std::int64_t size() const override { return data_->size(); }
        bool prefers_threads() const override { return true; }
        Batch gather(std::span<const std::int64_t> indices, SampleSeed seed) const override {
            if (indices.front() >= 16) {
                stalls = true;
                for (int i = 0; i < 500 && !saved; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
            }
            return data_->gather(indices, seed);
        }
        mutable std::atomic<bool> stalls = false, saved = false;

    private:
        std::shared_ptr<TensorDataset> data_;
    };
    for (const bool in_evaluation : {false, true}) {
        const TemporaryFolder folder("resume");
        const auto stalled = std::make_shared<Stalled>(toy_data(40));
        bool in_time = false;
        ResumeSetup setup(folder.path(), {callback_of("watch", [&](Attachment& run, Connections& connections) {
            connections += run.bus.observe<StepCheckpoint>(Stage::Observe, [&](const StepCheckpoint&) {
                in_time = !stalled->saved.exchange(true);
            });
        })});
        const AnyDataset data = in_evaluation ? AnyDataset(toy_data(8)) : AnyDataset(stalled), eval = in_evaluation ? AnyDataset(stalled) : AnyDataset(toy_data(4, 3));
        setup.trainer->start_training(data, eval, {.batch_size = 4, .shuffle = false, .prefetch = 1});
        // Until a whole poll interval has passed without anything: then it waits.
        for (auto began = std::chrono::steady_clock::now(); !stalled->stalls || std::chrono::steady_clock::now() - began < std::chrono::milliseconds(50);) {
            began = std::chrono::steady_clock::now();
            REQUIRE(setup.trainer->advance());
        }
        for (const Decision decision : {Decision::SaveNow, Decision::StopRun}) setup.trainer->ask(decision, "operator", "the machine goes down");
        while (setup.trainer->advance()) {}
        CHECK(in_time);
        CHECK(setup.trainer->result().outcome == Outcome::Stopped);
        ResumeSetup rest(folder.path(), {callback_of("watch", [](Attachment&, Connections&) {})}), whole(folder / "whole", {callback_of("watch", [](Attachment&, Connections&) {})});
        rest.trainer->train(data, eval, {.batch_size = 4, .shuffle = false, .prefetch = 1, .resume = ResumeOptions{folder.path()}});
        whole.trainer->train(data, eval, {.batch_size = 4, .shuffle = false, .prefetch = 1});
        CHECK(equal_bits(copies_of(rest.model->parameters()), copies_of(whole.model->parameters())));
        CHECK(rest.trainer->position() == whole.trainer->position());
    }
}

TEST_CASE("a run that is stopped within an epoch saves before it ends the epoch", "[trainer][resume][golden]") {
    const TemporaryFolder folder("resume");
    ResumeSetup setup(folder.path(), {callback_of("asker", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&run](const TrainStepEnd& event) {
            if (event.position.step != 1) return;
            run.asker.ask(Decision::SaveNow, "later");
            run.asker.ask(Decision::StopRun, "later");
        });
    })});
    setup.train(2);
    auto names = setup.recording->names();
    names.erase(names.begin(), std::ranges::find(names, "train_step_end"));
    CHECK(std::erase(names, "checkpoint_saved") == 1);  // whenever the thread has written it
    CHECK(names == std::vector<std::string>{"train_step_end", "decision_taken", "decision_taken", "step_checkpoint", "train_epoch_end", "training_run_end", "run_closed"});
}

TEST_CASE("a layer of batch norm that is frozen stays so where a run goes on within an epoch", "[trainer][resume][freeze]") {
    const TemporaryFolder folder("resume");
    const auto with_batch_norm = [](std::uint64_t seed) {
        torch::manual_seed(seed);
        return torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8), torch::nn::ReLU(), torch::nn::Linear(8, 3));
    };
    const auto asks = [](std::vector<Decision> decisions) {
        return callback_of("asker", [=](Attachment& run, Connections& connections) {
            connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [=, &run](const TrainStepEnd& event) {
                if (event.position.step == 1)
                    for (const Decision decision : decisions) run.asker.ask(decision, "later");
            });
        });
    };
    ResumeSetup whole(folder / "whole", {asks({}), make_freeze({.names = {"1.*"}})}, with_batch_norm(1)), first(folder / "half", {asks({Decision::SaveNow, Decision::StopRun}), make_freeze({.names = {"1.*"}})}, with_batch_norm(1));
    ResumeSetup second(folder / "half", {asks({}), make_freeze({.names = {"1.*"}})}, with_batch_norm(99));
    whole.train(1);
    first.train(1);
    second.train(1, ResumeOptions{folder / "half"});
    CHECK(equal_bits(copies_of(second.model->buffers()), copies_of(with_batch_norm(1)->buffers())));
    CHECK(equal_bits(copies_of(second.model->parameters()), copies_of(whole.model->parameters())));
}

namespace {

/// Counts steps; its state was called `seen` in version 1.
class Counter final : public Callback {
public:
    explicit Counter(int version) : version_(version) {}
    std::string kind() const override { return "counter"; }
    Declaration declare() const override { return {.listens = {"train_step_end"}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.observe<TrainStepEnd>(Stage::Observe, [this](const TrainStepEnd&) { ++steps; });
    }
    void detach() override { connections_.clear(); }
    SavedState state() const override { return {{{version_ == 1 ? "seen" : "steps", steps}}, {}, version_}; }
    void load_state(const SavedState& state) override { steps = state.values.at(state.version == 1 ? "seen" : "steps"); }
    std::int64_t steps = 0;

private:
    int version_;
    Connections connections_;
};

}  // namespace

TEST_CASE("a callback reads the states of its older versions; one of a newer is refused", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    const auto run = [&](int version, std::int64_t epochs, std::optional<ResumeOptions> resume) {
        auto counter = std::make_shared<Counter>(version);
        ResumeSetup setup(folder.path(), {ComposedCallback(counter)});
        setup.train(epochs, std::move(resume));
        return counter->steps;
    };
    CHECK(run(1, 1, {}) == 3);
    CHECK(run(2, 2, ResumeOptions{folder / "step_3"}) == 6);  // and saves step_6 in version 2
    CHECK_THROWS_WITH(run(1, 3, ResumeOptions{folder / "step_6"}),
                      containing("step_6: the part 'callback.counter' is of version 2, this program knows up to 1; use the one that saved it, or a newer one; nothing was loaded"));
}

TEST_CASE("a run that goes on elsewhere is told what may change its bits", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    ResumeSetup first(folder.path());
    first.train(1);
    TrainingState state = read_training_state(folder / "step_3");
    state.parts.at("configuration").values["environment"]["libtorch"] = "1.0";
    write_training_state(folder / "step_3", state);
    const CapturedStderr captured;
    ResumeSetup second(folder.path());
    second.train(2, ResumeOptions{folder / "step_3"});
    CHECK_THAT(captured.text(), containing("environment: libtorch was \"1.0\", is \"2") && containing("may differ in the last bits"));
}

TEST_CASE("a run that has decayed is prolonged from before its decay, as if it had been planned so long", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    const auto scheduled = [] {
        return std::vector<ComposedCallback>{make_learning_rate_schedule({.schedule = make_warmup_stable_decay_schedule({.warmup = "2step", .decay = "4step"}), .save_around_decay = true})};
    };
    ResumeSetup planned(folder / "planned", scheduled()), first(folder / "first", scheduled()), prolonged(folder / "first", scheduled(), toy_model(99));
    planned.train(8);
    first.train(4);  // 12 updates, of which the last four decay
    const auto saved = names_in(folder / "first");
    CHECK(saved == std::vector<std::string>{"latest", "step_12", "step_3", "step_6", "step_8", "step_9"});
    const TrainingState before = read_training_state(folder / "first/step_8");
    CHECK(before.about.at("reason") == "learning_rate_schedule: the decay begins");
    prolonged.train(8, ResumeOptions{folder / "first/step_8"});
    CHECK(equal_bits(copies_of(prolonged.model->parameters()), copies_of(planned.model->parameters())));
    CHECK_FALSE(equal_bits(copies_of(first.model->parameters()), copies_of(planned.model->parameters())));
}

TEST_CASE("a run goes on after a decay, which it saves, and from there with a stable stretch anew", "[trainer][resume]") {
    const TemporaryFolder folder("resume");
    const auto scheduled = [](WarmupStableDecayScheduleOptions options) {
        return std::vector<ComposedCallback>{make_learning_rate_schedule({.schedule = make_warmup_stable_decay_schedule(std::move(options)), .save_around_decay = true})};
    };
    const WarmupStableDecayScheduleOptions twice{.warmup = 0, .decay = "2step", .earlier_decays = {"5step"}}, whole{.warmup = 0, .decay = "2step"};
    ResumeSetup both(folder / "both", scheduled(twice));
    both.train(4);
    std::vector<std::string> reasons;
    for (const char* step : {"step_3", "step_5", "step_10"}) reasons.push_back(read_training_state(folder / "both" / step).about.at("reason"));
    CHECK(reasons[1] == "learning_rate_schedule: the decay is over");
    CHECK(reasons[2] == "learning_rate_schedule: the decay begins");
    // The same by two runs: one of two epochs with its decay at the end, taken up again behind it.
    ResumeSetup planned(folder / "planned", scheduled({.warmup = 0, .decay = "2step", .earlier_decays = {"6step"}})), first(folder / "first", scheduled(whole)),
        second(folder / "first", scheduled({.warmup = 0, .decay = "2step", .continued_from = "6step"}), toy_model(99));
    planned.train(4);
    first.train(2);
    second.train(4, ResumeOptions{folder / "first/step_6"});
    CHECK(equal_bits(copies_of(second.model->parameters()), copies_of(planned.model->parameters())));
}
