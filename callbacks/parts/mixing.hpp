#pragma once
/// What mixup and cutmix share: the draw, what is noted in the batch, and the loss of two targets.

#include <memory>
#include <string>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <torchbus/callback.hpp>
#include <torchbus/option_reader.hpp>

namespace torchbus {

struct MixingOptions {
    double alpha, probability, label_smoothing;
};

/// Mixes the inputs of a batch in place of `inputs`; may correct `share`, the part of a sample that stays its own.
using MixInputs = at::Tensor (*)(const at::Tensor& inputs, const at::Tensor& permutation, double& share, const at::Generator& generator);

/// A number in [0, 1).
double uniform(const at::Generator& generator);

/// The options that both have, from a run file.
MixingOptions read_mixing_options(OptionReader& reader, MixingOptions options);

std::unique_ptr<Callback> make_mixing(const std::string& kind, MixingOptions options, MixInputs mix);

}  // namespace torchbus
