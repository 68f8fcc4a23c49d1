#pragma once
/// What the pickle of a torch.save file describes: tensors by their path, and all else as JSON.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "pickle_machine.hpp"

namespace torchbus {

struct PickledTensor {
    std::string path;  ///< keys and indices joined by points: "state_dict.layer.weight"
    PickleTensor tensor;
};

struct PickleContent {
    std::vector<PickledTensor> tensors;  ///< in the order of the file
    nlohmann::json values;               ///< numbers, texts, lists and dictionaries of them; tensors are null
};

/// Throws: CheckpointError that begins with `name`: see PickleMachine.
PickleContent read_pickle(std::string_view bytes, const std::string& name);

}  // namespace torchbus
