// What callbacks cost, on the 784-128-10 MLP of hand_written.hpp with batches of 32 random samples. Prints two tables as Markdown:
// the time of every callback of the registry with its default options, by the bus's accounting, and the CPU time of a step by the
// number of subscribers, with the slope by least squares.
// Run: build/release/test/bench/callbacks_bench [rounds] [steps]
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

#include "hand_written.hpp"

using namespace torchbus;
using namespace torchbus::bench;

namespace {

constexpr std::int64_t kBatch = 32;

std::shared_ptr<TensorDataset> random_samples(std::int64_t samples) {
    torch::manual_seed(2);
    return std::make_shared<TensorDataset>(torch::rand({samples, 784}), torch::randint(10, {samples}));
}

double median(std::vector<double> values) {
    std::ranges::sort(values);
    return values[values.size() / 2];
}

/// What one subscriber cost in a run.
struct Cost {
    double calls = 0, seconds = 0, run_seconds = 0;
    std::int64_t steps = 0;
};

/// With the options of {}, but for one that would have nothing to do in so short a run.
std::shared_ptr<Callback> from_defaults(const CallbackEntry& entry) {
    nlohmann::json options = nlohmann::json::object();
    if (entry.kind == "step_evaluation") options["every"] = "100step";
    OptionReader reader(options, std::string(entry.kind));
    return entry.from_json(reader);
}

/// One epoch and its evaluation, with metrics beside the callback.
Cost cost_of(const CallbackEntry& entry, const std::shared_ptr<TensorDataset>& data, const std::shared_ptr<TensorDataset>& eval) {
    const auto model = make_model();
    std::vector<ComposedCallback> callbacks;
    if (entry.kind != "metrics") callbacks.emplace_back(make_metrics({.accuracy = true}));
    callbacks.emplace_back(from_defaults(entry));
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = fused_sgd(model->parameters()), .callbacks = std::move(callbacks), .handle_signals = false});
    const auto begin = std::chrono::steady_clock::now();
    trainer.train(data, eval, {.batch_size = kBatch});
    Cost cost{0, 0, seconds_since(begin), trainer.position().attempts};
    for (const AccountingRow& row : trainer.accounting())
        if (row.subscriber == entry.kind) cost.calls += static_cast<double>(row.calls), cost.seconds += row.seconds;
    return cost;
}

void print_costs(int rounds, const std::shared_ptr<TensorDataset>& data, const std::shared_ptr<TensorDataset>& eval) {
    std::printf("| callback | calls a step | µs a call | µs a step | share of the run |\n| --- | ---: | ---: | ---: | ---: |\n");
    for (const CallbackEntry& entry : callback_registry()) {
        std::vector<double> per_call, per_step, shares;
        double calls = 0;
        std::string refusal;
        for (int round = 0; round < rounds && refusal.empty(); ++round) try {
            const Cost cost = cost_of(entry, data, eval);
            const double steps = static_cast<double>(std::max<std::int64_t>(cost.steps, 1));
            calls = cost.calls / steps;
            per_call.push_back(cost.calls > 0 ? cost.seconds * 1e6 / cost.calls : 0);
            per_step.push_back(cost.seconds * 1e6 / steps);
            shares.push_back(cost.seconds / cost.run_seconds * 100);
        } catch (const std::exception& error) {
            refusal = error.what();
        }
        const std::string kind(entry.kind);
        if (!refusal.empty()) std::printf("| `%s` | not measured: %s ||||\n", kind.c_str(), refusal.substr(0, refusal.find('\n')).c_str());
        else std::printf("| `%s` | %.2f | %.2f | %.2f | %.2f %% |\n", kind.c_str(), calls, median(per_call), median(per_step), median(shares));
        std::fflush(stdout);
    }
}

/// CPU time of this thread: what other processes take from it does not count.
double thread_seconds() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

/// CPU seconds of a step with so many observers of train_step_end, each a subscriber of its own.
double seconds_of_step(int subscribers, const std::shared_ptr<TensorDataset>& data) {
    const auto model = make_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = fused_sgd(model->parameters()), .handle_signals = false});
    std::vector<Subscriber> all;
    std::vector<Connection> connections;
    std::int64_t heard = 0;
    for (int i = 0; i < subscribers; ++i) {
        all.push_back(trainer.subscribe(fmt::format("observer_{}", i)));
        connections.push_back(all.back().observe<TrainStepEnd>(Stage::Observe, [&heard](const TrainStepEnd&) { ++heard; }));
    }
    const double begin = thread_seconds();
    trainer.train(data, {.batch_size = kBatch});
    const double seconds = thread_seconds() - begin;
    if (heard != subscribers * trainer.position().step) std::abort();
    return seconds / static_cast<double>(trainer.position().step);
}

/// y = a + b x: b = cov(x, y) / var(x); R² = cov² / (var(x) var(y)).
void print_fit(const char* over, const std::vector<int>& counts, const std::vector<double>& times) {
    const double n = static_cast<double>(counts.size());
    double x_sum = 0, y_sum = 0, xx = 0, xy = 0, yy = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
        const double x = counts[i], y = times[i];
        x_sum += x, y_sum += y, xx += x * x, xy += x * y, yy += y * y;
    }
    const double covariance = xy - x_sum * y_sum / n, x_variance = xx - x_sum * x_sum / n, y_variance = yy - y_sum * y_sum / n;
    const double slope = covariance / x_variance;
    std::printf("Least squares over the %s: a step takes %.1f µs and %.1f ns for every subscriber more, R² %.4f.\n", over,
                (y_sum - slope * x_sum) / n, slope * 1e3, covariance * covariance / (x_variance * y_variance));
}

void print_line(int rounds, const std::shared_ptr<TensorDataset>& data) {
    const std::vector<int> counts = {0, 1, 10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000};
    std::vector<std::vector<double>> seconds(counts.size());
    for (int round = -1; round < rounds; ++round)  // interleaved; the first one warms up
        for (std::size_t i = 0; i < counts.size(); ++i) {
            const double measured = seconds_of_step(counts[i], data);
            if (round >= 0) seconds[i].push_back(measured * 1e6);
        }
    std::vector<double> medians, smallest;
    std::printf("\n| subscribers | CPU µs a step, median | min – max |\n| ---: | ---: | --- |\n");
    for (std::size_t i = 0; i < counts.size(); ++i) {
        medians.push_back(median(seconds[i]));
        smallest.push_back(std::ranges::min(seconds[i]));
        std::printf("| %d | %.1f | %.1f – %.1f |\n", counts[i], medians.back(), smallest.back(), std::ranges::max(seconds[i]));
    }
    std::printf("\n");
    print_fit("medians", counts, medians);
    print_fit("smallest of each row, which disturbances do not reach", counts, smallest);
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 5;
    const std::int64_t steps = argc > 2 ? std::max(1, std::atoi(argv[2])) : 500;
    if (!std::freopen("/dev/null", "w", stderr)) return 1;  // progress and warnings: they are not what is measured
    torch::set_num_threads(1);
    const auto folder = std::filesystem::temp_directory_path() / fmt::format("torchbus-callbacks-bench-{}", ::getpid());  // some callbacks write files
    std::filesystem::create_directories(folder);
    std::filesystem::current_path(folder);
    const auto data = random_samples(steps * kBatch), eval = random_samples(8 * kBatch);
    std::printf("%d rounds of %lld steps of %lld samples, one thread; medians of the rounds.\n\n", rounds, static_cast<long long>(steps), static_cast<long long>(kBatch));
    print_costs(rounds, data, eval);
    print_line(rounds, data);
    std::filesystem::remove_all(folder);
}
