#include <torchbus/optim/parameter_groups.hpp>

#include <algorithm>

#include <fmt/format.h>
#include <torch/optim.h>

#include <torchbus/error.hpp>
#include <torchbus/name_pattern.hpp>
#include <torchbus/optim/group_options.hpp>

namespace torchbus {
namespace {

void check(const ParameterGroupOptions& options, const std::vector<NamedTensor>& named) {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : named) names.push_back(name);
    for (const ParameterGroup& group : options.groups) {
        if (!(group.learning_rate_factor >= 0))
            throw ConfigError(fmt::format("parameter groups: learning_rate_factor: {} is negative; give a factor of the learning rate, e.g. 0.1", group.learning_rate_factor));
        if (group.weight_decay && !(*group.weight_decay >= 0))
            throw ConfigError(fmt::format("parameter groups: weight_decay: {} is negative; give at least 0", *group.weight_decay));
        if (group.patterns.empty()) throw ConfigError("parameter groups: a group has no patterns; name its parameters, e.g. \"head.*\"");
        for (const std::string& pattern : group.patterns)
            if (std::ranges::none_of(names, [&](const std::string& name) { return matches(pattern, name); }))
                throw ConfigError(fmt::format("parameter groups: no parameter matches '{}'{} (torchbus summary lists them)", pattern, did_you_mean(pattern, names)));
    }
}

/// One group of the optimizer in the making.
struct Made {
    std::vector<at::Tensor> decayed, undecayed;
};

}  // namespace

void group_parameters(torch::optim::Optimizer& optimizer, const std::vector<NamedTensor>& named, const ParameterGroupOptions& options) {
    if (!optimizer.state().empty()) throw StateError("parameter groups: the optimizer has made a step already; group its parameters before");
    check(options, named);
    std::vector<Made> made(options.groups.size() + 1);  // the last one takes the rest
    for (const auto& group : optimizer.param_groups())
        for (const at::Tensor& parameter : group.params()) {
            const auto known = std::ranges::find_if(named, [&](const NamedTensor& entry) { return entry.second.is_same(parameter); });
            if (known == named.end()) throw ConfigError("parameter groups: the optimizer holds a parameter that is not the model's; give the names of all of them");
            const auto place = std::ranges::find_if(options.groups, [&](const ParameterGroup& candidate) { return matches_any(candidate.patterns, known->first); });
            Made& target = made[static_cast<std::size_t>(place - options.groups.begin())];
            (options.decay_biases_and_norms || parameter.dim() > 1 ? target.decayed : target.undecayed).push_back(parameter);
        }
    const auto base = optimizer.param_groups().front().options().clone();
    std::vector<torch::optim::OptimizerParamGroup> groups;
    const auto add = [&](std::vector<at::Tensor> parameters, double factor, std::optional<double> decay) {
        if (parameters.empty()) return;
        auto& group = groups.emplace_back(std::move(parameters), base->clone());
        group.options().set_lr(group.options().get_lr() * factor);
        if (decay) group_option(group, "weight_decay") = *decay;
    };
    for (std::size_t i = 0; i < made.size(); ++i) {
        const ParameterGroup rule = i < options.groups.size() ? options.groups[i] : ParameterGroup{};
        add(std::move(made[i].decayed), rule.learning_rate_factor, rule.weight_decay);
        add(std::move(made[i].undecayed), rule.learning_rate_factor, 0.0);
    }
    optimizer.param_groups() = std::move(groups);
}

}  // namespace torchbus
