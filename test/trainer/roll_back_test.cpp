// A run that is put back to a saved state while it is under way, and leaves out what led there.
#include <fstream>
#include <map>
#include <thread>

#include <torchbus/callbacks/early_stopping.hpp>
#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/label_smoothing.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/model_ema.hpp>
#include <torchbus/callbacks/nan_policy.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/callbacks/step_evaluation.hpp>
#include <torchbus/callbacks/stochastic_weight_averaging.hpp>
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
using Catch::Matchers::StartsWith;
using Action = NanPolicyOptions::Action;

namespace {

torch::nn::Sequential with_dropout(std::uint64_t seed = 1) {
    torch::manual_seed(seed);
    return torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8), torch::nn::ReLU(), torch::nn::Dropout(0.3), torch::nn::Linear(8, 3));
}

/// Ten batches of four, in order; a sample that is not finite spoils its batch, whatever the weights are.
struct RollBackSetup {
    torch::nn::Sequential model;
    fs::path folder;
    std::shared_ptr<EventTrace> recording = std::make_shared<EventTrace>();
    std::vector<std::string> left_out;
    std::vector<RolledBack> rolled_back;
    std::unique_ptr<Trainer> trainer;
    std::shared_ptr<TensorDataset> data;

    explicit RollBackSetup(fs::path its_folder, NanPolicyOptions policy, std::vector<ComposedCallback> more = {}, torch::nn::Sequential its_model = toy_model())
        : model(std::move(its_model)), folder(std::move(its_folder)) {
        more.emplace_back(make_metrics());
        more.emplace_back(make_nan_policy(policy));
        more.emplace_back(make_save_training_state({.folder = folder, .every = "3step", .keep = 0}));
        more.push_back(callback_of("tap", [this](Attachment& run, Connections& connections) {
            connections += run.bus.observe<RolledBack>(Stage::Observe, [this](const RolledBack& event) { rolled_back.push_back(event); });
            connections += run.bus.observe<WindowLeftOut>(Stage::Observe, [this](const WindowLeftOut& event) {
                std::string samples;
                for (const Batch& batch : event.window.batches)
                    for (const std::int64_t index : batch.indices) samples += std::to_string(index) + " ";
                left_out.push_back(samples + event.left_out.requester);
            });
        }));
        more.emplace_back(recording);
        trainer = std::make_unique<Trainer>(TrainerOptions{.model = model, .loss = cross_entropy, .optimizer = make_adamw(model->parameters(), {.learning_rate = 0.05}),
                                                           .callbacks = std::move(more), .seed = 3, .handle_signals = false});
        spoil({});
    }
    void spoil(const std::vector<std::int64_t>& samples) {
        const auto clean = toy_data(40);
        at::Tensor inputs = clean->inputs().clone();
        for (const std::int64_t sample : samples) inputs[sample][0] = std::numeric_limits<float>::quiet_NaN();
        data = std::make_shared<TensorDataset>(inputs, clean->targets());
    }
    RunResult train(std::int64_t epochs = 1, std::optional<ResumeOptions> resume = {}) {
        return trainer->train(data, toy_data(4, 3), {.epochs = epochs, .batch_size = 4, .shuffle = false, .resume = std::move(resume)});
    }
    std::vector<std::string> lines_of(const std::string& event) const {
        std::vector<std::string> found;
        for (const std::string& line : recording->lines())
            if (line.starts_with(event + " ")) found.push_back(line);
        return found;
    }
};

ComposedCallback asks_at_attempt(std::int64_t attempt, std::vector<Decision> decisions) {
    return callback_of("asker", [=](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [=, &run](const TrainStepEnd& event) {
            if (event.position.attempts == attempt)
                for (const Decision decision : decisions) run.asker.ask(decision, "to be taken up again");
        });
    });
}

}  // namespace

TEST_CASE("a run that is rolled back goes on from the newest state, and leaves out the window that led there", "[trainer][roll_back][golden]") {
    const TemporaryFolder folder("roll-back");
    RollBackSetup rolls(folder / "states", {.non_finite = Action::RollBack}), skips(folder / "skips", {});
    rolls.spoil({30});  // of the eighth batch
    skips.spoil({30});
    CHECK(rolls.train().outcome == Outcome::Finished);
    skips.train();
    REQUIRE(rolls.rolled_back.size() == 1);
    const RolledBack& back = rolls.rolled_back.front();
    CHECK(back.from.step == 7);
    CHECK(back.position.step == 6);
    CHECK(fs::path(back.path) == folder / "states" / "step_6");
    CHECK(back.left_out.batches == BatchRange{0, 7, 1});
    CHECK(back.left_out.requester == "nan_policy");
    CHECK_THAT(back.left_out.reason, StartsWith("the training loss is nan in epoch 1 after step 7"));
    CHECK(rolls.left_out == std::vector<std::string>{"28 29 30 31 nan_policy"});
    // Nothing is drawn here: to leave a window out is then to skip its update.
    CHECK(equal_bits(copies_of(rolls.model->parameters()), copies_of(skips.model->parameters())));
    CHECK(rolls.trainer->blackboard().number("nan_policy.faults").value() == 1);  // it is not forgotten with the rest
    CHECK(rolls.trainer->position().step == 9);
    CHECK(rolls.trainer->position().attempts == 9);
    CHECK(rolls.trainer->position().samples == 36);
    CHECK(rolls.trainer->blackboard().number("train.loss").value() > 0);  // the mean of the epoch has no part of the NaN
    std::vector<std::string> lines;
    for (std::string line : rolls.recording->lines()) {
        if (line.starts_with("checkpoint_saved")) continue;  // whenever the thread has written it
        while (line.find(folder.path().string()) != std::string::npos) line.replace(line.find(folder.path().string()), folder.path().string().size(), "FOLDER");
        lines.push_back(std::move(line));
    }
    CHECK(compare_with_golden("rolled_back", lines) == "");
}

TEST_CASE("what is repeated after a roll-back is what it was before", "[trainer][roll_back]") {
    const TemporaryFolder folder("roll-back");
    RollBackSetup setup(folder / "states", {.non_finite = Action::RollBack}, {}, with_dropout());
    setup.spoil({22});  // of the sixth batch: two windows behind the state of step 3
    setup.train();
    const auto steps = setup.lines_of("train_step_end");
    REQUIRE(steps.size() == 6 + 6);
    CHECK(steps[6] == steps[3]);
    CHECK(steps[7] == steps[4]);
}

TEST_CASE("windows before the fault may be left out, too, within the epoch", "[trainer][roll_back]") {
    const TemporaryFolder folder("roll-back");
    RollBackSetup setup(folder / "states", {.non_finite = Action::RollBack, .leave_out = 3});
    setup.spoil({16});
    setup.train();
    CHECK(setup.left_out == std::vector<std::string>{"12 13 14 15 nan_policy", "16 17 18 19 nan_policy"});  // the third before was saved already
    CHECK(setup.trainer->position().step == 8);
    RollBackSetup early(folder / "early", {.non_finite = Action::RollBack, .leave_out = 9}, {make_gradient_accumulation({2})});
    early.spoil({30});
    early.train(1);
    CHECK(early.rolled_back.front().left_out.batches == BatchRange{0, 0, 8});
    RollBackSetup last(folder / "last", {.non_finite = Action::RollBack, .leave_out = 2}, {make_gradient_accumulation({4}), asks_at_attempt(1, {Decision::SaveNow})});
    last.spoil({38});
    last.train(2);
    CHECK(last.rolled_back.front().left_out.batches == BatchRange{0, 4, 6});  // a whole window before the short one
}

TEST_CASE("a fault in a later epoch goes back to its beginning, or to the state within it", "[trainer][roll_back]") {
    const TemporaryFolder folder("roll-back");
    RollBackSetup setup(folder / "states", {.non_finite = Action::RollBack});
    setup.spoil({2});
    CHECK_THROWS_WITH(setup.train(2), StartsWith("nan_policy asked to roll back (the training loss is nan in epoch 1 after step 0") &&
                                          Catch::Matchers::EndsWith("no training state of this run has been saved; add save_training_state, or let it save earlier"));
    CHECK(setup.recording->names().back() == "run_closed");
    RollBackSetup early(folder / "early", {.non_finite = Action::RollBack});
    early.spoil({9});
    CHECK_THROWS_AS(early.train(), CheckpointError);
    CHECK(newest_training_state(folder / "early") == folder / "early" / "step_2");  // nothing was put back yet, so nothing is lost

    RollBackSetup later(folder / "later", {.non_finite = Action::RollBack}, {callback_of("spoiler", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept<BatchReady>([&run](BatchReady& event) {
            if (event.position.epoch == 1 && event.batch.indices.front() == 4 && run.moment.mode == Mode::Train) event.batch.inputs = event.batch.inputs * std::numeric_limits<float>::infinity();
        });
    })});
    CHECK(later.train(2).outcome == Outcome::Finished);
    REQUIRE(later.rolled_back.size() == 1);
    CHECK(later.rolled_back.front().position.step == 10);
    CHECK(later.rolled_back.front().left_out.batches == BatchRange{1, 1, 1});
    CHECK(later.trainer->position().step == 19);
    CHECK(later.trainer->history().epochs().size() == 2);
    CHECK(later.lines_of("train_epoch_start").size() == 3);
}

TEST_CASE("a run is rolled back as often as it may, and fails at the next fault", "[trainer][roll_back]") {
    const TemporaryFolder folder("roll-back");
    RollBackSetup enough(folder / "enough", {.non_finite = Action::RollBack, .max_roll_backs = 2}), too_few(folder / "few", {.non_finite = Action::RollBack, .max_roll_backs = 1});
    for (RollBackSetup* setup : {&enough, &too_few}) setup->spoil({18, 21});
    CHECK(enough.train().outcome == Outcome::Finished);
    CHECK(enough.rolled_back.back().count == 2);
    CHECK(enough.left_out.size() == 3);  // the first comes by twice
    CHECK_THROWS_WITH(too_few.train(), StartsWith("nan_policy: the run was rolled back 1 times, as often as max_roll_backs allows, and again the training loss is nan"));
}

TEST_CASE("of two savers the newest state is put back, whoever wrote it", "[trainer][roll_back]") {
    const TemporaryFolder folder("roll-back");
    RollBackSetup setup(folder / "often", {.non_finite = Action::RollBack}, {ComposedCallback("seldom", make_save_training_state({.folder = folder / "seldom", .every = "2step", .keep = 0}))});
    setup.spoil({30});
    setup.train();
    CHECK(setup.rolled_back.front().position.step == 6);
    RollBackSetup other(folder / "often_too", {.non_finite = Action::RollBack}, {ComposedCallback("seldom", make_save_training_state({.folder = folder / "seldom_too", .every = "5step", .keep = 0}))});
    other.spoil({30});
    other.train();
    CHECK(other.rolled_back.front().position.step == 6);
}

TEST_CASE("what is asked for beside a roll-back is done where the run goes on", "[trainer][roll_back]") {
    const TemporaryFolder folder("roll-back");
    RollBackSetup setup(folder / "states", {.non_finite = Action::RollBack}, {asks_at_attempt(8, {Decision::EvaluateNow, Decision::SaveNow})});
    setup.spoil({30});
    setup.train();
    auto names = setup.recording->names();
    std::erase(names, "checkpoint_saved");
    const auto back = std::ranges::find(names, "rolled_back");
    REQUIRE(back != names.end());
    CHECK(std::vector<std::string>(back - 2, back + 5) == std::vector<std::string>{"decision_taken", "rolling_back", "rolled_back", "decision_taken", "decision_taken", "step_checkpoint", "eval_epoch_start"});
}

TEST_CASE("batches stay left out where a run goes on with batches of another size", "[trainer][roll_back][resume]") {
    const TemporaryFolder folder("roll-back");
    RollBackSetup half(folder / "states", {.non_finite = Action::RollBack}, {asks_at_attempt(8, {Decision::SaveNow, Decision::StopRun})});
    half.spoil({30});
    half.train();
    RollBackSetup rest(folder / "states", {.non_finite = Action::RollBack}, {asks_at_attempt(99, {})});
    rest.spoil({30});
    rest.trainer->train(rest.data, toy_data(4, 3), {.batch_size = 2, .shuffle = false, .resume = ResumeOptions{folder / "states", false, {"batch_size", "batches"}}});
    CHECK(rest.left_out == std::vector<std::string>{"28 29 nan_policy", "30 31 nan_policy"});
    CHECK(rest.rolled_back.empty());
}

TEST_CASE("a damaged state is passed over in a roll-back, with what is wrong with it", "[trainer][roll_back]") {
    const TemporaryFolder folder("roll-back");
    const auto damages = [&](std::vector<std::string> names) {
        ComposedCallback vandal = callback_of("vandal", [=, &folder](Attachment& run, Connections& connections) {
            connections += run.bus.intercept<RollingBack>([=, &folder](RollingBack&) {
                for (const std::string& name : names) fs::resize_file(folder / "states" / name / "model.safetensors", 40);
            });
        });
        vandal.after = {"save_training_state"};
        return vandal;
    };
    RollBackSetup setup(folder / "states", {.non_finite = Action::RollBack}, {damages({"step_6"})});
    setup.spoil({30});
    CapturedStderr captured;
    setup.train();
    CHECK_THAT(captured.text(), containing("passed over") && containing("step_6") && containing("model.safetensors"));
    CHECK(setup.rolled_back.front().position.step == 3);
    CHECK(setup.trainer->position().step == 9);
    fs::remove_all(folder / "states");
    RollBackSetup none(folder / "states", {.non_finite = Action::RollBack}, {damages({"step_3", "step_6"})});
    none.spoil({30});
    CHECK_THROWS_WITH(none.train(), StartsWith("none of the run's training states can be read: ") && containing("step_6") && containing("step_3"));
}

TEST_CASE("what is left out stays so in a run that goes on from a state saved after the roll-back", "[trainer][roll_back][resume]") {
    const TemporaryFolder folder("roll-back");
    RollBackSetup whole(folder / "whole", {.non_finite = Action::RollBack}, {asks_at_attempt(99, {})}, with_dropout());
    whole.spoil({30});
    whole.train(2);
    CHECK(whole.rolled_back.size() == 2);  // the sample is in the second epoch, too
    // At attempt 8, the skipped one, a save and a stop are asked for beside the roll-back: it goes first.
    RollBackSetup half(folder / "half", {.non_finite = Action::RollBack}, {asks_at_attempt(8, {Decision::SaveNow, Decision::StopRun})}, with_dropout());
    half.spoil({30});
    CHECK(half.train(2).outcome == Outcome::Stopped);
    CHECK(half.rolled_back.size() == 1);
    CHECK(half.left_out.empty());
    CHECK(half.trainer->position().step == 6);
    RollBackSetup rest(folder / "half", {.non_finite = Action::RollBack}, {asks_at_attempt(99, {})}, with_dropout(99));
    rest.spoil({30});
    CHECK(rest.train(2, ResumeOptions{folder / "half"}).outcome == Outcome::Finished);
    CHECK(rest.rolled_back.size() == 1);
    CHECK(rest.rolled_back.front().count == 2);
    CHECK(equal_bits(copies_of(rest.model->parameters()), copies_of(whole.model->parameters())));
    CHECK(equal_bits(copies_of(rest.model->buffers()), copies_of(whole.model->buffers())));
}

TEST_CASE("averages of weights go back with the weights", "[trainer][roll_back]") {
    const TemporaryFolder folder("roll-back");
    const auto averages = []() -> std::vector<ComposedCallback> {
        return {make_model_ema({.decay = 0.8}), make_stochastic_weight_averaging({.start = "1step", .every = "1step"}), make_early_stopping({.monitor = "eval.ema.loss", .restore_best = true})};
    };
    RollBackSetup rolls(folder / "states", {.non_finite = Action::RollBack}, averages()), skips(folder / "skips", {}, averages());
    for (RollBackSetup* setup : {&rolls, &skips}) {
        setup->spoil({30});
        setup->train(2);
    }
    REQUIRE(rolls.rolled_back.size() == 2);
    for (const char* number : {"eval.loss", "eval.ema.loss", "eval.swa.loss"}) {
        INFO(number);
        REQUIRE(rolls.trainer->history().latest(number).has_value());
        CHECK(rolls.trainer->history().latest(number) == skips.trainer->history().latest(number));
    }
    CHECK(equal_bits(copies_of(rolls.model->parameters()), copies_of(skips.model->parameters())));
}

TEST_CASE("two updates go back together, each in its rhythm", "[trainer][roll_back][updates]") {
    const TemporaryFolder folder("roll-back");
    const auto trained = [&](const std::string& name, const AnyDataset& data) {
        torch::manual_seed(1);
        torch::nn::Sequential both(torch::nn::Linear(6, 3), torch::nn::Linear(6, 3));
        const auto step_of = [both](std::size_t place) -> StepFunction {
            return [both, place](const Batch& batch) mutable {
                const at::Tensor output = both[place]->as<torch::nn::Linear>()->forward(batch.inputs);
                return StepOutput{output, cross_entropy(output, batch.targets)};
            };
        };
        Trainer trainer({.model = both,
                         .updates = {{"critic", make_adamw(both[0]->parameters(), {.learning_rate = 0.05}), step_of(0), 1},
                                     {"generator", make_adamw(both[1]->parameters(), {.learning_rate = 0.05}), step_of(1), 2}},
                         .callbacks = {make_nan_policy({.non_finite = Action::RollBack}), make_save_training_state({.folder = folder / name, .every = "4step", .keep = 0})},
                         .handle_signals = false});
        trainer.train(data, {.batch_size = 4, .shuffle = false});
        CHECK(trainer.position().step == 9 + 5);
        return copies_of(both->parameters());
    };
    const auto clean = toy_data(36);
    const at::Tensor spoiled = torch::full({4, 6}, std::numeric_limits<float>::quiet_NaN());
    // After the seventh of nine windows, where both are due.
    const auto with = [](const at::Tensor& rows, const at::Tensor& between) { return torch::cat({rows.narrow(0, 0, 28), between, rows.narrow(0, 28, 8)}); };
    const auto data = std::make_shared<TensorDataset>(with(clean->inputs(), spoiled), with(clean->targets(), torch::zeros({4}, torch::kLong)));
    CHECK(equal_bits(trained("rolls", data), trained("whole", clean)));
}

TEST_CASE("a stream is begun anew to go back within it", "[trainer][roll_back][data]") {
    class Stream final : public IterableDataset {
    public:
        Stream(std::shared_ptr<TensorDataset> rows, std::int64_t spoiled) : rows_(std::move(rows)), spoiled_(spoiled) {}
        void begin(SampleSeed) override { next_ = 0, ++begun; }
        std::optional<Item> next() override {
            if (next_ == rows_->size()) return std::nullopt;
            const std::int64_t row = next_++;
            return Item{rows_->inputs()[row] * (row == spoiled_ ? std::numeric_limits<double>::quiet_NaN() : 1.0), rows_->targets()[row], {}, 0};
        }
        int begun = 0;

    private:
        std::shared_ptr<TensorDataset> rows_;
        std::int64_t spoiled_, next_ = 0;
    };
    const TemporaryFolder folder("roll-back");
    RollBackSetup rolls(folder / "states", {.non_finite = Action::RollBack}), whole(folder / "whole", {});
    const auto all = toy_data(40);
    const auto stream = std::make_shared<Stream>(all, 29);
    CHECK(rolls.trainer->train(stream, toy_data(4, 3), {.batch_size = 4}).outcome == Outcome::Finished);
    CHECK(stream->begun == 2);
    REQUIRE(rolls.rolled_back.size() == 1);
    CHECK(rolls.rolled_back.front().left_out.batches == BatchRange{0, 7, 1});
    const auto without = [](const at::Tensor& rows) { return torch::cat({rows.narrow(0, 0, 28), rows.narrow(0, 32, 8)}); };
    whole.data = std::make_shared<TensorDataset>(without(all->inputs()), without(all->targets()));
    whole.train();
    CHECK(equal_bits(copies_of(rolls.model->parameters()), copies_of(whole.model->parameters())));
}

TEST_CASE("a roll-back that is asked for within an evaluation waits for its end", "[trainer][roll_back]") {
    const TemporaryFolder folder("roll-back");
    bool asked = false;
    RollBackSetup setup(folder / "states", {.non_finite = Action::RollBack}, {make_step_evaluation({.every = "5step"}), callback_of("asker", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<EvalStepStart>(Stage::Observe, [&](const EvalStepStart& event) {
            if (event.position.step == 5 && !std::exchange(asked, true)) run.asker.ask_to_roll_back("the evaluation says so", {0, 3, 2});
        });
    })});
    CHECK(setup.train().outcome == Outcome::Finished);
    auto names = setup.recording->names();
    std::erase(names, "checkpoint_saved");
    const auto back = std::ranges::find(names, "rolling_back");
    REQUIRE(back != names.end());
    CHECK(std::vector<std::string>(back - 2, back + 2) == std::vector<std::string>{"eval_epoch_end", "decision_taken", "rolling_back", "rolled_back"});
    CHECK(setup.rolled_back.front().position.step == 3);
    CHECK(setup.left_out == std::vector<std::string>{"12 13 14 15 asker", "16 17 18 19 asker"});
    CHECK(setup.trainer->position().step == 8);
}

TEST_CASE("options that were changed after the state was saved are again as they were then", "[trainer][roll_back]") {
    const TemporaryFolder folder("roll-back");
    Trainer* trainer = nullptr;
    std::map<std::int64_t, std::string> before;  // by attempts
    RollBackSetup setup(folder / "states", {.non_finite = Action::RollBack}, {ComposedCallback("clip", make_gradient_clipping({.max_norm = 1.0})), ComposedCallback("smooth", make_label_smoothing({.smoothing = 0.125})),
        callback_of("operator", [&](Attachment& run, Connections& connections) {
            connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) {
                const std::int64_t at = event.position.attempts;
                if (at == 2 || at == 7) trainer->change_option("clip", "max_norm", at, "operator");
                if (at == 7) trainer->change_option("smooth", "smoothing", 0.5, "operator");
                if (at == 7) trainer->change_option("optimizer", "learning_rate", 0.5, "operator");
            });
            connections += run.bus.observe<OptionChanged>(Stage::Observe, [&](const OptionChanged& event) { before[event.position.attempts] += event.option + " " + event.from + " "; });
        })});
    trainer = setup.trainer.get();
    setup.spoil({30});  // of the eighth batch: the seventh comes by twice, with the same changes of the same options
    setup.train();
    REQUIRE(setup.rolled_back.size() == 1);
    CHECK(before == std::map<std::int64_t, std::string>{{2, "max_norm 1 "}, {7, "max_norm 2 smoothing 0.125 learning_rate 0.05 max_norm 2 smoothing 0.125 learning_rate 0.05 "}});
}

TEST_CASE("a roll-back needs somebody who saves states", "[trainer][roll_back]") {
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1}),
                     .callbacks = {make_nan_policy({.spike = Action::RollBack})}, .handle_signals = false});
    CHECK_THROWS_WITH(trainer.train(toy_data(8), {.batch_size = 4}),
                      "'nan_policy' rolls the run back, and nobody saves states that it could go back to; add save_training_state, or give 'nan_policy' another action");
}

TEST_CASE("two ranks roll back together, to what the first of them has saved", "[trainer][roll_back][thread]") {
    const TemporaryFolder folder("roll-back");
    FakeWorld world(2);
    std::vector<std::vector<at::Tensor>> parameters(2);
    std::vector<std::vector<std::string>> names(2);
    std::vector<std::int64_t> steps(2);
    std::mutex seeding;
    const auto run_rank = [&](int rank) {
        std::unique_lock lock(seeding);
        auto model = toy_model();
        lock.unlock();
        const auto place = static_cast<std::size_t>(rank);
        const auto recording = std::make_shared<EventTrace>();
        const auto clean = toy_data(40);
        at::Tensor inputs = clean->inputs().clone();
        if (rank == 1) inputs[26][0] = std::numeric_limits<float>::quiet_NaN();
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1}),
                         .callbacks = {ComposedCallback(world.reducer(rank)), make_nan_policy({.non_finite = Action::RollBack}),
                                       make_save_training_state({.folder = folder / "states", .every = "2step", .keep = 0}), ComposedCallback(recording)},
                         .consensus = world.consensus(rank), .handle_signals = false});
        trainer.train(std::make_shared<TensorDataset>(inputs, clean->targets()), {.batch_size = 4, .shuffle = false});
        parameters[place] = copies_of(model->parameters());
        names[place] = recording->names();
        steps[place] = trainer.position().step;
    };
    std::thread other([&] { run_rank(1); });
    run_rank(0);
    other.join();
    CHECK(steps == std::vector<std::int64_t>{9, 9});
    CHECK(std::ranges::count(names[0], "rolled_back") == 1);
    CHECK(std::ranges::count(names[1], "rolled_back") == 1);
    CHECK(equal_bits(parameters[0], parameters[1]));
    CHECK(parameters[0].front().isfinite().all().item<bool>());
}
