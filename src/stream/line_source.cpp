#include "line_source.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

constexpr std::size_t kBlock = 256U << 10;
constexpr std::size_t kLongest = 64U << 20;

int open_to_read(const std::filesystem::path& path) { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); }

}  // namespace

LineSource::LineSource(std::filesystem::path path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {
    if (descriptor_ < 0) throw DataError(fmt::format("{}: cannot open the file: {}", path_.string(), std::strerror(errno)));
}

LineSource::LineSource(const std::filesystem::path& path) : LineSource(path, open_to_read(path)) {}

std::optional<LineSource> LineSource::if_there(const std::filesystem::path& path) {
    const int descriptor = open_to_read(path);
    if (descriptor < 0 && errno == ENOENT) return std::nullopt;
    return LineSource(path, descriptor);
}

LineSource::~LineSource() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

LineSource::LineSource(LineSource&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), buffer_(std::move(other.buffer_)), begin_(other.begin_), searched_(other.searched_), number_(other.number_), rest_bytes_(other.rest_bytes_) {}

LineSource& LineSource::operator=(LineSource&& other) noexcept {
    LineSource taken(std::move(other));
    std::swap(path_, taken.path_);
    std::swap(descriptor_, taken.descriptor_);
    std::swap(buffer_, taken.buffer_);
    begin_ = taken.begin_;
    searched_ = taken.searched_;
    number_ = taken.number_;
    rest_bytes_ = taken.rest_bytes_;
    return *this;
}

bool LineSource::fill() {
    if (begin_ > 0) {
        buffer_.erase(0, begin_);
        searched_ -= begin_;
        begin_ = 0;
    }
    if (buffer_.size() > kLongest) throw DataError(fmt::format("{}:{}: the line is longer than {} MiB; is it a file that a run wrote?", path_.string(), number_ + 1, kLongest >> 20));
    const std::size_t held = buffer_.size();
    buffer_.resize(held + kBlock);
    ssize_t count = 0;
    do count = ::read(descriptor_, buffer_.data() + held, kBlock);
    while (count < 0 && errno == EINTR);
    const int why = errno;
    buffer_.resize(held + static_cast<std::size_t>(count < 0 ? 0 : count));
    if (count < 0) throw DataError(fmt::format("{}: cannot read it: {}", path_.string(), std::strerror(why)));
    return count > 0;
}

std::optional<std::string_view> LineSource::next() {
    for (;;) {
        const std::size_t end = buffer_.find('\n', searched_);
        if (end != std::string::npos) {
            const std::string_view line(buffer_.data() + begin_, end - begin_);
            begin_ = searched_ = end + 1;
            ++number_;
            return line;
        }
        searched_ = buffer_.size();
        if (fill()) continue;
        rest_bytes_ = static_cast<std::int64_t>(buffer_.size());
        // Read anew next time: who goes on with this file cuts a torn line off, and writes another in its place.
        if (::lseek(descriptor_, -rest_bytes_, SEEK_CUR) >= 0) buffer_.clear(), searched_ = 0;
        return std::nullopt;
    }
}

bool LineSource::is_at_end() {
    for (std::size_t zeros = 0;;) {
        if (buffer_.find_first_not_of('\0', begin_) != std::string::npos) return false;
        zeros += buffer_.size() - begin_;
        begin_ = searched_ = buffer_.size();
        if (fill()) continue;
        if (zeros <= kLongest) ::lseek(descriptor_, -static_cast<off_t>(zeros), SEEK_CUR);  // who goes on with this file cuts them off
        return true;
    }
}

bool LineSource::is_file(const std::filesystem::path& name) const {
    struct stat own = {}, named = {};
    return ::fstat(descriptor_, &own) == 0 && ::stat(name.c_str(), &named) == 0 && own.st_ino == named.st_ino && own.st_dev == named.st_dev;
}

}  // namespace torchbus
