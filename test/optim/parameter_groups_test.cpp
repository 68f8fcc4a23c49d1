#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/optim/parameter_groups.hpp>

#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

std::vector<NamedTensor> names_of(const torch::nn::Sequential& model) {
    std::vector<NamedTensor> named;
    for (const auto& item : model->named_parameters()) named.emplace_back(item.key(), item.value());
    return named;
}

double decay_of(const torch::optim::OptimizerParamGroup& group) {
    return static_cast<const torch::optim::AdamWOptions&>(group.options()).weight_decay();
}

/// "learning rate, weight decay, parameters" of each group.
std::vector<std::string> groups_of(torch::optim::Optimizer& optimizer) {
    std::vector<std::string> groups;
    for (const auto& group : optimizer.param_groups()) groups.push_back(fmt::format("{:.3g}, {:.3g}, {}", group.options().get_lr(), decay_of(group), group.params().size()));
    return groups;
}

}  // namespace

TEST_CASE("parameters are grouped by name, each with a rate and a decay of its own", "[optim][groups]") {
    auto model = toy_model();  // 0.weight, 0.bias, 2.weight, 2.bias
    auto optimizer = make_adamw(model->parameters(), {.learning_rate = 0.01, .weight_decay = 0.1});
    group_parameters(*optimizer, names_of(model), {.groups = {{{"2.*"}, 10.0, 0.5}}});
    CHECK(groups_of(*optimizer) == std::vector<std::string>{"0.1, 0.5, 2", "0.01, 0.1, 2"});
}

TEST_CASE("biases and norms may go without weight decay", "[optim][groups]") {
    auto model = toy_model();
    auto optimizer = make_adamw(model->parameters(), {.learning_rate = 0.01, .weight_decay = 0.1});
    group_parameters(*optimizer, names_of(model), {.groups = {{{"2.*"}, 2.0}}, .decay_biases_and_norms = false});
    CHECK(groups_of(*optimizer) == std::vector<std::string>{"0.02, 0.1, 1", "0.02, 0, 1", "0.01, 0.1, 1", "0.01, 0, 1"});
}

TEST_CASE("groups take part in the update: a factor of 0 leaves its parameters as they are", "[optim][groups]") {
    auto model = toy_model();
    auto optimizer = make_adamw(model->parameters(), {.learning_rate = 0.01, .weight_decay = 0.1});
    group_parameters(*optimizer, names_of(model), {.groups = {{{"0.*"}, 0.0}}});
    const auto before = copies_of(model->parameters());
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = optimizer, .handle_signals = false});
    trainer.train(toy_data(16), {.batch_size = 4});
    const auto after = copies_of(model->parameters());
    CHECK(after[0].equal(before[0]));
    CHECK(after[1].equal(before[1]));
    CHECK_FALSE(after[2].equal(before[2]));
    CHECK_FALSE(after[3].equal(before[3]));
    CHECK_THROWS_WITH(group_parameters(*optimizer, names_of(model), {}), "parameter groups: the optimizer has made a step already; group its parameters before");
}

TEST_CASE("a pattern that matches nothing, and values out of range, are refused", "[optim][groups]") {
    auto model = toy_model();
    auto optimizer = make_adamw(model->parameters(), {});
    const auto refused = [&](ParameterGroup group) { group_parameters(*optimizer, names_of(model), {.groups = {std::move(group)}}); };
    CHECK_THROWS_WITH(refused({{"2.wieght"}}), "parameter groups: no parameter matches '2.wieght'; did you mean '2.weight'? (torchbus summary lists them)");
    CHECK_THROWS_WITH(refused({{"2.*"}, -1.0}), "parameter groups: learning_rate_factor: -1 is negative; give a factor of the learning rate, e.g. 0.1");
    CHECK_THROWS_WITH(refused({{"2.*"}, 1.0, -0.5}), "parameter groups: weight_decay: -0.5 is negative; give at least 0");
    CHECK_THROWS_WITH(refused({}), "parameter groups: a group has no patterns; name its parameters, e.g. \"head.*\"");
    CHECK(optimizer->param_groups().size() == 1);
}
