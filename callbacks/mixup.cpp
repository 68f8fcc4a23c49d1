#include <torchbus/callbacks/mixup.hpp>

#include "entries.hpp"
#include "mixing.hpp"

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
    MixupOptions options;
    reader.number("alpha", options.alpha, "both parameters of the Beta distribution of a sample's share; > 0", Range::positive())
        .number("probability", options.probability, "of a batch being mixed; between 0 and 1", Range::between(0, 1))
        .number("label_smoothing", options.label_smoothing, "share of a label that all classes get alike; in [0, 1)", Range::between(0, 1));
    return make_mixup(options);
}

}  // namespace torchbus
