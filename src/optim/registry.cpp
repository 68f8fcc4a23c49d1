#include <torchbus/optim/registry.hpp>

#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/optim/parameter_groups.hpp>

#include "library_schedules.hpp"

namespace torchbus {
namespace {

using Tensors = std::vector<at::Tensor>;

void read_rate_and_decay(OptionReader& reader, double& rate, double& decay) {
    reader.number("learning_rate", rate, "base learning rate; >= 0", Range::at_least(0)).changeable()
        .number("weight_decay", decay, "weight decay; >= 0", Range::at_least(0)).changeable();
}

OptimizerMaker sgd_from_json(OptionReader& reader) {
    SgdOptions options;
    read_rate_and_decay(reader, options.learning_rate, options.weight_decay);
    reader.number("momentum", options.momentum, "momentum; >= 0", Range::at_least(0)).changeable().boolean("nesterov", options.nesterov, "Nesterov's momentum");
    return [options](Tensors parameters) { return make_sgd(std::move(parameters), options); };
}

AdamOptions read_adam(OptionReader& reader, double weight_decay) {
    AdamOptions options{.weight_decay = weight_decay};
    read_rate_and_decay(reader, options.learning_rate, options.weight_decay);
    reader.number("beta1", options.beta1, "decay of the mean; in [0, 1)", Range::from_to_below(0, 1)).changeable()
        .number("beta2", options.beta2, "decay of the variance; in [0, 1)", Range::from_to_below(0, 1)).changeable()
        .number("epsilon", options.epsilon, "added to the root of the variance; > 0", Range::positive()).changeable()
        .boolean("amsgrad", options.amsgrad, "the AMSGrad variant");
    return options;
}

OptimizerMaker adam_from_json(OptionReader& reader) {
    return [options = read_adam(reader, 0)](Tensors parameters) { return make_adam(std::move(parameters), options); };
}

OptimizerMaker adamw_from_json(OptionReader& reader) {
    return [options = read_adam(reader, 0.01)](Tensors parameters) { return make_adamw(std::move(parameters), options); };
}

OptimizerMaker adagrad_from_json(OptionReader& reader) {
    AdagradOptions options;
    read_rate_and_decay(reader, options.learning_rate, options.weight_decay);
    return [options](Tensors parameters) { return make_adagrad(std::move(parameters), options); };
}

constexpr auto kOptimizers = std::to_array<OptimizerEntry>({
    {"sgd", "Stochastic gradient descent, with momentum if asked for.", sgd_from_json},
    {"adam", "Adam; weight decay is added to the gradient.", adam_from_json},
    {"adamw", "Adam whose weight decay shrinks the weights.", adamw_from_json},
    {"adagrad", "Adagrad.", adagrad_from_json},
});

template <auto kFunction>
Loss loss_of(OptionReader&) {
    return [](const at::Tensor& output, const at::Tensor& targets) { return kFunction(output, targets); };
}

constexpr auto kLosses = std::to_array<LossEntry>({
    {"cross_entropy", "Cross entropy of scores and class indices.", loss_of<[](auto& output, auto& targets) { return at::cross_entropy_loss(output, targets); }>},
    {"mse", "Mean squared error.", loss_of<[](auto& output, auto& targets) { return at::mse_loss(output, targets); }>},
    {"l1", "Mean absolute error.", loss_of<[](auto& output, auto& targets) { return at::l1_loss(output, targets); }>},
    {"binary_cross_entropy", "Binary cross entropy of scores (before the sigmoid) and targets in 0 ... 1.",
     loss_of<[](auto& output, auto& targets) { return at::binary_cross_entropy_with_logits(output, targets); }>},
});

}  // namespace

Registry<OptimizerEntry>& optimizer_table() {
    static auto* const kTable = new Registry<OptimizerEntry>("optimizer", kOptimizers);
    return *kTable;
}

Registry<ScheduleEntry>& schedule_table() {
    static auto* const kTable = new Registry<ScheduleEntry>("schedule", library_schedules());
    return *kTable;
}

Registry<LossEntry>& loss_table() {
    static auto* const kTable = new Registry<LossEntry>("loss", kLosses);
    return *kTable;
}

namespace {

ParameterGroup read_group(OptionReader& reader) {
    ParameterGroup group;
    double decay = 0;
    reader.texts("parameters", group.patterns, "patterns of names, as in a shell")
        .number("learning_rate_factor", group.learning_rate_factor, "of the optimizer's learning rate", Range::at_least(0))
        .number("weight_decay", decay, "instead of the optimizer's", Range::at_least(0));
    if (reader.has("weight_decay")) group.weight_decay = decay;
    return group;
}

}  // namespace

ParameterGroupOptions read_parameter_groups(OptionReader& reader) {
    ParameterGroupOptions options;
    reader.boolean("decay_biases_and_norms", options.decay_biases_and_norms, "whether weight decay is for parameters of one dimension, too")
        .objects("groups", options.groups, read_group, "parameters by name: [{\"parameters\": [\"head.*\"], \"learning_rate_factor\": 10, \"weight_decay\": 0}]");
    return options;
}

std::shared_ptr<torch::optim::Optimizer> grouped_optimizer_from_json(const nlohmann::json& json, const std::string& where, const std::vector<NamedTensor>& named) {
    OptionReader reader(json, where);
    const OptimizerMaker make = optimizer_table().chosen(reader, "update rule").from_json(reader);
    const ParameterGroupOptions groups = read_parameter_groups(reader);
    reader.finish();
    Tensors parameters;
    for (const auto& [name, tensor] : named) parameters.push_back(tensor);
    auto optimizer = make(std::move(parameters));
    if (groups.groups.empty() && groups.decay_biases_and_norms) return optimizer;
    try {
        group_parameters(*optimizer, named, groups);
    } catch (const ConfigError& error) {
        throw ConfigError(fmt::format("{}: {}", where, error.what()));
    }
    return optimizer;
}

std::shared_ptr<torch::optim::Optimizer> optimizer_from_json(const nlohmann::json& json, const std::string& where, Tensors parameters) {
    OptionReader reader(json, where);
    const OptimizerMaker make = optimizer_table().chosen(reader, "update rule").from_json(reader);
    reader.finish();
    return make(std::move(parameters));
}

Schedule schedule_from_json(const nlohmann::json& json, const std::string& where) {
    OptionReader reader(json, where);
    Schedule schedule = schedule_table().chosen(reader, "shape of the curve").from_json(reader);
    reader.finish();
    return schedule;
}

}  // namespace torchbus
