#pragma once
/// Groups of parameters by name, each with its own learning rate and weight decay.

#include <optional>
#include <string>
#include <vector>

#include <torchbus/model.hpp>

namespace torch::optim {
class Optimizer;
}

namespace torchbus {

/// The parameters whose names match one of the patterns ("head.*", "*.bias"; * and ? and [a-z] as in a shell).
struct ParameterGroup {
    std::vector<std::string> patterns;
    double learning_rate_factor = 1.0;             ///< × the optimizer's learning rate; ≥ 0
    std::optional<double> weight_decay = {};       ///< instead of the optimizer's; ≥ 0
};

struct ParameterGroupOptions {
    std::vector<ParameterGroup> groups = {};       ///< a parameter goes into the first that matches, else into one of the rest
    bool decay_biases_and_norms = true;            ///< false: no weight decay on parameters of at most one dimension
};

/// Sorts an optimizer's parameters anew, before its first step; the others keep its options.
/// The order: the groups as given, then the rest; each divided in two where biases and norms are not decayed.
/// Throws: ConfigError for a pattern that no parameter matches (with a suggestion), for values out of range, for a
/// parameter that the optimizer holds and `named` does not; StateError after its first step.
void group_parameters(torch::optim::Optimizer& optimizer, const std::vector<NamedTensor>& named, const ParameterGroupOptions& options);

}  // namespace torchbus
