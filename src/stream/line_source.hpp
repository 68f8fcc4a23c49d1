#pragma once
/// Lines of a file of any size, which may grow while it is read.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace torchbus {

/// Thread: one.
class LineSource {
public:
    /// Throws: DataError where it cannot be opened.
    explicit LineSource(const std::filesystem::path& path);
    /// Nothing where no file has this name, as may be for a moment. Throws: as above.
    static std::optional<LineSource> if_there(const std::filesystem::path& path);
    ~LineSource();
    LineSource(LineSource&& other) noexcept;
    LineSource& operator=(LineSource&& other) noexcept;

    /// The next line without its line break; it stays until the next call. Nothing where no whole line is there (yet).
    /// Throws: DataError where it cannot be read, or a line is longer than 64 MiB.
    std::optional<std::string_view> next();
    /// Bytes behind the last line break; known once next() has returned nothing.
    std::int64_t rest_bytes() const { return rest_bytes_; }
    /// Whether nothing follows the line that next() has returned, but what a power failure leaves: zeros. The line is gone then.
    bool is_at_end();
    /// Of the last line, from 1.
    std::int64_t number() const { return number_; }
    const std::filesystem::path& path() const { return path_; }
    /// Whether that name is still, or again, this file's.
    bool is_file(const std::filesystem::path& name) const;

private:
    LineSource(std::filesystem::path path, int descriptor);
    bool fill();

    std::filesystem::path path_;
    int descriptor_ = -1;
    std::string buffer_;
    std::size_t begin_ = 0, searched_ = 0;  ///< the rest begins there; no line break is before
    std::int64_t number_ = 0, rest_bytes_ = 0;
};

}  // namespace torchbus
