#pragma once
#include <filesystem>
#include <string>

namespace torchbus {

/// All of a file. Throws: CheckpointError that names it.
std::string read_file(const std::filesystem::path& file);

}  // namespace torchbus
