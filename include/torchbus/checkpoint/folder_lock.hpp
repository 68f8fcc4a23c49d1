#pragma once
/// One saver a folder, whatever process it is in.

#include <filesystem>

namespace torchbus {

/// Holds a folder while it lives; the system lets go of it when the process dies. Where a file system knows no locks, it holds
/// nothing.
class FolderLock {
public:
    FolderLock() = default;
    /// Throws: CheckpointError where another one holds the folder, or it cannot be opened.
    explicit FolderLock(const std::filesystem::path& folder);
    FolderLock(FolderLock&& other) noexcept;
    FolderLock& operator=(FolderLock&& other) noexcept;
    ~FolderLock();
    bool is_held() const { return descriptor_ >= 0; }

private:
    int descriptor_ = -1;
};

}  // namespace torchbus
