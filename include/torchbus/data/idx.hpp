#pragma once
/// IDX files, the format of MNIST: a magic number, sizes and elements, all big-endian.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace torchbus {

/// Type of the elements; the values are the codes of the format, which leaves 0x0A out.
enum class IdxType : std::uint8_t { UInt8 = 0x08, Int8 = 0x09, Int16 = 0x0B, Int32 = 0x0C, Float = 0x0D, Double = 0x0E };

std::string_view to_string(IdxType type);
std::size_t size_bytes(IdxType type);

/// An IDX file, mapped into memory and read-only. The file must not shrink while it is mapped.
/// Source: LeCun, Cortes and Burges, "The MNIST database", section "File formats".
class IdxFile {
public:
    /// `remedy` ends the messages of errors that another copy of the file would heal.
    /// Throws: DataError where the file is missing, still compressed, no IDX file, or of another length than its
    /// header says.
    explicit IdxFile(std::filesystem::path path, std::string remedy = "get it again from where it came");
    ~IdxFile();
    IdxFile(IdxFile&& other) noexcept;
    IdxFile& operator=(IdxFile&& other) noexcept;

    const std::filesystem::path& path() const { return path_; }
    IdxType type() const { return type_; }
    /// Sizes, the slowest first.
    std::span<const std::int64_t> dims() const { return dims_; }
    /// The elements, as they lie in the file: big-endian, the last dimension fastest.
    std::span<const std::byte> bytes() const { return mapped_.subspan(header_bytes_); }

private:
    void map();
    void read_header();
    /// Length of the file that the header describes.
    std::size_t expected_bytes() const;
    [[noreturn]] void fail(const std::string& found) const;

    std::filesystem::path path_;
    std::string remedy_;
    std::span<const std::byte> mapped_;
    std::size_t header_bytes_ = 0;
    IdxType type_ = IdxType::UInt8;
    std::vector<std::int64_t> dims_;
};

}  // namespace torchbus
