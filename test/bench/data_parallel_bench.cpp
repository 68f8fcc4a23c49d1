// One rank of data parallel training over Gloo: the 784-128-10 MLP, SGD with momentum, 32 samples a rank. Each rank prints µs a step,
// bytes summed a step, bytes of the optimizer's state, messages a step, and bytes of main memory.
// test/bench/data_parallel.py starts it, in turn with Python's DistributedDataParallel.
#include <chrono>
#include <cstdio>

#include <CLI/CLI.hpp>
#include <torch/torch.h>
#include <torchbus/process_memory.hpp>
#include <torchbus/torchbus.hpp>

using namespace torchbus;
namespace nn = torch::nn;

int main(int argc, char** argv) {
    CLI::App app{"one rank of data parallel training"};
    std::int64_t warmup = 100, steps = 1000, hidden = 128, layers = 1;
    double bucket_mib = 25;
    bool zero = false, adamw = false;
    app.add_option("--warmup", warmup);
    app.add_option("--steps", steps);
    app.add_option("--hidden", hidden);
    app.add_option("--layers", layers, "hidden layers");
    app.add_option("--bucket-mib", bucket_mib);
    app.add_flag("--zero", zero, "divide the optimizer's state");
    app.add_flag("--adamw", adamw);
    CLI11_PARSE(app, argc, argv);
    torch::set_num_threads(1);
    torch::manual_seed(1);
    nn::Sequential model(nn::Linear(784, hidden), nn::ReLU());
    for (std::int64_t layer = 1; layer < layers; ++layer) model->push_back(nn::Linear(hidden, hidden)), model->push_back(nn::ReLU());
    model->push_back(nn::Linear(hidden, 10));
    const auto data = std::make_shared<TensorDataset>(torch::randn({8192, 784}), torch::randint(10, {8192}, at::kLong));

    FunctionCallback clock("clock");
    std::chrono::steady_clock::time_point begun;
    double seconds = 0;
    clock.on<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) {
        if (event.position.step == warmup) begun = std::chrono::steady_clock::now();
        if (event.position.step == warmup + steps) seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    });
    const auto world = World::of_environment();
    std::shared_ptr<torch::optim::Optimizer> optimizer = adamw ? std::shared_ptr<torch::optim::Optimizer>(make_adamw(model->parameters(), {}))
                                                               : std::shared_ptr<torch::optim::Optimizer>(make_sgd(model->parameters(), {.learning_rate = 0.01, .momentum = 0.9}));
    std::vector<ComposedCallback> callbacks = {make_data_parallel({.world = world, .gradients = {.bucket_mib = bucket_mib}}), clock};
    if (zero) callbacks.emplace_back(make_zero_redundancy({.world = world}));
    Trainer trainer({.model = model, .loss = [](const at::Tensor& output, const at::Tensor& targets) { return nn::functional::cross_entropy(output, targets); },
                     .optimizer = optimizer, .callbacks = std::move(callbacks), .seed = 1});
    trainer.train(data, {.epochs = 1000000, .max_steps = warmup + steps, .batch_size = 32});
    double state_bytes = 0;
    for (const auto& [name, tensor] : save_optimizer(*optimizer, {}).tensors) state_bytes += static_cast<double>(tensor.nbytes());
    const auto of_all_steps = [&](double sum) { return sum / static_cast<double>(warmup + steps); };
    std::printf("%.1f %.0f %.0f %.0f %.0f\n", seconds * 1e6 / static_cast<double>(steps), world ? of_all_steps(static_cast<double>(world->traffic().bytes)) : 0.0, state_bytes,
                world ? of_all_steps(static_cast<double>(world->traffic().messages)) : 0.0, memory_of_process().resident_bytes);
    return 0;
}
