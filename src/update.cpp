#include <torchbus/update.hpp>

#include <torch/optim/optimizer.h>

namespace torchbus {

std::vector<at::Tensor> Update::parameters() const {
    std::vector<at::Tensor> all;
    for (const auto& group : optimizer->param_groups())
        all.insert(all.end(), group.params().begin(), group.params().end());
    return all;
}

}  // namespace torchbus
