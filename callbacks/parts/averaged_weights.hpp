#pragma once
/// Averages of a model's weights, and how they take the weights' place: for model_ema and stochastic_weight_averaging.

#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <torchbus/model.hpp>

namespace torchbus {

/// Tensors of the model and their averages, by name. The model's own are handles: they are copied into, never replaced.
class AveragedWeights {
public:
    /// Follows these tensors of the model. What has no average yet begins with the tensor as it is now.
    /// Throws: CheckpointError where an average that was loaded has another shape.
    void follow(const std::vector<NamedTensor>& tensors);
    bool following() const { return !tensors_.empty(); }
    bool any() const { return !by_name_.empty(); }
    void forget();

    /// average ← average + share · (weights − average). What is no floating-point number is copied.
    void add(double share);
    void copy();

    /// Puts the averages in the weights' place, and keeps the weights' bits aside.
    void show();
    void hide();
    bool shown() const { return !aside_.empty(); }

    const std::map<std::string, at::Tensor>& by_name() const { return by_name_; }
    /// Takes copies, and follows the same tensors of the model as before.
    void load(const std::map<std::string, at::Tensor>& averages);

private:
    at::Tensor average_of(const std::string& name, const at::Tensor& tensor);

    std::vector<at::Tensor> tensors_, averages_, aside_;
    std::map<std::string, at::Tensor> by_name_;
};

}  // namespace torchbus
