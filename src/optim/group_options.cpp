#include <torchbus/optim/group_options.hpp>

#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/optim.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using NumberedOptions = std::vector<std::pair<std::string, double*>>;

NumberedOptions options_of(torch::optim::OptimizerOptions& options) {
    if (auto* sgd = dynamic_cast<torch::optim::SGDOptions*>(&options))
        return {{"learning_rate", &sgd->lr()}, {"momentum", &sgd->momentum()}, {"dampening", &sgd->dampening()}, {"weight_decay", &sgd->weight_decay()}};
    const auto of_adam = [](auto& adam) -> NumberedOptions {
        return {{"learning_rate", &adam.lr()}, {"beta1", &std::get<0>(adam.betas())}, {"beta2", &std::get<1>(adam.betas())},
                {"momentum", &std::get<0>(adam.betas())}, {"epsilon", &adam.eps()}, {"weight_decay", &adam.weight_decay()}};
    };
    if (auto* adam = dynamic_cast<torch::optim::AdamOptions*>(&options)) return of_adam(*adam);
    if (auto* adamw = dynamic_cast<torch::optim::AdamWOptions*>(&options)) return of_adam(*adamw);
    if (auto* adagrad = dynamic_cast<torch::optim::AdagradOptions*>(&options))
        return {{"learning_rate", &adagrad->lr()}, {"learning_rate_decay", &adagrad->lr_decay()}, {"weight_decay", &adagrad->weight_decay()},
                {"epsilon", &adagrad->eps()}};
    if (auto* rmsprop = dynamic_cast<torch::optim::RMSpropOptions*>(&options))
        return {{"learning_rate", &rmsprop->lr()}, {"momentum", &rmsprop->momentum()}, {"alpha", &rmsprop->alpha()}, {"epsilon", &rmsprop->eps()},
                {"weight_decay", &rmsprop->weight_decay()}};
    return {};
}

}  // namespace

double& group_option(torch::optim::OptimizerParamGroup& group, std::string_view name) {
    std::vector<std::string> known;
    for (const auto& [option, value] : options_of(group.options())) {
        if (option == name) return *value;
        known.push_back(option);
    }
    throw ConfigError(fmt::format("the optimizer has no option '{}'{} (it has {})", name, did_you_mean(name, known),
                                  known.empty() ? "none that is known here" : fmt::format("{}", fmt::join(known, ", "))));
}

std::map<std::string, double> group_options(const torch::optim::OptimizerParamGroup& group) {
    std::map<std::string, double> values;
    // They are only read; LibTorch has no way to them that is const.
    for (const auto& [option, value] : options_of(const_cast<torch::optim::OptimizerParamGroup&>(group).options())) values.emplace(option, *value);
    return values;
}

const std::vector<double>& BaseValues::of(const Update& update) {
    Values& values = by_update_[update.name];
    if (values.loaded) {
        values.loaded = false;
        values.optimizer = update.optimizer;
    } else if (values.optimizer.lock() != update.optimizer) {
        values = {update.optimizer, {}, false};
    }
    auto& groups = update.optimizer->param_groups();
    // The rate of an optimizer of any type can be read.
    while (values.by_group.size() < groups.size()) {
        auto& group = groups[values.by_group.size()];
        values.by_group.push_back(option_ == "learning_rate" ? group.options().get_lr() : group_option(group, option_));
    }
    return values.by_group;
}

nlohmann::json BaseValues::saved() const {
    nlohmann::json saved = nlohmann::json::object();
    for (const auto& [update, values] : by_update_) saved[update] = values.by_group;
    return saved;
}

void BaseValues::load(const nlohmann::json& saved) {
    for (const auto& [update, by_group] : saved.items()) {
        Values& values = by_update_[update];
        values.by_group = by_group.get<std::vector<double>>();
        values.loaded = true;
    }
}

}  // namespace torchbus
