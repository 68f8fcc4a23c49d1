#pragma once
/// The running statistics of batch norm, computed anew from given batches: for stochastic_weight_averaging.

#include <deque>
#include <vector>

#include <ATen/core/Tensor.h>

#include <torchbus/consensus.hpp>
#include <torchbus/model.hpp>

namespace torchbus {

/// A copy of what a forward reads of a batch.
Batch clone_of(const Batch& batch);

class BatchStatistics {
public:
    /// The statistics among a model's buffers: running_mean and running_var of whatever layer.
    explicit BatchStatistics(const Model& model);
    bool any() const { return !statistics_.empty(); }

    /// The statistics become their equal mean over these batches, of all ranks. Leaves the model in evaluation mode.
    void compute(const std::deque<Batch>& batches, Consensus& consensus);

    std::vector<at::Tensor> copies() const;
    void put(const std::vector<at::Tensor>& statistics);

private:
    void pass(const Batch& batch, const std::vector<at::Tensor>& before);
    void pass_alike(const Batch& batch, const std::vector<at::Tensor>& before);
    void find_momenta(const Batch& batch);
    void take_means(const std::vector<at::Tensor>& sums, const std::vector<at::Tensor>& former, double count, Consensus& consensus);

    Model model_;
    std::vector<at::Tensor> statistics_, counters_;
    std::vector<double> momenta_;  ///< one a statistic
};

}  // namespace torchbus
