#pragma once
/// What makes one optimizer update: the optimizer, when it is due, and how its loss is computed.

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <torchbus/batch.hpp>

namespace torch::optim {
class Optimizer;
}

namespace torchbus {

class GradientOwners;

/// What one forward produced. An undefined loss means: the loss function computes it.
struct StepOutput {
    Output output;
    at::Tensor loss;  ///< Shapes: []; mean over the batch
};

/// A forward of the user's own, where model and loss of output and target do not do.
using StepFunction = std::function<StepOutput(const Batch&)>;

/// (output, batch) → mean loss over the batch. Shapes: [].
/// Made from any callable of (output tensor, targets) or of (Output, Batch).
class Loss {
public:
    Loss() = default;
    // Tensors first: a generic lambda would claim to take an Output and a Batch as well.
    template <class Call>
        requires std::is_invocable_r_v<at::Tensor, Call, const at::Tensor&, const at::Tensor&>
    Loss(Call call)  // NOLINT
        : call_([call = std::move(call)](const Output& output, const Batch& batch) mutable -> at::Tensor {
              return call(output.tensor, batch.targets);
          }) {}
    template <class Call>
        requires(!std::is_invocable_r_v<at::Tensor, Call, const at::Tensor&, const at::Tensor&> &&
                 std::is_invocable_r_v<at::Tensor, Call, const Output&, const Batch&>)
    Loss(Call call) : call_(std::move(call)) {}  // NOLINT

    explicit operator bool() const { return static_cast<bool>(call_); }
    at::Tensor operator()(const Output& output, const Batch& batch) const { return call_(output, batch); }

private:
    std::function<at::Tensor(const Output&, const Batch&)> call_;
};

/// A named pair of optimizer and loss. A run holds a list of them; most runs hold one without a name.
/// Within a window they follow each other in the order of the list.
struct Update {
    std::string name;
    std::shared_ptr<torch::optim::Optimizer> optimizer;
    StepFunction step;          ///< empty: the run's model and loss
    std::int64_t every = 1;     ///< makes its update on every n-th window
    std::shared_ptr<const GradientOwners> owners = {};  ///< set by who divides the update over ranks; null: every rank makes all of it

    /// The parameters of all groups of the optimizer, in order.
    std::vector<at::Tensor> parameters() const;
};

}  // namespace torchbus
