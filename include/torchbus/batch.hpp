#pragma once
/// What goes into a model and what comes out.
/// Shape legend, used everywhere: N samples in a batch, C classes, T tokens.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <torchbus/batch_range.hpp>

namespace torchbus {

/// Tensors by name, in the order they were added.
class NamedTensors {
public:
    /// The tensor of that name; added undefined where there is none.
    at::Tensor& operator[](std::string_view name);
    /// The tensor of that name, or nullptr.
    const at::Tensor* find(std::string_view name) const;
    auto begin() const { return entries_.begin(); }
    auto end() const { return entries_.end(); }
    auto begin() { return entries_.begin(); }
    auto end() { return entries_.end(); }
    bool empty() const { return entries_.empty(); }

private:
    std::vector<std::pair<std::string, at::Tensor>> entries_;
};

/// What the trainer has done with a batch of a training window, so that each happens once however often it goes forward.
struct BatchProgress {
    bool prepared = false;  ///< BatchReady was emitted
    bool measured = false;  ///< ForwardEnd was emitted in this step
    bool counted = false;   ///< its samples are in the position
};

/// A batch of all ranks, of which each has a part: valid samples, tokens and weights as its loader knows them.
struct BatchOverRanks {
    std::int64_t samples = 0, tokens = 0;
    double weight = 0;
    double own_weight = 0;  ///< of this rank's part
};

/// One micro-batch.
struct Batch {
    at::Tensor inputs;                  ///< Shapes: [N, …]
    at::Tensor targets;                 ///< Shapes: [N, …]; undefined where the data has none
    NamedTensors extras;                ///< what the user adds: masks, lengths, mixing weights
    std::vector<std::int64_t> indices;  ///< which samples of the dataset; empty for data without an index
    std::int64_t samples = 0;           ///< N
    std::int64_t valid = 0;             ///< samples that count in metrics; the first `valid` of the batch
    std::int64_t tokens = 0;            ///< tokens, where the data declares them
    double weight = 0;                  ///< share in the mean of a window: samples, or tokens where declared
    BatchOverRanks over_ranks = {};     ///< what the position counts; data parallel sums it at TrainStepStart where loaders do not know it
    BatchProgress progress = {};        ///< kept by the trainer; who splits a batch hands it on to the parts

    /// Calls `change` on every defined tensor, which may replace it.
    template <class Change>
    void for_each_tensor(Change&& change) {
        if (inputs.defined()) change(inputs);
        if (targets.defined()) change(targets);
        for (auto& [name, tensor] : extras)
            if (tensor.defined()) change(tensor);
    }
};

/// Samples `first` to `first + count` of a batch. Tensors of one entry a sample are narrowed, scalars are shared. Weight and
/// tokens are divided by samples, or by tokens where extras["lengths"] tells those of each.
/// Throws: ConfigError that begins with `who`, for a tensor of another length, or tokens without lengths.
Batch part_of(const Batch& batch, std::int64_t first, std::int64_t count, std::string_view who);

/// What a model returns: one tensor, and more by name where it has several results.
struct Output {
    at::Tensor tensor;
    NamedTensors extras;
    Output() = default;
    Output(at::Tensor result) : tensor(std::move(result)) {}  // NOLINT: a forward returns a tensor
};

/// The batches of one update. Its length is known before the first forward.
struct Window {
    std::vector<Batch> batches;
    /// Sum of the batches' weights; over ranks, once data parallel has summed it at TrainStepStart.
    double total_weight = 0;
    BatchRange range = {};  ///< where its batches stand in the epoch, in training

    std::int64_t count() const { return static_cast<std::int64_t>(batches.size()); }
    /// Factor of batch `index`'s mean loss in the mean over the window. Exactly 1 for a lone batch, and 0 where
    /// nothing of the window counts.
    double share(std::int64_t index) const {
        return total_weight > 0 ? batches[static_cast<std::size_t>(index)].weight / total_weight : 0.0;
    }
};

}  // namespace torchbus
