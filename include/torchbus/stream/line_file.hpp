#pragma once
/// A file that grows by whole lines.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string_view>

namespace torchbus {

struct LineFileOptions {
    std::filesystem::path path;
    std::int64_t max_bytes = 256 << 20;  ///< above which it is moved aside
    std::int64_t keep = 8;               ///< files moved aside
    std::chrono::milliseconds sync = std::chrono::seconds(5);  ///< how long lines may be in memory only
};

/// Thread: one at a time. Throws: DataError that names the file and what the system says.
class LineFile {
public:
    explicit LineFile(LineFileOptions options) : options_(std::move(options)) {}
    ~LineFile();
    LineFile(const LineFile&) = delete;
    LineFile& operator=(const LineFile&) = delete;

    /// Opens it. To add to what is there, behind its last whole line; else what is there is moved aside.
    void open(bool to_add);
    /// Requires: whole lines.
    void write(std::string_view lines);
    void sync();
    void close();
    bool is_open() const { return descriptor_ >= 0; }

private:
    void move_aside();
    [[noreturn]] void fail(const char* doing) const;

    LineFileOptions options_;
    int descriptor_ = -1;
    std::int64_t size_ = 0;
    bool is_synced_ = true;
    std::chrono::steady_clock::time_point synced_ = {};
};

}  // namespace torchbus
