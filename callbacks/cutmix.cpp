#include <torchbus/callbacks/cutmix.hpp>

#include <algorithm>
#include <cmath>

#include <torch/types.h>

#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/mixing.hpp"

namespace torchbus {
namespace {

struct Stretch {
    std::int64_t begin, length;
};

/// A stretch of `cut` around a random middle, cut off at the edges.
Stretch random_stretch(std::int64_t size, double ratio, const at::Generator& generator) {
    const auto cut = static_cast<std::int64_t>(static_cast<double>(size) * ratio);
    const auto middle = std::min(static_cast<std::int64_t>(uniform(generator) * static_cast<double>(size)), size - 1);
    const std::int64_t begin = std::max<std::int64_t>(middle - cut / 2, 0), end = std::min(middle + cut / 2, size);
    return {begin, end - begin};
}

/// A new tensor: the batch may be a view of the dataset's memory.
at::Tensor paste(const at::Tensor& inputs, const at::Tensor& permutation, double& share, const at::Generator& generator) {
    if (inputs.dim() < 2) throw ConfigError("cutmix: inputs of shape [N] have nothing to cut; give inputs of shape [N, L] or [N, …, H, W]");
    at::Tensor mixed = inputs.clone();
    at::Tensor to = mixed, from = inputs;
    double pasted = 1;
    // A box of area 1 − λ has sides of √(1 − λ) each.
    const bool is_image = inputs.dim() > 2;
    const double ratio = is_image ? std::sqrt(1 - share) : 1 - share;
    for (std::int64_t dim = is_image ? inputs.dim() - 2 : 1; dim < inputs.dim(); ++dim) {
        const auto [begin, length] = random_stretch(inputs.size(dim), ratio, generator);
        to = to.narrow(dim, begin, length);
        from = from.narrow(dim, begin, length);
        pasted *= static_cast<double>(length) / static_cast<double>(inputs.size(dim));
    }
    to.copy_(from.index_select(0, permutation));
    share = 1 - pasted;
    return mixed;
}

}  // namespace

std::unique_ptr<Callback> make_cutmix(CutmixOptions options) {
    return make_mixing("cutmix", {options.alpha, options.probability, options.label_smoothing}, paste);
}

std::unique_ptr<Callback> cutmix_from_json(OptionReader& reader) {
    const CutmixOptions defaults;
    const MixingOptions options = read_mixing_options(reader, {defaults.alpha, defaults.probability, defaults.label_smoothing});
    return make_cutmix({options.alpha, options.probability, options.label_smoothing});
}

}  // namespace torchbus
