#pragma once
/// Files of Python's torch.save and torch.load: a zip archive with a pickle and a record for every storage.

#include <filesystem>
#include <vector>

#include <nlohmann/json.hpp>

#include <torchbus/model.hpp>

namespace torchbus {

struct PythonFile {
    std::vector<NamedTensor> tensors;  ///< by path: "state_dict.layer.weight"; in the order of the file
    nlohmann::json values;             ///< what else is there
};

/// Whether it begins as torch.save's files do, those of before 1.6 (which are no archives) included.
bool is_python_file(const std::filesystem::path& file);

/// Throws: CheckpointError naming the file: for one that is missing, damaged, of before 1.6, or that holds what is no
/// state_dict. Nothing of it is ever executed.
PythonFile read_python_file(const std::filesystem::path& file);

/// A dictionary of tensors by name that torch.load(weights_only=True) reads. Whole or not there, as AtomicFile's.
/// Throws: CheckpointError naming the path and what the system said.
void write_python_file(const std::filesystem::path& file, const std::vector<NamedTensor>& tensors);

}  // namespace torchbus
