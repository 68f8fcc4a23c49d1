#pragma once
/// Optimizers on LibTorch's fused kernels. Each is also the torch::optim class of its name, with that class's options,
/// state and serialization, so it goes wherever a torch::optim::Optimizer goes. Parameters that the kernels do not
/// serve (sparse gradients, other types) are updated by torch::optim's own step.

#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json_fwd.hpp>

namespace torch::optim {
class Optimizer;
}

namespace torchbus {

/// Source: Sutskever et al. 2013, as in torch.optim.SGD.
struct SgdOptions {
    double learning_rate = 0.01;  ///< ≥ 0
    double momentum = 0;          ///< ≥ 0
    double dampening = 0;
    double weight_decay = 0;      ///< ≥ 0, added to the gradient
    bool nesterov = false;        ///< needs momentum and no dampening
};
std::shared_ptr<torch::optim::Optimizer> make_sgd(std::vector<at::Tensor> parameters, SgdOptions options);

/// Source: Kingma and Ba 2015, arXiv:1412.6980.
struct AdamOptions {
    double learning_rate = 1e-3;  ///< ≥ 0
    double beta1 = 0.9;           ///< in [0, 1)
    double beta2 = 0.999;         ///< in [0, 1)
    double epsilon = 1e-8;        ///< > 0
    double weight_decay = 0;      ///< ≥ 0; Adam adds it to the gradient, AdamW shrinks the weights
    bool amsgrad = false;
};
std::shared_ptr<torch::optim::Optimizer> make_adam(std::vector<at::Tensor> parameters, AdamOptions options);

/// Source: Loshchilov and Hutter 2019, arXiv:1711.05101. Give weight_decay: torch.optim.AdamW's default is 0.01.
std::shared_ptr<torch::optim::Optimizer> make_adamw(std::vector<at::Tensor> parameters, AdamOptions options);

/// Source: Duchi et al. 2011, as in torch.optim.Adagrad.
struct AdagradOptions {
    double learning_rate = 0.01;      ///< ≥ 0
    double learning_rate_decay = 0;   ///< ≥ 0
    double weight_decay = 0;          ///< ≥ 0
    double initial_accumulator = 0;   ///< ≥ 0
    double epsilon = 1e-10;           ///< > 0
};
std::shared_ptr<torch::optim::Optimizer> make_adagrad(std::vector<at::Tensor> parameters, AdagradOptions options);

/// Reads `{"kind": "adamw", "learning_rate": …}`. Throws: ConfigError with the JSON path.
std::shared_ptr<torch::optim::Optimizer> optimizer_from_json(const nlohmann::json& json, const std::string& where,
                                                             std::vector<at::Tensor> parameters);

}  // namespace torchbus
