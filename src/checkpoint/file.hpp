#pragma once
/// A file's content in memory.

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string_view>

namespace torchbus {

/// In memory that nobody cleared first, as a std::string's would be: that takes as long as reading does.
class FileContent {
public:
    explicit FileContent(std::size_t size) : bytes_(std::make_unique_for_overwrite<char[]>(size)), size_(size) {}
    char* data() { return bytes_.get(); }
    std::size_t size() const { return size_; }
    std::string_view text() const { return {bytes_.get(), size_}; }

private:
    std::unique_ptr<char[]> bytes_;
    std::size_t size_;
};

/// All of a file. Throws: CheckpointError that names it.
FileContent read_file(const std::filesystem::path& file);

}  // namespace torchbus
