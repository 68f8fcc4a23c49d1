#pragma once
/// An open file, and reading one to its end.

#include <cerrno>
#include <cstddef>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include <unistd.h>

namespace torchbus {

/// Closes the file when it goes; a negative number stands for none.
class FileDescriptor {
public:
    explicit FileDescriptor(int number = -1) : number_(number) {}
    FileDescriptor(FileDescriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    FileDescriptor& operator=(FileDescriptor&& other) noexcept {
        std::swap(number_, other.number_);
        return *this;
    }
    ~FileDescriptor() {
        if (number_ >= 0) ::close(number_);
    }
    int operator*() const { return number_; }

private:
    int number_;
};

/// Takes what is read, part by part.
using ByteSink = std::function<void(std::span<const char>)>;

/// Reads to the end, and says whether that went well; errno tells why not.
inline bool read_all(int from, const ByteSink& sink) {
    std::vector<char> buffer(1 << 16);
    for (;;) {
        const ssize_t count = ::read(from, buffer.data(), buffer.size());
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return count == 0;
        sink(std::span(buffer).first(static_cast<std::size_t>(count)));
    }
}

}  // namespace torchbus
