#include <torchbus/checkpoint/atomic_file.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using std::filesystem::path;

[[noreturn]] void fail(const path& file, const char* action, const char* outcome) {
    throw CheckpointError(fmt::format("{}: cannot {}: {}; {}", file.string(), action, std::strerror(errno), outcome));
}
constexpr const char* kUnchanged = "nothing was changed";

}  // namespace

AtomicFile::AtomicFile(const path& target) : target_(target), name_(target.string() + ".part") {
    descriptor_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor_ < 0) fail(name_, "create the file", kUnchanged);
}

AtomicFile::~AtomicFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!committed_) ::unlink(name_.c_str());
}

void AtomicFile::write(const void* bytes, std::size_t count) {
    const auto* next = static_cast<const char*>(bytes);
    while (count > 0) {
        const ssize_t written = ::write(descriptor_, next, count);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) fail(name_, "write", kUnchanged);
        next += written;
        count -= static_cast<std::size_t>(written);
    }
}

void AtomicFile::commit() {
    if (::fsync(descriptor_) != 0) fail(name_, "sync", kUnchanged);
    if (::close(std::exchange(descriptor_, -1)) != 0) fail(name_, "close", kUnchanged);
    if (::rename(name_.c_str(), target_.c_str()) != 0) fail(target_, "rename to it", kUnchanged);
    committed_ = true;
    sync_folder();
}

void AtomicFile::sync_folder() const {
    constexpr const char* kNotDurable = "the file was written, but may not outlast a power failure";
    const path folder = target_.has_parent_path() ? target_.parent_path() : path(".");
    const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) fail(folder, "open the folder", kNotDurable);
    const int synced = ::fsync(descriptor);
    ::close(descriptor);
    if (synced != 0) fail(folder, "sync the folder", kNotDurable);
}

}  // namespace torchbus
