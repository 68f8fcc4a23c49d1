#pragma once
/// A zip archive as torch.save writes it: its records are stored as they are, not compressed. LibTorch's own reader
/// compares no checksums, and leaks where an archive is damaged.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>

namespace torchbus {

class ZipArchive {
public:
    /// Reads the directory. Throws, as all here: CheckpointError naming the file, for an archive that is truncated or damaged.
    explicit ZipArchive(const std::filesystem::path& file);

    /// Names are within the folder that all records of an archive are in. Of what is read, no record may be compressed.
    bool has(const std::string& record) const { return records_.contains(record); }
    std::uint64_t size_of(const std::string& record) const { return record_of(record).size; }
    /// size_of() bytes, compared with their checksum where there is one.
    void read(const std::string& record, void* into);
    std::string read(const std::string& record);
    [[noreturn]] void fail(const std::string& what) const;

private:
    struct Record {
        std::uint64_t header = 0, size = 0;  ///< bytes
        std::uint32_t checksum = 0;          ///< CRC-32; 0: none was computed
        bool compressed = false;
    };
    const Record& record_of(const std::string& name) const;
    Record record_from(std::string_view entry, std::string_view extra) const;
    std::string read_directory();
    void read_at(std::uint64_t offset, std::uint64_t size, void* into);
    std::string read_at(std::uint64_t offset, std::uint64_t size);

    std::string name_;
    std::ifstream stream_;
    std::uint64_t size_ = 0;
    std::map<std::string, Record> records_;
};

}  // namespace torchbus
