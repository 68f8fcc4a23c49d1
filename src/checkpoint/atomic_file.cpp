#include <torchbus/checkpoint/atomic_file.hpp>

#include <fcntl.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <torchbus/checkpoint/disk.hpp>
#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using std::filesystem::path;

[[noreturn]] void fail(const path& file, const char* action, const char* outcome) {
    throw CheckpointError(fmt::format("{}: cannot {}: {}; {}", file.string(), action, std::strerror(errno), outcome));
}
/// A signal may interrupt it.
int synced(int descriptor) {
    int status = 0;
    do status = disk().fsync(descriptor);
    while (status != 0 && errno == EINTR);
    return status;
}
constexpr const char* kUnchanged = "nothing was changed";

}  // namespace

AtomicFile::AtomicFile(const path& target) : target_(target), name_(target.string() + ".part") {
    descriptor_ = disk().open(name_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor_ < 0) fail(name_, "create the file", kUnchanged);
}

AtomicFile::~AtomicFile() {
    if (descriptor_ >= 0) disk().close(descriptor_);
    if (!committed_) disk().unlink(name_.c_str());
}

void AtomicFile::write(const void* bytes, std::size_t count) {
    const auto* next = static_cast<const char*>(bytes);
    while (count > 0) {
        const ssize_t written = disk().write(descriptor_, next, count);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) fail(name_, "write", kUnchanged);
        next += written;
        count -= static_cast<std::size_t>(written);
    }
}

void AtomicFile::commit() {
    if (synced(descriptor_) != 0) fail(name_, "sync", kUnchanged);
    if (disk().close(std::exchange(descriptor_, -1)) != 0) fail(name_, "close", kUnchanged);
    if (disk().rename(name_.c_str(), target_.c_str()) != 0) fail(target_, "rename to it", kUnchanged);
    committed_ = true;
    sync_folder();
}

void AtomicFile::sync_folder() const {
    constexpr const char* kNotDurable = "the file was written, but may not outlast a power failure";
    const path folder = target_.has_parent_path() ? target_.parent_path() : path(".");
    const int descriptor = disk().open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (descriptor < 0) fail(folder, "open the folder", kNotDurable);
    const int status = synced(descriptor);
    const int error = errno;
    disk().close(descriptor);
    errno = error;
    if (status != 0) fail(folder, "sync the folder", kNotDurable);
}

}  // namespace torchbus
