#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/optim/group_options.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/optim/registry.hpp>

#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

/// The largest relative difference of two models after 100 updates on one fixed sequence of gradients.
template <class MakeOurs, class MakeTheirs>
double difference_after_100(MakeOurs make_ours, MakeTheirs make_theirs) {
    auto ours = toy_model(), theirs = toy_model();
    auto our_optimizer = make_ours(ours->parameters());
    auto their_optimizer = make_theirs(theirs->parameters());
    auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
    for (int update = 0; update < 100; ++update) {
        for (std::size_t i = 0; i < ours->parameters().size(); ++i) {
            const at::Tensor gradient = torch::randn(ours->parameters()[i].sizes(), generator);
            ours->parameters()[i].mutable_grad() = gradient.clone();
            theirs->parameters()[i].mutable_grad() = gradient.clone();
        }
        our_optimizer->step();
        their_optimizer->step();
    }
    double difference = 0;
    for (std::size_t i = 0; i < ours->parameters().size(); ++i) {
        const at::Tensor expected = theirs->parameters()[i];
        difference = std::max(difference, ((ours->parameters()[i] - expected).abs().max() / expected.abs().max()).item<double>());
    }
    return difference;
}

template <class Optimizer, class Options>
auto torch_optimizer(Options options) {
    return [=](std::vector<at::Tensor> parameters) { return std::make_shared<Optimizer>(std::move(parameters), options); };
}

}  // namespace

TEST_CASE("fused optimizers stay within 1e-6 of torch::optim after 100 updates", "[optim]") {
    namespace optim = torch::optim;
    const auto sgd = [](SgdOptions options) { return [=](auto parameters) { return make_sgd(parameters, options); }; };
    CHECK(difference_after_100(sgd({.learning_rate = 0.1}), torch_optimizer<optim::SGD>(optim::SGDOptions(0.1))) < 1e-6);
    CHECK(difference_after_100(sgd({.learning_rate = 0.01, .momentum = 0.9, .weight_decay = 0.01}),
                               torch_optimizer<optim::SGD>(optim::SGDOptions(0.01).momentum(0.9).weight_decay(0.01))) < 1e-6);
    CHECK(difference_after_100(sgd({.learning_rate = 0.01, .momentum = 0.9, .nesterov = true}),
                               torch_optimizer<optim::SGD>(optim::SGDOptions(0.01).momentum(0.9).nesterov(true))) < 1e-6);
    CHECK(difference_after_100([](auto p) { return make_adam(p, {.weight_decay = 0.01}); },
                               torch_optimizer<optim::Adam>(optim::AdamOptions(1e-3).weight_decay(0.01))) < 1e-6);
    CHECK(difference_after_100([](auto p) { return make_adamw(p, {.weight_decay = 0.01}); },
                               torch_optimizer<optim::AdamW>(optim::AdamWOptions(1e-3).weight_decay(0.01))) < 1e-6);
    CHECK(difference_after_100([](auto p) { return make_adamw(p, {.weight_decay = 0.01, .amsgrad = true}); },
                               torch_optimizer<optim::AdamW>(optim::AdamWOptions(1e-3).weight_decay(0.01).amsgrad(true))) < 1e-6);
    CHECK(difference_after_100([](auto p) { return make_adagrad(p, {.weight_decay = 0.01}); },
                               torch_optimizer<optim::Adagrad>(optim::AdagradOptions(0.01).weight_decay(0.01))) < 1e-6);
}

TEST_CASE("a parameter that gets its first gradient later takes its first step then", "[optim]") {
    auto ours = toy_model(), theirs = toy_model();
    const auto our_optimizer = make_sgd(ours->parameters(), {.learning_rate = 0.1, .momentum = 0.9, .dampening = 0.5});
    torch::optim::SGD their_optimizer(theirs->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9).dampening(0.5));
    for (int update = 0; update < 3; ++update) {
        for (std::size_t i = update == 0 ? 2 : 0; i < 4; ++i) {
            ours->parameters()[i].mutable_grad() = torch::ones_like(ours->parameters()[i]);
            theirs->parameters()[i].mutable_grad() = torch::ones_like(ours->parameters()[i]);
        }
        our_optimizer->step();
        their_optimizer.step();
    }
    for (std::size_t i = 0; i < 4; ++i) CHECK(torch::allclose(ours->parameters()[i], theirs->parameters()[i], 1e-6, 1e-7));
}

TEST_CASE("what the kernels do not serve is updated by torch::optim's own step", "[optim]") {
    at::Tensor ours = torch::ones({4, 2}).t().detach().requires_grad_(), theirs = ours.detach().clone().requires_grad_();
    ours.mutable_grad() = torch::ones({2, 4});  // the parameter is not contiguous
    theirs.mutable_grad() = torch::ones({2, 4});
    make_sgd({ours}, {.learning_rate = 0.5})->step();
    torch::optim::SGD({theirs}, 0.5).step();
    CHECK(ours.equal(theirs));
}

TEST_CASE("the options of an optimizer that are marked as changeable are those that its groups have by name", "[optim]") {
    for (const OptimizerEntry& entry : optimizer_table().entries()) {
        const auto optimizer = optimizer_from_json({{"kind", entry.kind}}, "optimizer", toy_model()->parameters());
        const auto known = group_options(optimizer->param_groups().front());
        for (const OptionDescription& option : optimizer_table().describe(entry)) {
            INFO(entry.kind << "." << option.name);
            CHECK(option.changeable == known.contains(option.name));
        }
    }
}

TEST_CASE("optimizers refuse what they cannot mean", "[optim][errors]") {
    const auto parameters = toy_model()->parameters();
    CHECK_THROWS_WITH(make_sgd(parameters, {.learning_rate = -0.1}), "sgd: learning_rate: -0.1 is out of range; give a rate of at least 0, e.g. 0.001");
    CHECK_THROWS_WITH(make_adamw(parameters, {.beta2 = 1}), "adamw: beta2: 1 is out of range; give a number in [0, 1), e.g. 0.999");
    CHECK_THROWS_WITH(make_sgd({}, {}), "sgd: there are no parameters to optimize; does the model have any?");
    CHECK_THROWS_WITH(optimizer_from_json({{"kind", "adamv"}}, "run.json: optimizer", parameters),
                      "run.json: optimizer.kind: 'adamv' is not known; did you mean 'adam'? (expected one of sgd, adam, adamw, adagrad)");
    CHECK_THROWS_WITH(optimizer_from_json({{"kind", "sgd"}, {"learning_rate", -1}}, "run.json: optimizer", parameters),
                      "run.json: optimizer.learning_rate: -1 is out of range; give a number of at least 0");
    CHECK_THROWS_WITH(optimizer_from_json({{"kind", "sgd"}, {"momentun", 0.9}}, "run.json: optimizer", parameters),
                      "run.json: optimizer.momentun: unknown key; did you mean 'momentum'? (known: kind, learning_rate, weight_decay, momentum, nesterov)");
}
