#pragma once
/// What an optimizer has gathered, by the names of its parameters.

#include <vector>

#include <torchbus/model.hpp>
#include <torchbus/run_state.hpp>

namespace torch::optim {
class Optimizer;
}

namespace torchbus {

/// Values: the options of each parameter group and the names of its parameters, and the steps of each parameter.
/// Tensors: `<parameter>/exp_avg` and the like; handles, not copies. A parameter that is not among `named` is called
/// `group.<i>.<j>`. Of an optimizer that is none of LibTorch's SGD, Adam, AdamW, Adagrad and RMSprop: its archive.
SavedState save_optimizer(const torch::optim::Optimizer& optimizer, const std::vector<NamedTensor>& named);

/// Throws: CheckpointError where kind, groups, parameters or shapes differ; then nothing was changed.
void load_optimizer(torch::optim::Optimizer& optimizer, const std::vector<NamedTensor>& named, const SavedState& state);

}  // namespace torchbus
