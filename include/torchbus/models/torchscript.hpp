#pragma once
/// Models exported from Python: torch.jit.script or torch.jit.trace, saved with .save().

#include <filesystem>
#include <string>
#include <vector>

#include <torchbus/model.hpp>

namespace torchbus {

struct TorchScriptOptions {
    /// What forward is called with, in order: "inputs", "targets", or names of the batch's extras.
    std::vector<std::string> arguments = {"inputs"};
    /// Which entry is the output where forward returns a dict; empty: the first of a tuple, or "logits" of a dict.
    std::string output = {};
};

/// Parameters and buffers bear the names they have in Python. All are as trainable as they were when it was saved;
/// a traced module keeps the mode it was traced in for what depends on it (dropout): script it to train it.
/// Throws: DataError where the file is missing or no TorchScript; the model itself throws ConfigError for an argument
/// that the batch has not got, or an output that is no tensor.
Model load_torchscript(const std::filesystem::path& path, TorchScriptOptions options = {});

}  // namespace torchbus
