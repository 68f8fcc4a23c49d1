#pragma once
/// Where samples come from.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <torchbus/batch.hpp>

namespace torchbus {

/// From what a dataset may draw randomness: never from a default generator, nor from which thread loads.
struct SampleSeed {
    std::uint64_t seed = 0;
    std::int64_t epoch = 0;
    /// A well-mixed seed for one sample. Source: SplitMix64, Steele et al. 2014.
    std::uint64_t of(std::int64_t index) const;
};

/// A dataset with a length.
class Dataset {
public:
    virtual ~Dataset() = default;
    virtual std::int64_t size() const = 0;
    /// The samples of these indices, in this order. Thread: any, several at a time, if prefers_threads().
    virtual Batch gather(std::span<const std::int64_t> indices, SampleSeed seed) const = 0;
    /// Whether gathering is worth a thread: items are decoded or transformed one by one.
    virtual bool prefers_threads() const { return false; }
};

/// Tensors in memory, all on one device, whose first dimension counts samples; whole batches are gathered at once.
class TensorDataset final : public Dataset {
public:
    /// Shapes: inputs [N, …], targets [N, …] or undefined. Throws: DataError where the counts differ.
    explicit TensorDataset(at::Tensor inputs, at::Tensor targets = {});
    /// Adds a named tensor. Shapes: [N, …].
    TensorDataset& add(std::string name, at::Tensor tensor);
    std::int64_t size() const override;
    Batch gather(std::span<const std::int64_t> indices, SampleSeed seed) const override;
    const at::Tensor& inputs() const { return inputs_; }
    const at::Tensor& targets() const { return targets_; }

private:
    at::Tensor inputs_;
    at::Tensor targets_;
    NamedTensors extras_;
};

/// One sample.
struct Item {
    at::Tensor input;
    at::Tensor target;
    NamedTensors extras;
    std::int64_t tokens = 0;
};

/// Makes a batch out of items.
using Collate = std::function<Batch(std::vector<Item>)>;

/// Stacks items of equal shape.
Batch collate_stack(std::vector<Item> items);

/// Pads inputs of shape [T, …] to the longest of the batch; extras["length"] tells the lengths. Targets whose
/// shape is that of a sequence are padded with `target_padding`. The batch weighs its tokens.
Collate collate_padded(double padding = 0.0, double target_padding = -100.0);

/// A dataset of items, got one by one and collated.
class ItemDataset : public Dataset {
public:
    explicit ItemDataset(Collate collate = collate_stack) : collate_(std::move(collate)) {}
    /// Thread: any. `seed` is the sample's own, of run seed, epoch and index.
    virtual Item get(std::int64_t index, std::uint64_t seed) const = 0;
    Batch gather(std::span<const std::int64_t> indices, SampleSeed seed) const final;
    bool prefers_threads() const override { return true; }

private:
    Collate collate_;
};

/// A stream of items whose length is not known. Thread: one at a time.
class IterableDataset {
public:
    virtual ~IterableDataset() = default;
    virtual void begin(SampleSeed seed) = 0;
    virtual std::optional<Item> next() = 0;
    virtual Batch collate(std::vector<Item> items) const { return collate_stack(std::move(items)); }
};

/// Either of the two, or none.
class AnyDataset {
public:
    AnyDataset() = default;
    AnyDataset(std::nullptr_t) {}  // NOLINT
    template <class D>
        requires std::convertible_to<std::shared_ptr<D>, std::shared_ptr<const Dataset>>
    AnyDataset(std::shared_ptr<D> dataset) : with_length_(std::move(dataset)) {}  // NOLINT
    template <class D>
        requires std::convertible_to<std::shared_ptr<D>, std::shared_ptr<IterableDataset>>
    AnyDataset(std::shared_ptr<D> stream) : stream_(std::move(stream)) {}  // NOLINT

    explicit operator bool() const { return with_length_ || stream_; }
    const std::shared_ptr<const Dataset>& with_length() const { return with_length_; }
    const std::shared_ptr<IterableDataset>& stream() const { return stream_; }

private:
    std::shared_ptr<const Dataset> with_length_;
    std::shared_ptr<IterableDataset> stream_;
};

}  // namespace torchbus
