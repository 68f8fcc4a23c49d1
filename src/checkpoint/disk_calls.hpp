#pragma once
/// What saving needs of the disk in use, beyond single calls: to the end, whatever interrupts it. All leave errno.

#include <cstddef>
#include <filesystem>

namespace torchbus {

/// Opens a file for writing, empty. Returns its descriptor, or -1.
int create_file(const std::filesystem::path& file);
/// All bytes, also where the disk takes them in parts. Returns whether it did.
bool write_all(int descriptor, const void* bytes, std::size_t count);
bool sync_file(int descriptor);
/// So that names in it outlast a power failure.
bool sync_folder(const std::filesystem::path& folder);

}  // namespace torchbus
