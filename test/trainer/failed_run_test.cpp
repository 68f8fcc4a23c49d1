// What a run that fails leaves on the disk, and that it goes on from there as if it had not failed.
#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/model_ema.hpp>
#include <torchbus/callbacks/reduce_on_plateau.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/callbacks/sharpness_aware.hpp>
#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/event_trace.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
namespace fs = std::filesystem;

namespace {

constexpr int kNever = -1;

/// Toy data of which one sample cannot be read in one epoch.
class BreakingData final : public Dataset {
public:
    std::int64_t epoch = kNever, sample = kNever;
    std::int64_t size() const override { return data_->size(); }
    Batch gather(std::span<const std::int64_t> indices, SampleSeed seed) const override {
        if (seed.epoch == epoch && std::ranges::count(indices, sample) > 0) throw std::runtime_error("the disk of the data is gone");
        return data_->gather(indices, seed);
    }

private:
    std::shared_ptr<TensorDataset> data_ = toy_data(24);
};

/// Two epochs of six batches, shuffled, with dropout and batch norm.
struct FailedRunSetup {
    torch::nn::Sequential model;
    std::shared_ptr<BreakingData> data = std::make_shared<BreakingData>();
    std::shared_ptr<EventTrace> recording = std::make_shared<EventTrace>();
    int losses = 0, breaks_at_loss = kNever;
    std::int64_t epochs = 2;
    std::unique_ptr<Trainer> trainer;

    explicit FailedRunSetup(const fs::path& folder, std::uint64_t seed = 1, std::vector<ComposedCallback> more = {}) {
        torch::manual_seed(seed);
        model = torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8), torch::nn::Dropout(0.3), torch::nn::Linear(8, 3));
        more.emplace_back(make_metrics());
        more.emplace_back(make_model_ema({.decay = 0.8}));
        more.emplace_back(make_save_training_state({.folder = folder, .keep = 0}));
        more.emplace_back(recording);
        trainer = std::make_unique<Trainer>(TrainerOptions{
            .model = model, .loss = [this](const at::Tensor& output, const at::Tensor& targets) {
                if (losses++ == breaks_at_loss) throw std::runtime_error("a loss that cannot be computed");
                return cross_entropy(output, targets);
            }, .optimizer = make_adamw(model->parameters(), {.learning_rate = 0.05}), .callbacks = std::move(more), .seed = 3, .handle_signals = false});
    }
    RunResult train(std::optional<ResumeOptions> resume = {}, int workers = 0) {
        return trainer->train(data, toy_data(4, 3), {.epochs = epochs, .batch_size = 4, .workers = workers, .resume = std::move(resume)});
    }
    std::vector<at::Tensor> weights() const {
        auto all = copies_of(model->parameters());
        for (const at::Tensor& buffer : copies_of(model->buffers())) all.push_back(buffer);
        return all;
    }
    /// From the first event after the start on.
    std::vector<std::string> lines() const {
        const auto names = recording->names();
        return {recording->lines().begin() + (std::ranges::find(names, "training_run_start") - names.begin()) + 1, recording->lines().end()};
    }
};

/// Of a run that failed in `folder`: that another goes on from there and is the whole run then, to the bit.
void check_that_it_goes_on(const fs::path& folder, const FailedRunSetup& whole, bool events_too = true, std::vector<ComposedCallback> more = {}) {
    FailedRunSetup rest(folder, 99, std::move(more));
    CHECK(rest.train(ResumeOptions{folder}).outcome == Outcome::Finished);
    CHECK(equal_bits(rest.weights(), whole.weights()));
    if (!events_too) return;
    const auto without_saved = [](std::vector<std::string> lines) {  // whenever the thread has written it
        std::erase_if(lines, [](const std::string& line) { return line.starts_with("checkpoint_saved"); });
        return lines;
    };
    const auto after = without_saved(rest.lines()), all = without_saved(whole.lines());
    REQUIRE(after.size() < all.size());
    CHECK(after == std::vector<std::string>{all.end() - static_cast<std::ptrdiff_t>(after.size()), all.end()});
}

ComposedCallback throws_at(std::function<void(Attachment&, Connections&)> connect) { return callback_of("onlooker", std::move(connect)); }
ComposedCallback looks_on() { return callback_of("onlooker", [](Attachment&, Connections&) {}); }

}  // namespace

TEST_CASE("a run that fails in any forward leaves the state of the update before", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup whole(folder / "whole");
    whole.train();
    // An epoch has six batches of training and, seen through two views, two of evaluation.
    for (int loss = 1; loss < 16; ++loss) {
        INFO("loss " << loss);
        const fs::path place = folder / std::to_string(loss);
        FailedRunSetup fails(place);
        fails.breaks_at_loss = loss;
        CHECK_THROWS_WITH(fails.train(), "a loss that cannot be computed");
        const auto newest = newest_training_state(place);
        REQUIRE(newest);
        const TrainingState state = read_training_state(*newest);
        const auto updates = [](int losses) { return losses <= 6 ? losses : losses <= 8 ? 6 : losses <= 14 ? losses - 2 : 12; };
        CHECK(state.parts.at("position").values.at("step") == updates(loss));
        CHECK(fails.recording->names().back() == "run_closed");
        CHECK(std::ranges::count(fails.recording->names(), "checkpoint_saved") == (loss < 8 ? 1 : loss == 8 ? 1 : 2));
        check_that_it_goes_on(place, whole);
    }
}

TEST_CASE("a run whose data cannot be read leaves the state before it", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup whole(folder / "whole");
    whole.train();
    for (const int workers : {0, 2}) {
        const fs::path place = folder / std::to_string(workers);
        FailedRunSetup fails(place);
        fails.data->epoch = 1;
        fails.data->sample = 7;
        CHECK_THROWS_WITH(fails.train({}, workers), containing("the disk of the data is gone"));
        CHECK(read_training_state(newest_training_state(place).value()).about.at("reason") == "the run failed: the disk of the data is gone");
        check_that_it_goes_on(place, whole);
    }
}

TEST_CASE("a run that a subscriber fails after an update leaves the state of that update", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup whole(folder / "whole", 1, {looks_on()}), fails(folder / "fails", 1, {throws_at([](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [](const TrainStepEnd& event) {
            if (event.position.step == 4) throw std::runtime_error("no more");
        });
    })});
    whole.train();
    CHECK_THROWS_AS(fails.train(), SubscriberError);
    CHECK(fs::exists(folder / "fails" / "step_4"));
    check_that_it_goes_on(folder / "fails", whole, true, {looks_on()});
}

TEST_CASE("a run that a decision fails leaves the state it had then", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup whole(folder / "whole", 1, {looks_on()}), fails(folder / "fails", 1, {throws_at([](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&run](const TrainStepEnd& event) {
            if (event.position.step == 8) run.asker.ask(Decision::FailRun, "no more");
        });
    })});
    whole.train();
    CHECK_THROWS_WITH(fails.train(), "onlooker: no more");
    check_that_it_goes_on(folder / "fails", whole, true, {looks_on()});
}

TEST_CASE("a run that fails within a window of several batches leaves the weights, the data and what is drawn as they were before it", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup whole(folder / "whole", 1, {make_gradient_accumulation({3})});
    whole.train();
    for (const int loss : {4, 5}) {
        const fs::path place = folder / std::to_string(loss);
        FailedRunSetup fails(place, 1, {make_gradient_accumulation({3})});
        fails.breaks_at_loss = loss;
        CHECK_THROWS(fails.train());
        CHECK(read_training_state(place / "step_1").parts.at("position").values.at("micro_batch") == 3);
        check_that_it_goes_on(place, whole, false, {make_gradient_accumulation({3})});
    }
}

TEST_CASE("a run that fails while its weights are moved aside leaves them where they were", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup whole(folder / "whole", 1, {make_sharpness_aware()}), fails(folder / "fails", 1, {make_sharpness_aware()});
    whole.train();
    fails.breaks_at_loss = 7;  // the second pass of the fourth step
    CHECK_THROWS(fails.train());
    check_that_it_goes_on(folder / "fails", whole, false, {make_sharpness_aware()});
}

TEST_CASE("a run that fails within an update leaves nothing of it, and says so", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup fails(folder / "fails", 1, {throws_at([](Attachment& run, Connections& connections) {
        connections += run.bus.observe<OptimizerStepEnd>(Stage::Observe, [](const OptimizerStepEnd& event) {
            if (event.position.step == 8) throw std::runtime_error("no more");
        });
    })});
    CapturedStderr captured;
    CHECK_THROWS_AS(fails.train(), SubscriberError);
    CHECK(newest_training_state(folder / "fails") == folder / "fails" / "step_6");
    CHECK_THAT(captured.text(), containing("save_training_state: nothing of the run that failed is saved: it failed where a run cannot go on from, such as within an update; the last state counts"));
}

TEST_CASE("rates that are held lower within a step are saved as they are without", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    const auto lowers = [] { return make_reduce_on_plateau({.monitor = "train.loss", .mode = ReduceOnPlateauOptions::Mode::Max, .factor = 0.5, .patience = 0}); };
    FailedRunSetup whole(folder / "whole", 1, {lowers()}), fails(folder / "fails", 1, {lowers()}), rest(folder / "fails", 99, {lowers()});
    for (FailedRunSetup* setup : {&whole, &fails, &rest}) setup->epochs = 4;
    whole.train();
    CHECK(whole.trainer->blackboard().number("learning_rate_factor").value() < 1);
    fails.breaks_at_loss = 3 * 8 + 2;  // an epoch has six batches of training, and two of evaluation
    CHECK_THROWS(fails.train());
    rest.train(ResumeOptions{folder / "fails"});
    CHECK(equal_bits(rest.weights(), whole.weights()));
}

TEST_CASE("a run that fails as other weights are shown leaves those in training", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup whole(folder / "whole", 1, {looks_on()}), fails(folder / "fails", 1, {throws_at([](Attachment& run, Connections& connections) {
        connections += run.bus.observe<WeightsViewChanged>(Stage::Persist, [](const WeightsViewChanged& event) {
            if (event.to == "ema" && event.position.step == 12) throw std::runtime_error("no more");
        });
    })});
    whole.train();
    CHECK_THROWS_AS(fails.train(), SubscriberError);
    CHECK(newest_training_state(folder / "fails") == folder / "fails" / "step_12");
    check_that_it_goes_on(folder / "fails", whole, false, {looks_on()});
}

TEST_CASE("a run that is to stop and fails as its epoch is cut leaves the state before", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup fails(folder / "fails", 1, {throws_at([](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&run](const TrainStepEnd& event) {
            if (event.position.step == 8) run.asker.ask(Decision::StopRun, "enough");
        });
        connections += run.bus.observe<TrainEpochEnd>(Stage::Observe, [](const TrainEpochEnd& event) {
            if (!event.completed) throw std::runtime_error("no more");
        });
    })});
    CHECK_THROWS_AS(fails.train(), SubscriberError);
    CHECK(newest_training_state(folder / "fails") == folder / "fails" / "step_6");
}

TEST_CASE("weights that are not finite are no state to go on from", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup fails(folder / "fails", 1, {throws_at([](Attachment& run, Connections& connections) {
        connections += run.bus.intercept<TrainStepStart>([](TrainStepStart& event) {
            if (event.position.step != 8) return;
            const at::NoGradGuard no_grad;
            event.update.parameters().front().fill_(std::numeric_limits<float>::quiet_NaN());
        });
        connections += run.bus.observe<ForwardEnd>(Stage::Observe, [](const ForwardEnd& event) {
            if (event.loss.isnan().item<bool>()) throw std::runtime_error("not finite");
        });
    })});
    CapturedStderr captured;
    CHECK_THROWS(fails.train());
    CHECK(newest_training_state(folder / "fails") == folder / "fails" / "step_6");
    CHECK_THAT(captured.text(), containing("0.weight is not finite; the last state counts"));
}

TEST_CASE("a run that fails before its first update has nothing to save", "[trainer][failed_run]") {
    const TemporaryFolder folder("failed-run");
    FailedRunSetup fails(folder / "fails");
    fails.breaks_at_loss = 0;
    CHECK_THROWS(fails.train());
    CHECK_FALSE(fs::exists(folder / "fails"));
}
