#include <torchbus/data/dataset.hpp>

#include <algorithm>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/error.hpp>

namespace torchbus {

std::uint64_t SampleSeed::of(std::int64_t index) const {
    const auto mix = [](std::uint64_t z) {
        z += 0x9E3779B97F4A7C15ULL;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
        return z ^ (z >> 31);
    };
    return mix(mix(mix(seed) ^ static_cast<std::uint64_t>(epoch)) ^ static_cast<std::uint64_t>(index));
}

TensorDataset::TensorDataset(at::Tensor inputs, at::Tensor targets) : inputs_(std::move(inputs)), targets_(std::move(targets)) {
    if (!inputs_.defined() || inputs_.dim() == 0) throw DataError("a tensor dataset needs inputs of shape [N, …]; got a scalar or nothing");
    if (targets_.defined() && (targets_.dim() == 0 || targets_.size(0) != inputs_.size(0)))
        throw DataError(fmt::format("{} inputs, but {} targets; a tensor dataset needs one target for each input",
                                    inputs_.size(0), targets_.dim() == 0 ? 0 : targets_.size(0)));
}

TensorDataset& TensorDataset::add(std::string name, at::Tensor tensor) {
    if (tensor.dim() == 0 || tensor.size(0) != size())
        throw DataError(fmt::format("tensor '{}' has {} samples, expected {}", name, tensor.dim() == 0 ? 0 : tensor.size(0), size()));
    extras_[name] = std::move(tensor);
    return *this;
}

std::int64_t TensorDataset::size() const { return inputs_.size(0); }

Batch TensorDataset::gather(std::span<const std::int64_t> indices, SampleSeed) const {
    Batch batch;
    batch.indices.assign(indices.begin(), indices.end());
    const auto count = static_cast<std::int64_t>(indices.size());
    at::Tensor index = torch::from_blob(batch.indices.data(), {count}, torch::kInt64);
    if (!inputs_.is_cpu()) index = index.to(inputs_.device());
    batch.inputs = inputs_.index_select(0, index);
    if (targets_.defined()) batch.targets = targets_.index_select(0, index);
    for (const auto& [name, tensor] : extras_) batch.extras[name] = tensor.index_select(0, index);
    batch.samples = batch.valid = count;
    batch.weight = static_cast<double>(count);
    return batch;
}

Batch ItemDataset::gather(std::span<const std::int64_t> indices, SampleSeed seed) const {
    std::vector<Item> items;
    items.reserve(indices.size());
    for (const std::int64_t index : indices) items.push_back(get(index, seed.of(index)));
    Batch batch = collate_(std::move(items));
    batch.indices.assign(indices.begin(), indices.end());
    return batch;
}

namespace {

at::Tensor stack_of(std::vector<Item>& items, at::Tensor Item::* member) {
    if (items.empty() || !(items.front().*member).defined()) return {};
    std::vector<at::Tensor> tensors;
    for (Item& item : items) tensors.push_back(std::move(item.*member));
    return torch::stack(tensors);
}

Batch counted(std::vector<Item>& items) {
    Batch batch;
    batch.samples = batch.valid = static_cast<std::int64_t>(items.size());
    for (const Item& item : items) batch.tokens += item.tokens;
    batch.weight = static_cast<double>(batch.tokens > 0 ? batch.tokens : batch.samples);
    if (!items.empty())
        for (const auto& [name, tensor] : items.front().extras) {
            std::vector<at::Tensor> tensors;
            for (const Item& item : items) {
                const at::Tensor* extra = item.extras.find(name);
                if (!extra) throw DataError(fmt::format("an item has no '{}', which another item of its batch has; give it to all or to none", name));
                tensors.push_back(*extra);
            }
            batch.extras[name] = torch::stack(tensors);
        }
    return batch;
}

/// Pads sequences of shape [T, …] to the longest. Shapes: [N, T_max, …].
at::Tensor pad(const std::vector<at::Tensor>& sequences, double padding) {
    std::int64_t longest = 0;
    for (const at::Tensor& sequence : sequences) longest = std::max(longest, sequence.size(0));
    auto sizes = sequences.front().sizes().vec();
    sizes.front() = longest;
    sizes.insert(sizes.begin(), static_cast<std::int64_t>(sequences.size()));
    at::Tensor padded = torch::full(sizes, padding, sequences.front().options());
    for (std::size_t i = 0; i < sequences.size(); ++i)
        padded[static_cast<std::int64_t>(i)].narrow(0, 0, sequences[i].size(0)).copy_(sequences[i]);
    return padded;
}

}  // namespace

Batch collate_stack(std::vector<Item> items) {
    Batch batch = counted(items);
    batch.inputs = stack_of(items, &Item::input);
    batch.targets = stack_of(items, &Item::target);
    return batch;
}

Collate collate_padded(double padding, double target_padding) {
    return [=](std::vector<Item> items) {
        const bool sequence_targets = std::ranges::all_of(items, [](const Item& item) {
            return item.target.defined() && item.target.dim() > 0 && item.target.size(0) == item.input.size(0);
        });
        std::vector<at::Tensor> inputs, targets;
        std::vector<std::int64_t> lengths;
        for (Item& item : items) {
            lengths.push_back(item.input.size(0));
            if (item.tokens == 0) item.tokens = item.input.size(0);
            inputs.push_back(item.input);
            if (sequence_targets) targets.push_back(item.target);
        }
        Batch batch = counted(items);
        batch.inputs = pad(inputs, padding);
        batch.targets = sequence_targets ? pad(targets, target_padding) : stack_of(items, &Item::target);
        batch.extras["length"] = torch::tensor(lengths);
        return batch;
    };
}

}  // namespace torchbus
