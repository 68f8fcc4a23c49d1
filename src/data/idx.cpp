#include <torchbus/data/idx.hpp>

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "file_descriptor.hpp"

namespace torchbus {
namespace {

constexpr std::size_t kMagicBytes = 4;
constexpr std::size_t kSizeBytes = 4;

unsigned value_of(std::byte byte) { return std::to_integer<unsigned>(byte); }

std::uint32_t big_endian(std::span<const std::byte> bytes) {
    return value_of(bytes[0]) << 24 | value_of(bytes[1]) << 16 | value_of(bytes[2]) << 8 | value_of(bytes[3]);
}

bool is_type(unsigned code) { return code >= 0x08 && code <= 0x0E && code != 0x0A; }

}  // namespace

std::string_view to_string(IdxType type) {
    switch (type) {
        case IdxType::UInt8: return "unsigned bytes";
        case IdxType::Int8: return "signed bytes";
        case IdxType::Int16: return "16-bit integers";
        case IdxType::Int32: return "32-bit integers";
        case IdxType::Float: return "floats";
        case IdxType::Double: return "doubles";
    }
    return "unknown elements";
}

std::size_t size_bytes(IdxType type) {
    switch (type) {
        case IdxType::UInt8:
        case IdxType::Int8: return 1;
        case IdxType::Int16: return 2;
        case IdxType::Int32:
        case IdxType::Float: return 4;
        case IdxType::Double: return 8;
    }
    return 1;
}

IdxFile::IdxFile(std::filesystem::path path, std::string remedy) : path_(std::move(path)), remedy_(std::move(remedy)) {
    map();
    try {
        read_header();
    } catch (...) {
        ::munmap(const_cast<std::byte*>(mapped_.data()), mapped_.size());
        throw;
    }
}

IdxFile::~IdxFile() {
    if (!mapped_.empty()) ::munmap(const_cast<std::byte*>(mapped_.data()), mapped_.size());
}

IdxFile::IdxFile(IdxFile&& other) noexcept
    : path_(std::move(other.path_)), remedy_(std::move(other.remedy_)), mapped_(std::exchange(other.mapped_, {})),
      header_bytes_(std::exchange(other.header_bytes_, 0)), type_(other.type_), dims_(std::move(other.dims_)) {}

IdxFile& IdxFile::operator=(IdxFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(remedy_, other.remedy_);
    std::swap(mapped_, other.mapped_);
    std::swap(header_bytes_, other.header_bytes_);
    std::swap(type_, other.type_);
    std::swap(dims_, other.dims_);
    return *this;
}

void IdxFile::fail(const std::string& found) const { throw DataError(path_.string() + ": " + found); }

void IdxFile::map() {
    // O_NONBLOCK: a pipe of that name must not make the caller wait for a writer.
    const FileDescriptor file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat status = {};
    if (*file < 0 || ::fstat(*file, &status) != 0)
        fail(fmt::format("cannot be opened ({}), expected an IDX file; {}", std::strerror(errno), remedy_));
    if (!S_ISREG(status.st_mode)) fail("not a regular file, expected an IDX file; give the path of the file itself");
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size < kMagicBytes) fail(fmt::format("{} bytes, expected at least the {} of an IDX header; the file is truncated; {}", size, kMagicBytes, remedy_));
    void* const start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, *file, 0);
    if (start == MAP_FAILED) fail(fmt::format("cannot be mapped ({}), expected {} bytes of address space; free some memory", std::strerror(errno), size));
    mapped_ = {static_cast<const std::byte*>(start), size};
}

void IdxFile::read_header() {
    const unsigned first = value_of(mapped_[0]), second = value_of(mapped_[1]), code = value_of(mapped_[2]), count = value_of(mapped_[3]);
    if (first == 0x1F && second == 0x8B)
        fail(fmt::format("starts with the gzip magic 1f 8b, expected an IDX file; it is still compressed; unpack it with 'gunzip {}'",
                         path_.extension() == ".gz" ? path_.string() : path_.string() + ".gz"));
    if (first != 0 || second != 0 || !is_type(code) || count == 0)
        fail(fmt::format("starts with {:02x} {:02x} {:02x} {:02x}, expected 00 00, a type code out of 08 09 0b 0c 0d 0e and a "
                         "dimension count of at least 1; this is not an IDX file; {}", first, second, code, count, remedy_));
    type_ = static_cast<IdxType>(code);
    header_bytes_ = kMagicBytes + kSizeBytes * count;
    if (mapped_.size() < header_bytes_)
        fail(fmt::format("{} bytes, expected at least the {} of a header with {} dimensions; the file is truncated; {}",
                         mapped_.size(), header_bytes_, count, remedy_));
    for (std::size_t i = 0; i < count; ++i) dims_.push_back(big_endian(mapped_.subspan(kMagicBytes + kSizeBytes * i, kSizeBytes)));
    const std::size_t expected = expected_bytes();
    if (mapped_.size() != expected)
        fail(fmt::format("{} bytes, expected {}; the file {}; {}", mapped_.size(), expected,
                         mapped_.size() < expected ? "is truncated" : "has trailing bytes", remedy_));
}

std::size_t IdxFile::expected_bytes() const {
    std::size_t bytes = size_bytes(type_);
    bool overflow = false;
    bool empty = false;  // a size of 0 makes the product 0, whatever overflowed before
    for (const std::int64_t dim : dims_) {
        overflow = __builtin_mul_overflow(bytes, static_cast<std::size_t>(dim), &bytes) || overflow;
        empty = empty || dim == 0;
    }
    if (empty) return header_bytes_;
    if (__builtin_add_overflow(bytes, header_bytes_, &bytes) || overflow)
        fail(fmt::format("sizes of {}, whose product no file can hold, expected sizes that fit its {} bytes; the header is damaged; {}",
                         fmt::join(dims_, " x "), mapped_.size(), remedy_));
    return bytes;
}

}  // namespace torchbus
