#pragma once
/// The gradients of one update, whoever owns them.

#include <memory>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace torchbus {

/// Which rank updates which parameter, and so owns its gradient, where the work of an update is divided over ranks.
class GradientOwners {
public:
    virtual ~GradientOwners() = default;
    virtual bool is_own(const at::Tensor& parameter) const = 0;
    /// Over all owners, in place. Rank: a collective.
    virtual void sum(at::Tensor& values) const = 0;
};

/// Who unscales, measures, clips or applies gradients goes through this view and stays right where they are divided over
/// ranks. Without owners nothing is: this rank owns all, and sums are its own.
class GradientsView {
public:
    explicit GradientsView(std::vector<at::Tensor> parameters, std::shared_ptr<const GradientOwners> owners = {})
        : parameters_(std::move(parameters)), owners_(std::move(owners)) {}

    std::span<const at::Tensor> parameters() const { return parameters_; }
    bool is_own(const at::Tensor& parameter) const { return !owners_ || owners_->is_own(parameter); }

    /// The gradients that lie on this rank, in the order of parameters(): who changes gradients changes these.
    std::vector<at::Tensor> held() const;
    /// The p-norm of each, measured by its owner alone and known to all; of gradients of one type and layout with the same bits
    /// whoever owns them. Shapes: [held]. Rank: a collective where gradients have owners.
    at::Tensor norms(double p = 2) const { return norms_of(held(), p); }
    /// The same of values that belong to the gradients in held(), one each.
    at::Tensor norms_of(const std::vector<at::Tensor>& values, double p = 2) const;
    /// Of what every rank has found; where nothing is divided, that of this one. `values` stays. Rank: as norms().
    at::Tensor sum_over_owners(at::Tensor values) const;

private:
    std::vector<at::Tensor> parameters_;
    std::shared_ptr<const GradientOwners> owners_;
};

}  // namespace torchbus
