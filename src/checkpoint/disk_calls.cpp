#include "disk_calls.hpp"

#include <fcntl.h>

#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include <torchbus/checkpoint/disk.hpp>

namespace torchbus {
namespace {

/// Repeats a call that a signal interrupts.
template <class Call>
int until_done(Call call) {
    int result = 0;
    do result = call();
    while (result < 0 && errno == EINTR);
    return result;
}

}  // namespace

int create_file(const std::filesystem::path& file) {
    return until_done([&] { return disk().open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644); });
}

bool write_all(int descriptor, const void* bytes, std::size_t count) {
    const auto* next = static_cast<const char*>(bytes);
    while (count > 0) {
        const ssize_t written = disk().write(descriptor, next, count);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return false;
        next += written;
        count -= static_cast<std::size_t>(written);
    }
    return true;
}

bool sync_file(int descriptor) {
    return until_done([&] { return disk().fsync(descriptor); }) == 0;
}

bool sync_folder(const std::filesystem::path& folder) {
    const int descriptor = until_done([&] { return disk().open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0); });
    if (descriptor < 0) return false;
    const bool synced = sync_file(descriptor);
    const int error = errno;
    disk().close(descriptor);
    errno = error;
    return synced;
}

namespace {

/// Each is synced in the one that holds it. One that is there is left as it is.
bool make_folders(const std::filesystem::path& folder) {
    std::error_code status;
    if (folder.empty() || std::filesystem::is_directory(folder, status)) return true;
    const std::filesystem::path parent = folder.parent_path();
    if (!make_folders(parent)) return false;
    if (disk().mkdir(folder.c_str(), 0777) != 0) {
        if (errno != EEXIST) return false;
        if (std::filesystem::is_directory(folder, status)) return true;  // made by another in the meantime
        return errno = ENOTDIR, false;
    }
    return sync_folder(parent.empty() ? "." : parent);
}

}  // namespace

void make_durable_folder(const std::filesystem::path& folder) {
    if (!make_folders(folder)) throw CheckpointError(fmt::format("{}: cannot make the folder: {}; nothing was changed", folder.string(), std::strerror(errno)));
}

}  // namespace torchbus
