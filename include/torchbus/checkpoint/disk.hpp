#pragma once
/// The system calls by which files reach a disk. Tests put others in their place: they fail, die or record.

#include <sys/types.h>

#include <cstddef>
#include <filesystem>

#include <torchbus/error.hpp>

namespace torchbus {

/// It was written, and may not outlast a power failure; whoever reads it now finds it whole.
struct NotDurableError : CheckpointError {
    using CheckpointError::CheckpointError;
};

/// Each does and returns what the call of the same name does, errno included. Thread: any.
class Disk {
public:
    virtual ~Disk() = default;
    virtual int open(const char* path, int flags, unsigned mode);
    virtual ssize_t write(int descriptor, const void* bytes, std::size_t count);
    virtual int fsync(int descriptor);
    virtual int close(int descriptor);
    virtual int rename(const char* from, const char* to);
    /// Exchanges two names in one step. Not all file systems can: errno is then EINVAL or ENOSYS.
    virtual int exchange(const char* one, const char* other);
    virtual int mkdir(const char* path, unsigned mode);
    virtual int unlink(const char* path);
    virtual int rmdir(const char* path);
    virtual int symlink(const char* target, const char* path);
};

/// The one in use: the system's, unless a test has put another in its place.
Disk& disk();

/// Makes a folder and those above it, so that they outlast a power failure. Throws: CheckpointError.
void make_durable_folder(const std::filesystem::path& folder);

/// Puts a disk in the place of the system's, while it lives.
class DiskInPlace {
public:
    explicit DiskInPlace(Disk& other);
    ~DiskInPlace();
    DiskInPlace(const DiskInPlace&) = delete;
    DiskInPlace& operator=(const DiskInPlace&) = delete;

private:
    Disk* former_;
};

}  // namespace torchbus
