#include <torchbus/callbacks/throughput_monitor.hpp>

#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <torchbus/device.hpp>
#include <torchbus/error.hpp>
#include <torchbus/process_memory.hpp>

#include "entries.hpp"
#include "parts/progress_text.hpp"
#include "parts/steady_seconds.hpp"

namespace torchbus {
namespace {

double mebi(auto bytes) { return static_cast<double>(bytes) / (1024 * 1024); }

class ThroughputMonitor final : public Callback {
public:
    explicit ThroughputMonitor(ThroughputMonitorOptions options) : options_(std::move(options)) {
        if (!options_.clock) options_.clock = steady_seconds;
        if (!options_.write) options_.write = write_to_stderr;
    }
    std::string kind() const override { return "throughput_monitor"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"training_run_start", "train_epoch_start", "train_step_start", "train_step_end", "train_epoch_end",
                                         "eval_epoch_start", "step_checkpoint", "rolled_back"}};
        for (const char* name : kNames) declared.publishes.emplace_back(name, "train_step_end");
        return declared;
    }
    void attach(Attachment& run) override {
        run_ = &run;
        auto& bus = run.bus;
        connections_ += bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart& event) {
            device_ = event.plan.device;
            begin_run();
        });
        connections_ += bus.observe<TrainEpochStart>(Stage::Persist, [this](const auto&) { idle_since_ = options_.clock(); });
        connections_ += bus.observe<TrainStepStart>(Stage::Observe, [this](const auto& event) { begin_step(event.position); });
        connections_ += bus.observe<TrainStepEnd>(Stage::Observe, [this](const auto& event) { end_step(event.position); });
        // What comes now is no wait for data.
        connections_ += bus.observe<TrainEpochEnd>(Stage::Observe, [this](const auto&) { idle_since_.reset(); });
        connections_ += bus.observe<EvalEpochStart>(Stage::Observe, [this](const auto&) { idle_since_.reset(); });
        connections_ += bus.observe<StepCheckpoint>(Stage::Observe, [this](const auto&) { idle_since_.reset(); });
        connections_ += bus.observe<RolledBack>(Stage::Observe, [this](const auto&) { begin_run(); });
    }
    void detach() override {
        connections_.clear();
        if (run_)
            for (const char* name : kNames) run_->blackboard.withdraw(name);
        run_ = nullptr;
        begin_run();
    }

private:
    static constexpr const char* kTokens = "throughput.tokens_per_second";
    static constexpr const char* kNames[] = {"throughput.samples_per_second", kTokens, "throughput.steps_per_second",
                                             "throughput.data_wait", "memory.resident_bytes", "memory.peak_bytes",
                                             "memory.device_allocated_bytes", "memory.device_peak_bytes", "memory.device_reserved_bytes", "memory.device_free_bytes"};
    struct Window {
        double busy = 0, waiting = 0;  ///< seconds
        Counts counts;                 ///< at its beginning
    };

    void begin_run() {
        warm_ = false;
        idle_since_.reset();
        step_since_.reset();
        window_.reset();
    }
    void begin_step(const Position& position) {
        const double now = options_.clock();
        if (!window_) window_ = Window{0, 0, position};
        if (idle_since_) window_->waiting += now - *idle_since_;
        idle_since_.reset();
        step_since_ = now;
    }
    void end_step(const Position& position) {
        if (!window_ || !step_since_) return;  // attached within a step
        const double now = options_.clock();
        window_->busy += now - *std::exchange(step_since_, std::nullopt);
        idle_since_ = now;
        if (position.attempts - window_->counts.attempts < options_.window) return;
        if (warm_) tell(position);
        warm_ = true;
        window_ = Window{0, 0, position};
    }
    void tell(const Position& now) {
        const double seconds = window_->busy + window_->waiting;
        if (!(seconds > 0)) return;  // a clock too coarse for this window
        const auto rate = [&](std::int64_t Counts::*count) { return static_cast<double>(now.*count - window_->counts.*count) / seconds; };
        const double samples = rate(&Counts::samples), tokens = rate(&Counts::tokens), steps = rate(&Counts::attempts);
        const double wait = window_->waiting / seconds;
        const ProcessMemory memory = memory_of_process();
        std::vector<double> values = {samples, tokens, steps, wait, memory.resident_bytes, memory.peak_bytes};
        std::string on_device;
        if (is_accelerator(device_)) {
            const DeviceMemory of_device = memory_of(device_);
            for (const std::int64_t bytes : {of_device.allocated, of_device.peak, of_device.reserved, of_device.free}) values.push_back(static_cast<double>(bytes));
            on_device = fmt::format("; {}: {:.0f} MiB, peak {:.0f} MiB, reserved {:.0f} MiB, free {:.0f} of {:.0f} MiB", device_.str(), mebi(of_device.allocated), mebi(of_device.peak), mebi(of_device.reserved),
                                    mebi(of_device.free), mebi(of_device.total));
        }
        for (std::size_t i = 0; i < values.size(); ++i)
            if (kNames[i] != kTokens || now.tokens > 0) run_->blackboard.publish(kNames[i], values[i]);
        if (!options_.print) return;
        const std::string of_tokens = tokens > 0 ? fmt::format(", {} tokens/s", quantity_text(tokens)) : "";
        options_.write(fmt::format("step {}: {} samples/s{}, {} steps/s, {:.1f} % waiting for data, memory {:.0f} MiB, peak {:.0f} MiB{}\n", now.step,
                                   quantity_text(samples), of_tokens, fmt::format("{:.4g}", steps), wait * 100, mebi(memory.resident_bytes), mebi(memory.peak_bytes), on_device));
    }

    ThroughputMonitorOptions options_;
    Attachment* run_ = nullptr;
    c10::Device device_ = c10::kCPU;    ///< of the run's batches
    bool warm_ = false;                 ///< the first window is over
    std::optional<double> idle_since_;  ///< waiting for the next step since then
    std::optional<double> step_since_;
    std::optional<Window> window_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_throughput_monitor(ThroughputMonitorOptions options) {
    if (options.window < 1) throw ConfigError(fmt::format("throughput_monitor: window: {} is too few; give at least 1 step, e.g. 50", options.window));
    return std::make_unique<ThroughputMonitor>(std::move(options));
}

std::unique_ptr<Callback> throughput_monitor_from_json(OptionReader& reader) {
    ThroughputMonitorOptions options;
    reader.integer("window", options.window, "attempted updates in a window; the first window warms up", Range::at_least(1))
        .boolean("print", options.print, "print a line for every window to standard error");
    return make_throughput_monitor(std::move(options));
}

}  // namespace torchbus
