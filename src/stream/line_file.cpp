#include <torchbus/stream/line_file.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "numbered_file.hpp"

namespace torchbus {
namespace {

/// Bytes up to the end of the last line break, found from the end.
std::int64_t whole_lines(int descriptor, std::int64_t size) {
    char block[4096];
    for (std::int64_t end = size; end > 0;) {
        const std::int64_t begin = std::max<std::int64_t>(0, end - static_cast<std::int64_t>(sizeof block));
        const ssize_t count = ::pread(descriptor, block, static_cast<std::size_t>(end - begin), begin);
        if (count <= 0) return size;  // it cannot be read; writing will tell
        for (ssize_t i = count; i > 0; --i)
            if (block[i - 1] == '\n') return begin + i;
        end = begin;
    }
    return 0;
}

}  // namespace

LineFile::~LineFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

void LineFile::fail(const char* doing) const {
    throw DataError(fmt::format("{}: cannot {} it: {}", options_.path.string(), doing, std::strerror(errno)));
}

void LineFile::open(bool to_add) {
    close();
    std::error_code told_when_it_is_opened;
    if (options_.path.has_parent_path()) std::filesystem::create_directories(options_.path.parent_path(), told_when_it_is_opened);
    if (!to_add) move_aside();
    descriptor_ = ::open(options_.path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    struct stat found = {};
    if (descriptor_ < 0 || ::fstat(descriptor_, &found) != 0) fail("open");
    size_ = whole_lines(descriptor_, found.st_size);
    if (size_ < found.st_size && ::ftruncate(descriptor_, size_) != 0) fail("cut a torn line off");
    synced_ = std::chrono::steady_clock::now();
}

void LineFile::move_aside() {
    if (!std::filesystem::is_regular_file(options_.path)) return;  // nor is a pipe or a device moved
    std::error_code none;
    if (options_.keep == 0) {
        std::filesystem::remove(options_.path, none);
        return;
    }
    std::filesystem::remove(numbered_file(options_.path, options_.keep), none);
    for (std::int64_t number = options_.keep - 1; number >= 0; --number) {
        const auto from = numbered_file(options_.path, number);
        if (std::filesystem::exists(from) && ::rename(from.c_str(), numbered_file(options_.path, number + 1).c_str()) != 0) fail("move aside");
    }
}

void LineFile::write(std::string_view lines) {
    if (size_ > 0 && size_ + static_cast<std::int64_t>(lines.size()) > options_.max_bytes) open(/*to_add=*/false);
    is_synced_ = false;
    for (std::size_t written = 0; written < lines.size();) {
        const ssize_t count = ::write(descriptor_, lines.data() + written, lines.size() - written);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) {
            const int why = errno;  // whoever tries again has all of them to write
            if (::ftruncate(descriptor_, size_) != 0) is_synced_ = true;  // a device, which has no length
            errno = why;
            fail("write");
        }
        written += static_cast<std::size_t>(count);
    }
    size_ += static_cast<std::int64_t>(lines.size());
    if (std::chrono::steady_clock::now() - synced_ >= options_.sync) sync();
}

void LineFile::sync() {
    if (descriptor_ < 0 || is_synced_) return;
    if (::fdatasync(descriptor_) != 0 && errno != EINVAL) fail("sync");  // EINVAL: a pipe or a device
    is_synced_ = true;
    synced_ = std::chrono::steady_clock::now();
}

void LineFile::close() {
    if (descriptor_ < 0) return;
    sync();
    ::close(std::exchange(descriptor_, -1));
}

}  // namespace torchbus
