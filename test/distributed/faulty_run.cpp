// A small run on several ranks, one of which does something that it should not, for test/scripts/faults_test.py.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <limits>
#include <thread>

#include <CLI/CLI.hpp>
#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

using namespace torchbus;
namespace nn = torch::nn;

namespace {

constexpr std::int64_t kStepsOfEpoch = 8;  // of three ranks

struct Place {
    int rank;
    std::int64_t step;
    std::string event;  ///< by its name
};

/// Sums numbers over ranks after every step, as a metric of a user's own would, and is at fault where it is told to be.
class Faulty final : public Callback {
public:
    Faulty(std::string fault, Place place, std::chrono::milliseconds pace) : fault_(std::move(fault)), place_(std::move(place)), pace_(pace) {}
    std::string kind() const override { return "faulty"; }
    Declaration declare() const override {
        return {.listens = {"batch_ready", "forward_start", "backward_end", "train_step_end", "train_epoch_end", "eval_step_end"}, .reads = {"batch"}, .writes = {"batch"}, .publishes = {{"faulty.score", "train_epoch_end"}}, .asks = {Decision::StopRun}, .collectives = true};
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<BatchReady>([this, &run](BatchReady& event) {
            if (fault_ == "nan" && run.consensus.rank() == place_.rank && event.position.step == place_.step) event.batch.inputs = event.batch.inputs * std::numeric_limits<double>::quiet_NaN();
        });
        connections_ += run.bus.observe<TrainEpochEnd>(Stage::Observe, [this, &run](const TrainEpochEnd& event) {
            const bool falls = run.consensus.rank() != place_.rank;
            run.blackboard.publish("faulty.score", falls ? -static_cast<double>(event.position.epoch) : 0.0);
        });
        connections_ += run.bus.observe<ForwardStart>(Stage::Observe, [this, &run](const ForwardStart& event) { fall(run, "forward_start", event.position); });
        connections_ += run.bus.observe<BackwardEnd>(Stage::Observe, [this, &run](const BackwardEnd& event) { fall(run, "backward_end", event.position); });
        connections_ += run.bus.observe<EvalStepEnd>(Stage::Observe, [this, &run](const EvalStepEnd& event) { fall(run, "eval_step_end", event.position); });
        connections_ += run.bus.observe<TrainStepEnd>(Stage::Observe, [this, &run](const TrainStepEnd& event) {
            std::this_thread::sleep_for(pace_);
            const bool is_now = fall(run, "train_step_end", event.position);
            for (int i = 0; i < (is_now && fault_ == "skip" ? 0 : is_now && fault_ == "extra" ? 2 : 1); ++i) run.consensus.sum(numbers_);
        });
    }
    void detach() override { connections_.clear(); }

private:
    /// Whether it is the time and the place.
    bool fall(Attachment& run, std::string_view event, const Position& position) const {
        if (event != place_.event || position.step != place_.step || run.consensus.rank() != place_.rank) return false;
        std::this_thread::sleep_for(pace_);  // who is stopped or dies is named with where it was when its status was put down last
        if (fault_ == "throw") throw std::runtime_error("the cat sat on the keyboard");
        if (fault_ == "die") std::raise(SIGKILL);
        if (fault_ == "stop") std::raise(SIGSTOP);
        if (fault_ == "hang") std::this_thread::sleep_for(std::chrono::hours(1));
        if (fault_ == "signal") std::raise(SIGTERM);
        if (fault_ == "ask") run.asker.ask(Decision::StopRun, "enough");
        return true;
    }

    std::string fault_;
    Place place_;
    std::chrono::milliseconds pace_;
    std::vector<double> numbers_ = std::vector<double>(7, 1.0);
    Connections connections_;
};

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"a run on several ranks, one of which is at fault"};
    std::string fault, records, device = "cpu", event = "train_step_end";
    int rank = -1, timeout_s = 3, epochs = 1000, pace_ms = 60;
    std::int64_t step = 0;
    app.add_option("--fault", fault, "throw, die, stop, hang, skip or extra; or what asks for a stop: ask, signal, early_stopping, nan or time_limit");
    app.add_option("--rank", rank);
    app.add_option("--step", step);
    app.add_option("--event", event, "of that step: train_step_end, or for throw, die, stop and hang forward_start, backward_end or eval_step_end");
    app.add_option("--timeout", timeout_s, "s within which a collective must end")->take_last();
    app.add_option("--pace", pace_ms, "ms that every step takes at least");
    app.add_option("--epochs", epochs);
    app.add_option("--records", records);
    app.add_option("--device", device);
    CLI11_PARSE(app, argc, argv);
    torch::set_num_threads(1);
    const std::shared_ptr<Callback> placement = make_device_placement({device});
    torch::manual_seed(3);
    nn::Sequential model(nn::Linear(16, 24), nn::ReLU(), nn::Linear(24, 4));
    const at::Tensor inputs = torch::randn({96, 16});
    std::vector<ComposedCallback> callbacks = {ComposedCallback(placement), make_data_parallel({.waiting = {.timeout = std::chrono::seconds(timeout_s), .record_folder = records}}), make_metrics(),
                                               ComposedCallback(std::make_shared<Faulty>(fault, Place{rank, step, event}, std::chrono::milliseconds(pace_ms)))};
    if (fault == "early_stopping") callbacks.push_back(make_early_stopping({.monitor = "faulty.score", .patience = 1 + step / kStepsOfEpoch}));
    if (fault == "nan") callbacks.push_back(make_nan_policy({.non_finite = NanPolicyOptions::Action::Stop}));
    if (fault == "time_limit") callbacks.push_back(make_time_limit({.limit = {static_cast<double>(step * pace_ms) / 1000, Interval::Unit::Second}, .save = false}));
    const auto data = std::make_shared<TensorDataset>(inputs, inputs.narrow(1, 0, 4).argmax(1));
    try {
        Trainer trainer({.model = model, .loss = [](const at::Tensor& output, const at::Tensor& targets) { return nn::functional::cross_entropy(output, targets); },
                         .optimizer = make_adamw(model->parameters(), {}),
                         .callbacks = std::move(callbacks)});
        const RunResult result = event == "eval_step_end" ? trainer.train(data, data, {.epochs = epochs, .batch_size = 4}) : trainer.train(data, {.epochs = epochs, .batch_size = 4});
        std::printf("%s after step %lld\n", result.reason.c_str(), static_cast<long long>(trainer.position().step));
        return result.exit_code;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
