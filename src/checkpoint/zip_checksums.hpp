#pragma once
/// What a zip archive's directory says of its records: LibTorch's reader compares no checksums.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

namespace torchbus {

/// CRC-32 of the records of an archive of torch.save, by name within its folder; 0 where none was computed.
/// Throws: CheckpointError naming the file, for one whose directory is missing or damaged.
std::map<std::string, std::uint32_t> zip_checksums(const std::filesystem::path& file);

std::uint32_t crc32_of(std::string_view bytes);

}  // namespace torchbus
