#include "zip_archive.hpp"

#include <algorithm>
#include <cstring>

#include <boost/crc.hpp>
#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

// As in PKWARE's APPNOTE, sections 4.3.7 to 4.5.3. Sizes that do not fit into 32 bits are all ones, and stand elsewhere.
constexpr std::string_view kHeader = "PK\x03\x04", kEntry = "PK\x01\x02", kEnd = "PK\x05\x06", kEnd64 = "PK\x06\x06", kLocator64 = "PK\x06\x07";
constexpr std::size_t kHeaderSize = 30, kEntrySize = 46, kEndSize = 22, kEnd64Size = 56, kLocator64Size = 20, kLongestComment = 65'535;
constexpr std::uint32_t kElsewhere = UINT32_MAX;
constexpr std::uint16_t kExtra64 = 1;

/// 0 beyond the end, which never is a number that fits.
template <class Number>
Number number(std::string_view bytes, std::size_t at) {
    Number value{};
    if (bytes.size() >= sizeof value && at <= bytes.size() - sizeof value) std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
}

/// The field of an entry that has its large sizes.
std::string_view extra64_of(std::string_view extra) {
    while (extra.size() >= 4) {
        const std::size_t size = std::min<std::size_t>(number<std::uint16_t>(extra, 2), extra.size() - 4);
        if (number<std::uint16_t>(extra, 0) == kExtra64) return extra.substr(4, size);
        extra.remove_prefix(4 + size);
    }
    return {};
}

}  // namespace

ZipArchive::ZipArchive(const std::filesystem::path& file) : name_(file.string()), stream_(file, std::ios::binary | std::ios::ate) {
    if (!stream_) fail("the file cannot be opened");
    size_ = static_cast<std::uint64_t>(stream_.tellg());
    const std::string directory = read_directory();
    for (std::string_view rest = directory; !rest.empty();) {
        const std::size_t name_size = number<std::uint16_t>(rest, 28), extra_size = number<std::uint16_t>(rest, 30), comment_size = number<std::uint16_t>(rest, 32);
        if (!rest.starts_with(kEntry) || rest.size() < kEntrySize + name_size + extra_size + comment_size) fail("its directory cannot be read");
        const std::string_view name = rest.substr(kEntrySize, name_size);
        records_[std::string(name.substr(name.find('/') + 1))] = record_from(rest, rest.substr(kEntrySize + name_size, extra_size));
        rest.remove_prefix(kEntrySize + name_size + extra_size + comment_size);
    }
}

void ZipArchive::fail(const std::string& what) const { throw CheckpointError(fmt::format("{}: the archive is truncated or damaged: {}", name_, what)); }

std::string ZipArchive::read_directory() {
    const std::uint64_t searched = std::min<std::uint64_t>(size_, kEndSize + kLongestComment);
    const std::string tail = read_at(size_ - searched, searched);
    const auto end = tail.rfind(kEnd);
    if (end == std::string::npos || tail.size() != end + kEndSize + number<std::uint16_t>(tail, end + 20)) fail("it ends too soon");
    std::uint64_t size = number<std::uint32_t>(tail, end + 12), offset = number<std::uint32_t>(tail, end + 16);
    if (size == kElsewhere || offset == kElsewhere) {
        const std::string_view locator = end < kLocator64Size ? std::string_view() : std::string_view(tail).substr(end - kLocator64Size);
        const std::string end64 = locator.starts_with(kLocator64) ? read_at(number<std::uint64_t>(locator, 8), kEnd64Size) : std::string();
        if (!end64.starts_with(kEnd64)) fail("its directory cannot be found");
        size = number<std::uint64_t>(end64, 40);
        offset = number<std::uint64_t>(end64, 48);
    }
    return read_at(offset, size);
}

ZipArchive::Record ZipArchive::record_from(std::string_view entry, std::string_view extra) const {
    const std::uint32_t stored = number<std::uint32_t>(entry, 20), size = number<std::uint32_t>(entry, 24), header = number<std::uint32_t>(entry, 42);
    std::string_view large = extra64_of(extra);
    const auto whole = [&](std::uint32_t value) -> std::uint64_t {
        if (value != kElsewhere) return value;
        const auto found = number<std::uint64_t>(large, 0);
        large.remove_prefix(std::min<std::size_t>(large.size(), sizeof found));
        return found;
    };
    Record record;
    record.size = whole(size);  // in this order: size, stored size, header
    if (stored == kElsewhere) whole(stored);
    record.header = whole(header);
    record.checksum = number<std::uint32_t>(entry, 16);
    record.compressed = number<std::uint16_t>(entry, 10) != 0;
    return record;
}

const ZipArchive::Record& ZipArchive::record_of(const std::string& name) const {
    const auto found = records_.find(name);
    if (found == records_.end()) fail(fmt::format("it has no record {}", name));
    if (found->second.size > size_) fail(fmt::format("the record {} is larger than the file", name));
    return found->second;
}

void ZipArchive::read(const std::string& name, void* into) {
    const Record& record = record_of(name);
    if (record.compressed) fail(fmt::format("the record {} is compressed, which torch.save does not do", name));
    const std::string header = read_at(record.header, kHeaderSize);
    if (!header.starts_with(kHeader)) fail(fmt::format("the record {} lies elsewhere", name));
    read_at(record.header + kHeaderSize + number<std::uint16_t>(header, 26) + number<std::uint16_t>(header, 28), record.size, into);
    boost::crc_32_type crc;
    crc.process_bytes(into, record.size);
    if (record.checksum != 0 && record.checksum != crc.checksum()) fail(fmt::format("the record {} is not as it was written", name));
}

std::string ZipArchive::read(const std::string& name) {
    std::string bytes(size_of(name), '\0');
    read(name, bytes.data());
    return bytes;
}

void ZipArchive::read_at(std::uint64_t offset, std::uint64_t size, void* into) {
    if (size > size_ || offset > size_ - size) fail("it ends too soon");
    stream_.clear();
    stream_.seekg(static_cast<std::streamoff>(offset));
    if (!stream_.read(static_cast<char*>(into), static_cast<std::streamsize>(size))) fail("it ends too soon");
}

std::string ZipArchive::read_at(std::uint64_t offset, std::uint64_t size) {
    if (size > size_) fail("it ends too soon");
    std::string bytes(size, '\0');
    read_at(offset, size, bytes.data());
    return bytes;
}

}  // namespace torchbus
