#include <torchbus/gradients_view.hpp>

namespace torchbus {

std::vector<at::Tensor> GradientsView::owned() const {
    std::vector<at::Tensor> gradients;
    gradients.reserve(parameters_.size());
    for (const at::Tensor& parameter : parameters_)
        if (parameter.grad().defined()) gradients.push_back(parameter.grad());
    return gradients;
}

}  // namespace torchbus
