#include <torchbus/checkpoint/atomic_file.hpp>

#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <torchbus/checkpoint/disk.hpp>
#include <torchbus/error.hpp>

#include "disk_calls.hpp"

namespace torchbus {
namespace {

using std::filesystem::path;

[[noreturn]] void cannot(const path& file, const char* action) {
    throw CheckpointError(fmt::format("{}: cannot {}: {}; nothing was changed", file.string(), action, std::strerror(errno)));
}

}  // namespace

AtomicFile::AtomicFile(const path& target) : target_(target), name_(target.string() + kPart) {
    descriptor_ = create_file(name_);
    if (descriptor_ < 0) cannot(name_, "create the file");
}

AtomicFile::~AtomicFile() {
    if (descriptor_ >= 0) disk().close(descriptor_);
    if (!committed_) disk().unlink(name_.c_str());
}

void AtomicFile::write(const void* bytes, std::size_t count) {
    if (!write_all(descriptor_, bytes, count)) cannot(name_, "write");
}

void AtomicFile::commit() {
    if (!sync_file(descriptor_)) cannot(name_, "sync");
    if (disk().close(std::exchange(descriptor_, -1)) != 0) cannot(name_, "close");
    if (disk().rename(name_.c_str(), target_.c_str()) != 0) cannot(target_, "rename to it");
    committed_ = true;
    const path folder = target_.has_parent_path() ? target_.parent_path() : path(".");
    if (sync_folder(folder)) return;
    throw NotDurableError(fmt::format("{}: cannot sync the folder: {}; {} was written, but may not outlast a power failure", folder.string(), std::strerror(errno), target_.filename().string()));
}

}  // namespace torchbus
