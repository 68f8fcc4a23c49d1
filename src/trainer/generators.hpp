#pragma once
/// The default random generators of all devices, as a part of a run.

#include <torchbus/run_state.hpp>

namespace torchbus {

SavedState save_generators();
void load_generators(const SavedState& state);

}  // namespace torchbus
