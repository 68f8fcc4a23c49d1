#pragma once
/// A folder that appears whole, or not at all.

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include "checksum.hpp"
#include "manifest.hpp"

namespace torchbus {

/// Files go into a hidden folder beside the target and are synced one by one; commit() writes the manifest, syncs the
/// folder, gives it its name in one step and syncs its parent. A folder that had the name is replaced, and removed after
/// that. Without a commit nothing is left.
/// Throws, all of it: CheckpointError naming the path and what the system said; NotDurableError from commit() once the
/// folder has its name.
class FolderWriter {
public:
    explicit FolderWriter(const std::filesystem::path& target);
    ~FolderWriter();
    FolderWriter(const FolderWriter&) = delete;
    FolderWriter& operator=(const FolderWriter&) = delete;

    void begin_file(const std::string& name);
    void write(const void* bytes, std::size_t count);
    void write(std::string_view text) { write(text.data(), text.size()); }
    void end_file();
    void commit(Manifest manifest);

private:
    void put_in_place();
    std::filesystem::path target_, parent_, made_;
    std::map<std::string, ManifestFile> files_;
    std::string name_;  ///< of the file that is being written
    int descriptor_ = -1;
    std::unique_ptr<Checksum> checksum_;
    std::uint64_t size_ = 0;
};

/// Removes a folder and what lies in it, through the disk in use. Missing ones are fine. Returns whether it is gone.
bool remove_folder(const std::filesystem::path& folder);

}  // namespace torchbus
