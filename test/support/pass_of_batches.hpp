#pragma once
/// Outputs and targets sent through one callback as a pass over data, without a model.

#include <map>
#include <numeric>

#include <torch/torch.h>

#include "alone_on_bus.hpp"

namespace torchbus::test {

/// Sends rows `from` to `from + valid` as one batch, followed by `padding` duplicates of the first row that do not count.
inline void send_batch(Bus& bus, Scope scope, const at::Tensor& output, const at::Tensor& targets, std::int64_t from, std::int64_t valid, std::int64_t padding = 0, int pass = 0) {
    const auto rows = [&](const at::Tensor& tensor) {
        const at::Tensor part = tensor.narrow(0, from, valid);
        return padding > 0 ? torch::cat({part, tensor.narrow(0, 0, 1).repeat_interleave(padding, 0)}) : part;
    };
    const Batch batch{.targets = rows(targets), .samples = valid + padding, .valid = valid, .weight = static_cast<double>(valid)};
    const Output result(rows(output));
    const at::Tensor loss;
    bus.emit(ForwardEnd{{}, scope, {.pass = pass, .repeated = pass > 0}, batch, result, loss});
}

/// One evaluation in batches of these sizes. Returns what is on the blackboard afterwards.
inline std::map<std::string, double> evaluate_alone(std::shared_ptr<Callback> callback, const at::Tensor& output, const at::Tensor& targets,
                                                    std::vector<std::int64_t> sizes, std::int64_t padding = 0) {
    AloneOnBus alone(std::move(callback));
    const Scope scope{Mode::Eval, "eval", "training"};
    alone.bus().moment().mode = Mode::Eval;
    alone.bus().emit(EvalEpochStart{{}, scope});
    std::int64_t from = 0;
    for (const std::int64_t size : sizes) {
        send_batch(alone.bus(), scope, output, targets, from, size, padding);
        from += size;
    }
    alone.bus().emit(EvalEpochEnd{{}, scope, std::ssize(sizes), from, true});
    std::map<std::string, double> numbers;
    for (const std::string& name : alone.blackboard().names()) numbers[name] = *alone.blackboard().number(name);
    return numbers;
}

/// 1, 3, 5, … and what is left: sizes that add up to `samples`.
inline std::vector<std::int64_t> uneven(std::int64_t samples) {
    std::vector<std::int64_t> sizes;
    for (std::int64_t size = 1; samples > 0; samples -= size, size += 2) sizes.push_back(std::min(size, samples));
    return sizes;
}

}  // namespace torchbus::test
