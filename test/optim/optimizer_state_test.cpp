#include <torchbus/error.hpp>
#include <torchbus/optim/optimizer_state.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

using Optimizer = std::shared_ptr<torch::optim::Optimizer>;
using Make = std::function<Optimizer(std::vector<at::Tensor>)>;

std::vector<NamedTensor> named(const torch::nn::Sequential& model) { return Model(model)->named_parameters(); }

void step(torch::nn::Sequential& model, const Optimizer& optimizer, std::uint64_t seed) {
    const auto data = toy_data(8, seed);
    optimizer->zero_grad();
    cross_entropy(model->forward(data->inputs()), data->targets()).backward();
    optimizer->step();
}

/// Not one of those that are known by name.
class OwnOptimizer final : public torch::optim::Optimizer {
public:
    explicit OwnOptimizer(std::vector<at::Tensor> parameters) : Optimizer({torch::optim::OptimizerParamGroup(std::move(parameters))}, std::make_unique<torch::optim::SGDOptions>(0.1)) {}
    at::Tensor step(LossClosure) override { return {}; }
};

}  // namespace

TEST_CASE("an optimizer goes on from its saved state bit for bit, whichever it is", "[optim][state]") {
    const std::vector<std::pair<std::string, Make>> kinds = {
        {"sgd", [](auto p) { return make_sgd(std::move(p), {.learning_rate = 0.1, .momentum = 0.9}); }},
        {"adam", [](auto p) { return make_adam(std::move(p), {.learning_rate = 0.01}); }},
        {"adamw", [](auto p) { return make_adamw(std::move(p), {.learning_rate = 0.01, .amsgrad = true}); }},
        {"adagrad", [](auto p) { return make_adagrad(std::move(p), {.learning_rate = 0.05}); }},
        {"rmsprop", [](auto p) { return std::make_shared<torch::optim::RMSprop>(std::move(p), torch::optim::RMSpropOptions(0.01).momentum(0.5).centered(true)); }},
        {"adam", [](auto p) { return std::make_shared<torch::optim::Adam>(std::move(p), torch::optim::AdamOptions(0.01)); }},
    };
    for (const auto& [kind, make] : kinds) {
        INFO(kind);
        auto whole = toy_model(), resumed = toy_model(77);
        const Optimizer optimizer = make(whole->parameters());
        for (std::uint64_t seed = 1; seed <= 3; ++seed) step(whole, optimizer, seed);
        optimizer->param_groups()[0].options().set_lr(0.02);  // as a schedule does
        SavedState state = save_optimizer(*optimizer, named(whole));
        CHECK(state.values.at("kind") == kind);
        for (auto& [name, tensor] : state.tensors) tensor = tensor.clone();
        {
            const at::NoGradGuard no_grad;
            for (std::size_t i = 0; i < 4; ++i) resumed->parameters()[i].copy_(whole->parameters()[i]);
        }
        const Optimizer other = make(resumed->parameters());
        step(resumed, other, 9);  // what it has gathered itself is forgotten
        {
            const at::NoGradGuard no_grad;
            for (std::size_t i = 0; i < 4; ++i) resumed->parameters()[i].copy_(whole->parameters()[i]);
        }
        load_optimizer(*other, named(resumed), state);
        CHECK(other->param_groups()[0].options().get_lr() == 0.02);
        for (std::uint64_t seed = 4; seed <= 6; ++seed) {
            step(whole, optimizer, seed);
            step(resumed, other, seed);
        }
        CHECK(equal_bits(resumed->parameters(), whole->parameters()));
    }
}

TEST_CASE("a state names its tensors by parameter and field, and loads of another kind or shape change nothing", "[optim][state]") {
    auto model = toy_model();
    const Optimizer optimizer = make_adamw(model->parameters(), {.weight_decay = 0.01});
    CHECK(save_optimizer(*optimizer, named(model)).tensors.empty());  // before the first update
    step(model, optimizer, 1);
    const SavedState state = save_optimizer(*optimizer, named(model));
    std::vector<std::string> names;
    for (const auto& [name, tensor] : state.tensors) names.push_back(name);
    CHECK(names == std::vector<std::string>{"0.bias/exp_avg", "0.bias/exp_avg_sq", "0.weight/exp_avg", "0.weight/exp_avg_sq", "2.bias/exp_avg", "2.bias/exp_avg_sq", "2.weight/exp_avg", "2.weight/exp_avg_sq"});
    CHECK(state.values.at("parameters").at("0.weight").at("step") == 1);
    CHECK(state.values.at("groups")[0].at("options").at("weight_decay") == 0.01);

    auto other = toy_model();
    const Optimizer sgd = make_sgd(other->parameters(), {.momentum = 0.9});
    CHECK_THROWS_WITH(load_optimizer(*sgd, named(other), state), "it is the state of the optimizer adamw, and the run has sgd");
    torch::nn::Sequential wide(torch::nn::Linear(6, 9), torch::nn::ReLU(), torch::nn::Linear(9, 3));
    const Optimizer of_wide = make_adamw(wide->parameters(), {});
    CHECK_THROWS_WITH(load_optimizer(*of_wide, named(wide), state), "the exp_avg of '0.weight' has shape [8, 6], the parameter has [9, 6]");
    CHECK(of_wide->state().empty());
    torch::nn::Sequential one(torch::nn::Linear(6, 3));
    const Optimizer of_one = make_adamw(one->parameters(), {});
    CHECK_THROWS_WITH(load_optimizer(*of_one, named(one), state), "its parameter group 0 has [0.weight, 0.bias, 2.weight, 2.bias], the run's has [0.weight, 0.bias]");
}

TEST_CASE("an optimizer of the user's own is saved as its archive", "[optim][state]") {
    auto model = toy_model();
    OwnOptimizer own(model->parameters());
    const SavedState state = save_optimizer(own, named(model));
    CHECK(state.values.at("kind") == "archive");
    REQUIRE(state.tensors.contains("archive"));
    CHECK_NOTHROW(load_optimizer(own, named(model), state));
}
