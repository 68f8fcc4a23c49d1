#include <torchbus/callbacks/mixup.hpp>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/mixing.hpp"

namespace torchbus {
namespace {

/// A new tensor: the batch may be a view of the dataset's memory.
at::Tensor mix(const at::Tensor& inputs, const at::Tensor& permutation, double& share, const at::Generator&) {
    if (!inputs.is_floating_point())
        throw ConfigError(fmt::format("mixup: inputs of type {} cannot be mixed; turn them into floating-point numbers, or take cutmix", c10::toString(inputs.scalar_type())));
    return inputs.mul(share).add_(inputs.index_select(0, permutation), 1 - share);
}

}  // namespace

std::unique_ptr<Callback> make_mixup(MixupOptions options) {
    return make_mixing("mixup", {options.alpha, options.probability, options.label_smoothing}, mix);
}

std::unique_ptr<Callback> mixup_from_json(OptionReader& reader) {
    const MixupOptions defaults;
    const MixingOptions options = read_mixing_options(reader, {defaults.alpha, defaults.probability, defaults.label_smoothing});
    return make_mixup({options.alpha, options.probability, options.label_smoothing});
}

}  // namespace torchbus
