#pragma once
/// Averages of a model's weights, and how they take the weights' place: for model_ema and stochastic_weight_averaging.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/error.hpp>
#include <torchbus/model.hpp>
#include <torchbus/run_state.hpp>

namespace torchbus {

/// Tensors of the model and their averages, by name. The model's own are handles: they are copied into, never replaced.
class AveragedWeights {
public:
    /// Follows these tensors of the model. What has no average yet begins with the tensor as it is now.
    /// Throws: CheckpointError where an average that was loaded has another shape.
    void follow(const std::vector<NamedTensor>& tensors) {
        const at::NoGradGuard no_grad;
        tensors_.clear();
        averages_.clear();
        for (const auto& [name, tensor] : tensors) {
            if (!tensor.defined()) continue;  // a buffer that is registered and not used
            tensors_.push_back(tensor.detach());
            averages_.push_back(average_of(name, tensors_.back()));
        }
    }
    bool following() const { return !tensors_.empty(); }
    bool any() const { return !by_name_.empty(); }
    void forget() {
        tensors_.clear();
        averages_.clear();
        by_name_.clear();
    }

    /// average ← average + share · (weights − average). What is no floating-point number is copied.
    void add(double share) {
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
    void copy() {
        const at::NoGradGuard no_grad;
        if (!tensors_.empty()) at::_foreach_copy_(averages_, tensors_);
    }

    /// Puts the averages in the weights' place, and keeps the weights' bits aside.
    void show() {
        const at::NoGradGuard no_grad;
        if (shown()) return;
        for (const at::Tensor& tensor : tensors_) aside_.push_back(tensor.clone());
        if (!tensors_.empty()) at::_foreach_copy_(tensors_, averages_);
    }
    void hide() {
        const at::NoGradGuard no_grad;
        if (shown()) at::_foreach_copy_(tensors_, aside_);
        aside_.clear();
    }
    bool shown() const { return !aside_.empty(); }

    const std::map<std::string, at::Tensor>& by_name() const { return by_name_; }
    /// Takes copies, and follows the same tensors of the model as before.
    void load(const std::map<std::string, at::Tensor>& averages) {
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

private:
    static void require_shape(const std::string& name, const at::Tensor& average, const at::Tensor& expected) {
        if (average.sizes() != expected.sizes())
            throw CheckpointError(fmt::format("the saved average of '{}' has another shape than the model's; is it of another model?", name));
    }
    /// In half precision the steps of an average vanish in rounding: it is kept in float32.
    static at::ScalarType type_of_average(const at::Tensor& tensor) {
        const bool reduced = tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
        return reduced ? at::kFloat : tensor.scalar_type();
    }
    at::Tensor average_of(const std::string& name, const at::Tensor& tensor) {
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

    std::vector<at::Tensor> tensors_, averages_, aside_;
    std::map<std::string, at::Tensor> by_name_;
};

}  // namespace torchbus
