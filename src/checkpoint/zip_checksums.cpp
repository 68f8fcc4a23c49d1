#include "zip_checksums.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>

#include <boost/crc.hpp>
#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

// As in PKWARE's APPNOTE, sections 4.3.12 to 4.3.16.
constexpr std::string_view kEntry = "PK\x01\x02", kEnd = "PK\x05\x06", kEnd64 = "PK\x06\x06", kLocator64 = "PK\x06\x07";
constexpr std::size_t kEntrySize = 46, kEndSize = 22, kEnd64Size = 56, kLocator64Size = 20, kLongestComment = 65'535;

class Archive {
public:
    explicit Archive(const std::filesystem::path& file) : name_(file.string()), stream_(file, std::ios::binary | std::ios::ate) {
        size_ = stream_ ? static_cast<std::uint64_t>(stream_.tellg()) : 0;
    }
    std::string directory() {
        const std::uint64_t searched = std::min<std::uint64_t>(size_, kEndSize + kLongestComment), begin = size_ - searched;
        const std::string tail = read(begin, searched);
        const auto end = tail.rfind(kEnd);
        if (end == std::string::npos || tail.size() - end < kEndSize) fail();
        std::uint64_t size = number<std::uint32_t>(tail, end + 12), offset = number<std::uint32_t>(tail, end + 16);
        if (size == UINT32_MAX || offset == UINT32_MAX || number<std::uint16_t>(tail, end + 10) == UINT16_MAX) {  // too large for the fields of 1989
            if (end < kLocator64Size || !tail.substr(end - kLocator64Size).starts_with(kLocator64)) fail();
            const std::string end64 = read(number<std::uint64_t>(tail, end - kLocator64Size + 8), kEnd64Size);
            if (!end64.starts_with(kEnd64)) fail();
            size = number<std::uint64_t>(end64, 40);
            offset = number<std::uint64_t>(end64, 48);
        }
        return read(offset, size);
    }
    template <class Number>
    Number number(std::string_view bytes, std::size_t at) const {
        if (bytes.size() < sizeof(Number) || at > bytes.size() - sizeof(Number)) fail();
        Number value{};
        std::memcpy(&value, bytes.data() + at, sizeof value);
        return value;
    }
    [[noreturn]] void fail() const { throw CheckpointError(fmt::format("{}: the archive is truncated or damaged: its directory cannot be read", name_)); }

private:
    std::string read(std::uint64_t offset, std::uint64_t size) {
        if (size > size_ || offset > size_ - size) fail();
        std::string bytes(size, '\0');
        stream_.seekg(static_cast<std::streamoff>(offset));
        if (!stream_.read(bytes.data(), static_cast<std::streamsize>(size))) fail();
        return bytes;
    }

    std::string name_;
    std::ifstream stream_;
    std::uint64_t size_ = 0;
};

}  // namespace

std::map<std::string, std::uint32_t> zip_checksums(const std::filesystem::path& file) {
    Archive archive(file);
    const std::string directory = archive.directory();
    std::map<std::string, std::uint32_t> checksums;
    for (std::size_t at = 0; at < directory.size();) {
        const std::string_view entry = std::string_view(directory).substr(at);
        if (!entry.starts_with(kEntry) || entry.size() < kEntrySize) archive.fail();
        const std::size_t name_size = archive.number<std::uint16_t>(entry, 28), rest = archive.number<std::uint16_t>(entry, 30) + std::size_t{archive.number<std::uint16_t>(entry, 32)};
        if (entry.size() - kEntrySize < name_size + rest) archive.fail();
        const std::string name(entry.substr(kEntrySize, name_size));
        checksums[name.substr(name.find('/') + 1)] = archive.number<std::uint32_t>(entry, 16);
        at += kEntrySize + name_size + rest;
    }
    return checksums;
}

std::uint32_t crc32_of(std::string_view bytes) {
    boost::crc_32_type crc;
    crc.process_bytes(bytes.data(), bytes.size());
    return crc.checksum();
}

}  // namespace torchbus
