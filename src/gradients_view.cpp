#include <torchbus/gradients_view.hpp>

#include <torch/types.h>

namespace torchbus {

std::vector<at::Tensor> GradientsView::held() const {
    std::vector<at::Tensor> gradients;
    gradients.reserve(parameters_.size());
    for (const at::Tensor& parameter : parameters_)
        if (parameter.grad().defined()) gradients.push_back(parameter.grad());
    return gradients;
}

at::Tensor GradientsView::norms_of(const std::vector<at::Tensor>& values, double p) const {
    const at::NoGradGuard no_grad;
    if (values.empty()) return torch::zeros({0});
    if (!owners_) return torch::stack(at::_foreach_norm(values, p));
    std::vector<at::Tensor> norms, own;
    std::vector<std::size_t> places;
    at::Tensor zero;  // where another rank measures, so that the sum is what the owner has measured
    for (const at::Tensor& parameter : parameters_) {
        if (!parameter.grad().defined()) continue;
        const at::Tensor& value = values.at(norms.size());
        const auto options = value.options().dtype(c10::toRealValueType(value.scalar_type()));
        if (is_own(parameter)) {
            places.push_back(norms.size());
            own.push_back(value);
        } else if (!zero.defined() || zero.dtype() != options.dtype() || zero.device() != options.device()) {
            zero = torch::zeros({}, options);
        }
        norms.push_back(zero);
    }
    if (!own.empty()) {
        const auto measured = at::_foreach_norm(own, p);
        for (std::size_t i = 0; i < own.size(); ++i) norms[places[i]] = measured[i];
    }
    return sum_over_owners(torch::stack(norms));
}

at::Tensor GradientsView::sum_over_owners(at::Tensor values) const {
    if (!owners_) return values;
    at::Tensor sum = values.detach().clone(at::MemoryFormat::Contiguous);
    owners_->sum(sum);
    return sum;
}

}  // namespace torchbus
