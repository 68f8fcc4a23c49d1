// What saving costs a run, and how fast states are written and read.
// Run: build/release/test/bench/checkpoint_bench cost [rounds]       what a save takes of the steps around it, and a run that saves
//                                                                      every 100 steps beside one that does not
//      build/release/test/bench/checkpoint_bench bandwidth MIB DIR   one write and one read, as JSON; test/bench/checkpoints.py calls it
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <optional>
#include <string>

#include <fmt/format.h>
#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

#include "hand_written.hpp"

using namespace torchbus;
using namespace torchbus::bench;
namespace fs = std::filesystem;

namespace {

using Clock = std::chrono::steady_clock;

struct Workload {
    const char* name;
    Model (*make)();
    at::Tensor inputs;
    std::int64_t batch_size;
    bool skip_when_busy;
};

struct Measured {
    double seconds = 0;
    int saved = 0;
};

Measured epoch_of(const Workload& work, const fs::path& folder, bool saves) {
    torch::manual_seed(1);
    Model model = work.make();
    std::vector<at::Tensor> parameters;
    for (const auto& [name, parameter] : model->named_parameters()) parameters.push_back(parameter);
    Measured measured;
    std::vector<ComposedCallback> callbacks = {make_metrics()};
    if (saves) callbacks.emplace_back(make_save_training_state({.folder = folder, .every = "100step", .every_epochs = 0, .at_end = false, .skip_when_busy = work.skip_when_busy}));
    callbacks.push_back(FunctionCallback("count").on<CheckpointSaved>(Stage::Report, [&](const CheckpointSaved&) { ++measured.saved; }));
    Trainer trainer({.model = std::move(model), .loss = cross_entropy, .optimizer = make_adamw(std::move(parameters), {}), .callbacks = std::move(callbacks)});
    const auto data = std::make_shared<TensorDataset>(work.inputs, torch::randint(10, {work.inputs.size(0)}));
    const auto begin = Clock::now();
    trainer.train(data, {.epochs = 1, .batch_size = work.batch_size});
    measured.seconds = seconds_since(begin);
    return measured;
}

void print_cost(const Workload& work, int rounds, const fs::path& folder) {
    std::vector<double> ratios, seconds;
    std::vector<int> saved;
    for (int round = -1; round < rounds; ++round) {  // the first one warms up
        Measured with, without;
        for (int turn = 0; turn < 2; ++turn) ((turn + round) % 2 == 0 ? with : without) = epoch_of(work, folder, (turn + round) % 2 == 0);
        if (round < 0) continue;
        ratios.push_back(with.seconds / without.seconds);
        seconds.push_back(without.seconds);
        saved.push_back(with.saved);
    }
    for (auto* values : {&ratios, &seconds}) std::ranges::sort(*values);
    std::ranges::sort(saved);
    const std::int64_t steps = work.inputs.size(0) / work.batch_size;
    std::printf("%-10s %5lld steps in %6.2f s; saving every 100 steps: ratio %.3f (%.3f .. %.3f), saved %d of %lld (%d .. %d)\n", work.name, static_cast<long long>(steps), seconds[seconds.size() / 2],
                ratios[ratios.size() / 2], ratios.front(), ratios.back(), saved[saved.size() / 2], static_cast<long long>(steps / 100), saved.front(), saved.back());
    std::fflush(stdout);
}

/// Steps while a save is written beside the others of the same run: on a machine that is slow for minutes and fast for minutes,
/// two runs of a minute each cannot be compared to a hundredth.
void print_cost_of_a_save(const Workload& work, std::int64_t every, const fs::path& folder) {
    torch::manual_seed(1);
    Model model = work.make();
    std::vector<at::Tensor> parameters;
    for (const auto& [name, parameter] : model->named_parameters()) parameters.push_back(parameter);
    std::vector<double> usual, slowed;
    std::optional<Clock::time_point> copy_began;
    Clock::time_point step_began;
    double copying = 0;
    int saves = 0;
    bool is_written = true;
    auto watch = FunctionCallback("watch");
    watch.on<StepCheckpoint>(Stage::Observe, [&](const StepCheckpoint&) { copy_began = Clock::now(), is_written = false, ++saves; });
    watch.on<CheckpointSaved>(Stage::Observe, [&](const CheckpointSaved&) { is_written = true; });
    watch.on<TrainStepStart>(Stage::Observe, [&](const TrainStepStart&) {
        if (copy_began) copying += seconds_since(*std::exchange(copy_began, std::nullopt));
        step_began = Clock::now();
    });
    watch.on<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) {
        if (event.position.step > 5) (is_written ? usual : slowed).push_back(seconds_since(step_began));
    });
    Trainer trainer({.model = std::move(model), .loss = cross_entropy, .optimizer = make_adamw(std::move(parameters), {}),
                     .callbacks = {make_metrics(), make_save_training_state({.folder = folder, .every = {static_cast<double>(every), Interval::Unit::Step}, .every_epochs = 0, .at_end = false}), watch}});
    trainer.train(std::make_shared<TensorDataset>(work.inputs, torch::randint(10, {work.inputs.size(0)})), {.epochs = 1, .batch_size = work.batch_size});
    const auto mean = [](const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(std::max<std::size_t>(1, values.size())); };
    const double of_a_save = static_cast<double>(slowed.size()) / saves * (mean(slowed) - mean(usual)), copy = copying / saves;
    std::printf("%-10s a step %.4f s; %d saves: copy %.3f s, then %.1f steps of %.4f s while it is written; of 100 steps %.2f %%\n", work.name, mean(usual), saves, copy,
                static_cast<double>(slowed.size()) / saves, mean(slowed), (copy + of_a_save) / mean(usual));
    std::fflush(stdout);
}

/// The same bytes as fast as the system takes them, synced.
double raw_write(const fs::path& file, const std::string& block, std::int64_t blocks) {
    const auto begin = Clock::now();
    const int descriptor = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    for (std::int64_t i = 0; i < blocks; ++i)
        if (::write(descriptor, block.data(), block.size()) != static_cast<ssize_t>(block.size())) std::exit(1);
    ::fsync(descriptor);
    ::close(descriptor);
    return seconds_since(begin);
}

double raw_read(const fs::path& file, std::int64_t bytes) {
    const auto begin = Clock::now();
    std::string read(static_cast<std::size_t>(bytes), '\0');
    std::ifstream(file, std::ios::binary).read(read.data(), bytes);
    return seconds_since(begin);
}

void print_bandwidth(std::int64_t mib, const fs::path& folder) {
    constexpr std::int64_t kTensor = 4;  // MiB
    TrainingState state;
    for (std::int64_t i = 0; i < mib / kTensor; ++i) state.parts["model"].tensors[fmt::format("{:05}", i)] = torch::rand({kTensor << 18});
    const std::string block(static_cast<std::size_t>(kTensor) << 20, 'x');
    const double raw_written = raw_write(folder / "raw", block, mib / kTensor);
    auto begin = Clock::now();
    write_training_state(folder / "step_1", state);
    const double written = seconds_since(begin), raw_readen = raw_read(folder / "raw", mib << 20);
    begin = Clock::now();
    const TrainingState back = read_training_state(folder / "step_1");
    std::printf("{\"raw write\": %.4f, \"torchbus write\": %.4f, \"raw read\": %.4f, \"torchbus read\": %.4f}\n", raw_written, written, raw_readen, seconds_since(begin));
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 4 && std::string(argv[1]) == "bandwidth") return print_bandwidth(std::atoi(argv[2]), argv[3]), 0;
    if (argc < 2 || std::string(argv[1]) != "cost") return std::fprintf(stderr, "usage: checkpoint_bench cost [rounds] | bandwidth MIB DIR\n"), 2;
    const int rounds = argc > 2 ? std::max(1, std::atoi(argv[2])) : 5;
    if (!std::freopen("/dev/null", "w", stderr)) return 1;  // how many saves were left out is counted here
    const fs::path folder = fs::temp_directory_path() / fmt::format("torchbus-checkpoint-bench-{}", ::getpid());
    const auto resnet = [] { return make_resnet18({.classes = 10}); };
    const auto mlp = [] { return make_mlp(); };
    const Workload of_resnet{"ResNet-18", resnet, torch::rand({200 * 32, 3, 32, 32}), 32, false};
    for (int round = 0; round < rounds; ++round) print_cost_of_a_save(of_resnet, 20, folder);
    print_cost({"MLP", mlp, torch::rand({1875 * 32, 784}), 32, true}, rounds, folder);
    fs::remove_all(folder);
}
