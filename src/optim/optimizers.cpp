#include <torchbus/optim/optimizers.hpp>

#include <algorithm>

#include <fmt/format.h>
#include <torch/optim.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

/// What the fused kernels serve: dense parameters of one floating type, on one device, gradients alike.
bool is_fusable(const std::vector<Tensor>& parameters) {
    const Tensor* first = nullptr;
    for (const Tensor& parameter : parameters) {
        const Tensor& gradient = parameter.grad();
        if (!gradient.defined()) continue;
        if (!first) first = &parameter;
        const bool alike = parameter.scalar_type() == first->scalar_type() && parameter.device() == first->device() &&
                           gradient.scalar_type() == first->scalar_type() && !gradient.is_sparse();
        const bool served = parameter.is_floating_point() && (parameter.is_cpu() || parameter.is_cuda()) && parameter.is_contiguous() &&
                            gradient.is_contiguous();
        if (!alike || !served) return false;
    }
    return true;
}

/// Whether every group can take the fused way. Asked on every step; tens of nanoseconds a parameter.
bool all_fusable(const std::vector<torch::optim::OptimizerParamGroup>& groups) {
    return std::ranges::all_of(groups, [](const auto& group) { return is_fusable(group.params()); });
}

class FusedSgd final : public torch::optim::SGD {
public:
    using SGD::SGD;
    Tensor step(LossClosure closure) override {
        if (closure || !all_fusable(param_groups_)) return SGD::step(std::move(closure));
        const at::NoGradGuard no_grad;
        for (auto& group : param_groups_) update(group, static_cast<torch::optim::SGDOptions&>(group.options()));
        return {};
    }

private:
    void update(torch::optim::OptimizerParamGroup& group, const torch::optim::SGDOptions& options) {
        // A parameter that has no momentum buffer yet takes its first step, which is another kernel call.
        Tensors parameters, gradients, buffers, first_parameters, first_gradients, first_buffers;
        for (Tensor& parameter : group.params()) {
            const Tensor& gradient = parameter.grad();
            if (!gradient.defined()) continue;
            if (options.momentum() == 0) {
                parameters.push_back(parameter);
                gradients.push_back(gradient);
                continue;
            }
            auto& state = state_[parameter.unsafeGetTensorImpl()];
            const bool first = !state;
            if (first) {
                auto fresh = std::make_unique<torch::optim::SGDParamState>();
                fresh->momentum_buffer(torch::empty_like(gradient));
                state = std::move(fresh);
            }
            (first ? first_parameters : parameters).push_back(parameter);
            (first ? first_gradients : gradients).push_back(gradient);
            (first ? first_buffers : buffers).push_back(static_cast<torch::optim::SGDParamState&>(*state).momentum_buffer());
        }
        const auto call = [&](const Tensors& p, const Tensors& g, const Tensors& b, bool is_first_step) {
            if (!p.empty())
                at::_fused_sgd_(p, g, b, options.weight_decay(), options.momentum(), options.lr(), options.dampening(), options.nesterov(),
                                /*maximize=*/false, is_first_step);
        };
        call(first_parameters, first_gradients, first_buffers, true);
        call(parameters, gradients, buffers, false);
    }
};

/// Adam and AdamW share state and differ in the kernel.
template <class Base, class Options, class State, auto kKernel>
class FusedAdam final : public Base {
public:
    using Base::Base;
    Tensor step(typename Base::LossClosure closure) override {
        if (closure || !all_fusable(this->param_groups_)) return Base::step(std::move(closure));
        const at::NoGradGuard no_grad;
        for (auto& group : this->param_groups_) update(group, static_cast<Options&>(group.options()));
        return {};
    }

private:
    void update(torch::optim::OptimizerParamGroup& group, const Options& options) {
        Tensors parameters, gradients, averages, squares, largest, steps;
        for (Tensor& parameter : group.params()) {
            const Tensor& gradient = parameter.grad();
            if (!gradient.defined()) continue;
            State& state = state_of(parameter, options.amsgrad());
            state.step(state.step() + 1);
            parameters.push_back(parameter);
            gradients.push_back(gradient);
            averages.push_back(state.exp_avg());
            squares.push_back(state.exp_avg_sq());
            if (options.amsgrad()) largest.push_back(state.max_exp_avg_sq());
            steps.push_back(step_tensor(parameter, state.step()));
        }
        if (parameters.empty()) return;
        kKernel(parameters, gradients, averages, squares, largest, steps, options.lr(), std::get<0>(options.betas()),
                std::get<1>(options.betas()), options.weight_decay(), options.eps(), options.amsgrad());
    }
    State& state_of(const Tensor& parameter, bool amsgrad) {
        auto& state = this->state_[parameter.unsafeGetTensorImpl()];
        if (!state) {
            auto fresh = std::make_unique<State>();
            fresh->step(0);
            fresh->exp_avg(torch::zeros_like(parameter));
            fresh->exp_avg_sq(torch::zeros_like(parameter));
            if (amsgrad) fresh->max_exp_avg_sq(torch::zeros_like(parameter));
            state = std::move(fresh);
        }
        return static_cast<State&>(*state);
    }
    /// The kernels take the number of the step as a tensor; torch::optim's state keeps it as a number.
    Tensor step_tensor(const Tensor& parameter, std::int64_t step) {
        Tensor& tensor = step_tensors_[parameter.unsafeGetTensorImpl()];
        if (!tensor.defined()) tensor = torch::empty({}, parameter.options().dtype(torch::kFloat));
        if (tensor.is_cpu())
            *tensor.mutable_data_ptr<float>() = static_cast<float>(step);
        else
            tensor.fill_(static_cast<double>(step));
        return tensor;
    }
    std::unordered_map<void*, Tensor> step_tensors_;
};

void adam_kernel(const Tensors& p, const Tensors& g, const Tensors& m, const Tensors& v, const Tensors& vmax, const Tensors& steps, double lr,
                 double beta1, double beta2, double decay, double eps, bool amsgrad) {
    at::_fused_adam_(p, g, m, v, vmax, steps, lr, beta1, beta2, decay, eps, amsgrad, /*maximize=*/false);
}
void adamw_kernel(const Tensors& p, const Tensors& g, const Tensors& m, const Tensors& v, const Tensors& vmax, const Tensors& steps, double lr,
                  double beta1, double beta2, double decay, double eps, bool amsgrad) {
    at::_fused_adamw_(p, g, m, v, vmax, steps, lr, beta1, beta2, decay, eps, amsgrad, /*maximize=*/false);
}

using FusedAdamPlain = FusedAdam<torch::optim::Adam, torch::optim::AdamOptions, torch::optim::AdamParamState, adam_kernel>;
using FusedAdamW = FusedAdam<torch::optim::AdamW, torch::optim::AdamWOptions, torch::optim::AdamWParamState, adamw_kernel>;

class FusedAdagrad final : public torch::optim::Adagrad {
public:
    using Adagrad::Adagrad;
    Tensor step(LossClosure closure) override {
        // The fused kernel exists for the CPU only.
        const bool on_cpu = std::ranges::all_of(param_groups_, [](const auto& group) {
            return std::ranges::all_of(group.params(), [](const Tensor& p) { return p.is_cpu(); });
        });
        if (closure || !on_cpu || !all_fusable(param_groups_)) return Adagrad::step(std::move(closure));
        const at::NoGradGuard no_grad;
        for (auto& group : param_groups_) update(group, static_cast<torch::optim::AdagradOptions&>(group.options()));
        return {};
    }

private:
    void update(torch::optim::OptimizerParamGroup& group, const torch::optim::AdagradOptions& options) {
        Tensors parameters, gradients, sums, steps;
        for (Tensor& parameter : group.params()) {
            const Tensor& gradient = parameter.grad();
            if (!gradient.defined()) continue;
            auto& state = static_cast<torch::optim::AdagradParamState&>(*state_.at(parameter.unsafeGetTensorImpl()));
            state.step(state.step() + 1);
            parameters.push_back(parameter);
            gradients.push_back(gradient);
            sums.push_back(state.sum());
            steps.push_back(torch::scalar_tensor(static_cast<double>(state.step()), torch::kFloat));
        }
        if (!parameters.empty())
            at::_fused_adagrad_(parameters, gradients, sums, steps, options.lr(), options.lr_decay(), options.weight_decay(), options.eps(), /*maximize=*/false);
    }
};

void check(bool holds, const char* kind, const char* name, double value, const char* advice) {
    if (!holds) throw ConfigError(fmt::format("{}: {}: {} is out of range; give {}", kind, name, value, advice));
}
void check_common(const char* kind, double learning_rate, double weight_decay, const Tensors& parameters) {
    check(learning_rate >= 0, kind, "learning_rate", learning_rate, "a rate of at least 0, e.g. 0.001");
    check(weight_decay >= 0, kind, "weight_decay", weight_decay, "at least 0");
    if (parameters.empty()) throw ConfigError(fmt::format("{}: there are no parameters to optimize; does the model have any?", kind));
}
void check_adam(const char* kind, const AdamOptions& options, const Tensors& parameters) {
    check_common(kind, options.learning_rate, options.weight_decay, parameters);
    check(options.beta1 >= 0 && options.beta1 < 1, kind, "beta1", options.beta1, "a number in [0, 1), e.g. 0.9");
    check(options.beta2 >= 0 && options.beta2 < 1, kind, "beta2", options.beta2, "a number in [0, 1), e.g. 0.999");
    check(options.epsilon > 0, kind, "epsilon", options.epsilon, "a positive number, e.g. 1e-8");
}

template <class Options>
Options torch_options(const AdamOptions& options) {
    return Options(options.learning_rate).betas({options.beta1, options.beta2}).eps(options.epsilon).weight_decay(options.weight_decay).amsgrad(options.amsgrad);
}

}  // namespace

std::shared_ptr<torch::optim::Optimizer> make_sgd(Tensors parameters, SgdOptions options) {
    check_common("sgd", options.learning_rate, options.weight_decay, parameters);
    check(options.momentum >= 0, "sgd", "momentum", options.momentum, "at least 0, e.g. 0.9");
    check(!options.nesterov || (options.momentum > 0 && options.dampening == 0), "sgd", "nesterov", 1, "momentum above 0 and no dampening with it");
    return std::make_shared<FusedSgd>(std::move(parameters), torch::optim::SGDOptions(options.learning_rate)
        .momentum(options.momentum).dampening(options.dampening).weight_decay(options.weight_decay).nesterov(options.nesterov));
}

std::shared_ptr<torch::optim::Optimizer> make_adam(Tensors parameters, AdamOptions options) {
    check_adam("adam", options, parameters);
    return std::make_shared<FusedAdamPlain>(std::move(parameters), torch_options<torch::optim::AdamOptions>(options));
}

std::shared_ptr<torch::optim::Optimizer> make_adamw(Tensors parameters, AdamOptions options) {
    check_adam("adamw", options, parameters);
    return std::make_shared<FusedAdamW>(std::move(parameters), torch_options<torch::optim::AdamWOptions>(options));
}

std::shared_ptr<torch::optim::Optimizer> make_adagrad(Tensors parameters, AdagradOptions options) {
    check_common("adagrad", options.learning_rate, options.weight_decay, parameters);
    check(options.learning_rate_decay >= 0, "adagrad", "learning_rate_decay", options.learning_rate_decay, "at least 0");
    check(options.initial_accumulator >= 0, "adagrad", "initial_accumulator", options.initial_accumulator, "at least 0");
    check(options.epsilon > 0, "adagrad", "epsilon", options.epsilon, "a positive number, e.g. 1e-10");
    return std::make_shared<FusedAdagrad>(std::move(parameters), torch::optim::AdagradOptions(options.learning_rate)
        .lr_decay(options.learning_rate_decay).weight_decay(options.weight_decay).initial_accumulator_value(options.initial_accumulator).eps(options.epsilon));
}

}  // namespace torchbus
