#include <torchbus/batch.hpp>

#include <algorithm>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/error.hpp>

namespace torchbus {

at::Tensor& NamedTensors::operator[](std::string_view name) {
    const auto found = std::ranges::find(entries_, name, [](const auto& entry) -> std::string_view { return entry.first; });
    if (found != entries_.end()) return found->second;
    return entries_.emplace_back(std::string(name), at::Tensor()).second;
}

const at::Tensor* NamedTensors::find(std::string_view name) const {
    const auto found = std::ranges::find(entries_, name, [](const auto& entry) -> std::string_view { return entry.first; });
    return found == entries_.end() ? nullptr : &found->second;
}

namespace {

/// Tokens of each sample. Shapes: [N].
at::Tensor lengths_of(const Batch& batch, std::string_view who) {
    const at::Tensor* lengths = batch.extras.find("lengths");
    if (!lengths || !lengths->defined() || lengths->sum().item<std::int64_t>() != batch.tokens)
        throw ConfigError(fmt::format("{}: the batch counts tokens, and no extra 'lengths' tells those of each sample; collate_padded adds it", who));
    return *lengths;
}

}  // namespace

Batch part_of(const Batch& batch, std::int64_t first, std::int64_t count, std::string_view who) {
    if (count == batch.samples) return batch;
    Batch part = batch;
    part.for_each_tensor([&](at::Tensor& tensor) {
        if (tensor.dim() == 0) return;
        if (tensor.size(0) != batch.samples)
            throw ConfigError(fmt::format("{}: a tensor of the batch has {} rows for {} samples, so that it cannot be divided", who, tensor.size(0), batch.samples));
        tensor = tensor.narrow(0, first, count);
    });
    if (!batch.indices.empty()) part.indices.assign(batch.indices.begin() + first, batch.indices.begin() + first + count);
    part.samples = count;
    part.valid = std::clamp<std::int64_t>(batch.valid - first, 0, count);
    part.weight = batch.weight * static_cast<double>(count) / static_cast<double>(batch.samples);
    if (batch.tokens > 0) {
        part.tokens = lengths_of(batch, who).narrow(0, first, count).sum().item<std::int64_t>();
        part.weight = batch.weight * static_cast<double>(part.tokens) / static_cast<double>(batch.tokens);
    }
    part.over_ranks = {part.valid, part.tokens, part.weight, part.weight};
    return part;
}

}  // namespace torchbus
