#include "averaged_weights.hpp"

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

void require_shape(const std::string& name, const at::Tensor& average, const at::Tensor& expected) {
    if (average.sizes() != expected.sizes())
        throw CheckpointError(fmt::format("the saved average of '{}' has another shape than the model's; is it of another model?", name));
}

/// In half precision the steps of an average vanish in rounding: it is kept in float32.
at::ScalarType type_of_average(const at::Tensor& tensor) {
    const bool reduced = tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
    return reduced ? at::kFloat : tensor.scalar_type();
}

}  // namespace

void AveragedWeights::follow(const std::vector<NamedTensor>& tensors) {
    const at::NoGradGuard no_grad;
    tensors_.clear();
    averages_.clear();
    for (const auto& [name, tensor] : tensors) {
        if (!tensor.defined()) continue;  // a buffer that is registered and not used
        tensors_.push_back(tensor.detach());
        averages_.push_back(average_of(name, tensors_.back()));
    }
}

void AveragedWeights::forget() {
    tensors_.clear();
    averages_.clear();
    by_name_.clear();
}

void AveragedWeights::add(double share) {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> averages, weights;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        if (!averages_[i].is_floating_point()) {
            averages_[i].copy_(tensors_[i]);
            continue;
        }
        averages.push_back(averages_[i]);
        weights.push_back(tensors_[i].to(averages_[i].scalar_type()));
    }
    if (!averages.empty()) at::_foreach_lerp_(averages, weights, share);
}

void AveragedWeights::copy() {
    const at::NoGradGuard no_grad;
    if (!tensors_.empty()) at::_foreach_copy_(averages_, tensors_);
}

void AveragedWeights::show() {
    const at::NoGradGuard no_grad;
    if (shown()) return;
    for (const at::Tensor& tensor : tensors_) aside_.push_back(tensor.clone());
    if (!tensors_.empty()) at::_foreach_copy_(tensors_, averages_);
}

void AveragedWeights::hide() {
    const at::NoGradGuard no_grad;
    if (shown()) at::_foreach_copy_(tensors_, aside_);
    aside_.clear();
}

void AveragedWeights::load(const std::map<std::string, at::Tensor>& averages) {
    const at::NoGradGuard no_grad;
    const bool in_place = following();
    for (const auto& [name, average] : averages) {
        const auto known = by_name_.find(name);
        if (in_place && known != by_name_.end()) {
            require_shape(name, average, known->second);
            known->second.copy_(average);
        } else {
            by_name_[name] = average.detach().clone();
        }
    }
}

at::Tensor AveragedWeights::average_of(const std::string& name, const at::Tensor& tensor) {
    at::Tensor& average = by_name_[name];
    const auto options = tensor.options().dtype(type_of_average(tensor));
    if (average.defined()) {
        require_shape(name, average, tensor);
        average = average.to(options);
    } else {
        average = tensor.to(options, /*non_blocking=*/false, /*copy=*/true);
    }
    return average;
}

}  // namespace torchbus
