#pragma once
/// The gradients of one update, whoever owns them.

#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace torchbus {

/// Who clips, unscales or measures gradients goes through this view and stays right when optimizer state is
/// sharded over ranks. By default nothing is sharded: this rank owns everything and sums are its own.
class GradientsView {
public:
    explicit GradientsView(std::vector<at::Tensor> parameters) : parameters_(std::move(parameters)) {}
    virtual ~GradientsView() = default;

    std::span<const at::Tensor> parameters() const { return parameters_; }

    /// The defined gradients that this rank owns, in the order of parameters().
    virtual std::vector<at::Tensor> owned() const;

    /// Sums a scalar tensor over all owners. Rank: a collective where gradients are sharded.
    virtual at::Tensor sum_over_owners(at::Tensor value) const { return value; }

private:
    std::vector<at::Tensor> parameters_;
};

}  // namespace torchbus
