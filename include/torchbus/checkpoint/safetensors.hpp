#pragma once
/// Tensors by name in one file, in the safetensors format: an 8-byte length, a JSON header, raw bytes.

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <torchbus/model.hpp>

namespace torchbus {

/// Writes to a temporary name, syncs and renames: the file is whole or not there. `metadata` is for who reads the file.
/// Throws: CheckpointError naming the path and what the system said.
void save_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

/// Throws: CheckpointError for a file that is missing, truncated or malformed, naming the tensor where there is one.
std::vector<NamedTensor> load_safetensors(const std::filesystem::path& path);
/// What was written beside the tensors. Throws like load_safetensors().
std::map<std::string, std::string> metadata_of_safetensors(const std::filesystem::path& path);

}  // namespace torchbus
