#pragma once
/// What waits to be sent, on disk: it survives a dead receiver, and a dead process.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/stream/line_file.hpp>

namespace torchbus {

struct SpoolOptions {
    std::filesystem::path folder;
    std::int64_t max_bytes = 256 << 20;  ///< of its files
    std::int64_t file_bytes = 1 << 20;   ///< above which the next file is begun; one whose records are all removed is deleted
};

/// Records in the order in which they were added. Each is a line with its checksum: one that a power failure has torn or damaged is
/// left out. What was removed a moment before a power failure may come again.
/// Thread: any. Throws: DataError that names the file and what the system says.
class Spool {
public:
    /// Takes over what an earlier process has left. Throws: DataError also where another process has the folder.
    explicit Spool(SpoolOptions options);
    /// Leaves no file behind where nothing waits, but the note.
    ~Spool();
    Spool(const Spool&) = delete;
    Spool& operator=(const Spool&) = delete;

    /// False where it is full. Requires: no line break in it.
    bool append(std::string_view record);
    /// The oldest ones: at most so many and about so many bytes, but one at least where there is one.
    std::vector<std::string> oldest(std::size_t most, std::size_t bytes);
    /// Removes the first `count` of those that oldest() returned last, and puts a note down with it: what who sends them needs to go on.
    void remove(std::size_t count, std::string_view note);
    /// The last one that was put down, by an earlier process too.
    std::string note() const;
    /// Bytes of the records that wait.
    std::int64_t waiting_bytes() const;
    /// Lines that were no whole records, of those that were passed over for good.
    std::int64_t damaged() const;

private:
    struct Place {
        std::int64_t file = 0, offset = 0;
        std::int64_t damaged = 0;  ///< lines before it that are not counted yet
    };
    std::filesystem::path path_of(std::int64_t file) const;
    void find_files();
    void read_place();
    void write_place() const;
    /// Of one file, from `place` on; false where there is nothing more of it to read.
    bool read_file(Place& place, std::vector<std::string>& records, std::size_t most, std::size_t bytes);
    /// What is before it is removed.
    void pass(const Place& place);
    void delete_read_files();
    std::int64_t total_bytes() const;

    SpoolOptions options_;
    std::unique_ptr<int, void (*)(int*)> lock_;
    mutable std::mutex mutex_;
    std::map<std::int64_t, std::int64_t> files_;  ///< size by number
    Place read_;                                  ///< what is before it is removed
    std::vector<Place> ends_;                     ///< of each record that oldest() returned last
    std::string note_;
    std::int64_t damaged_ = 0, last_ = 0;         ///< number of the newest file that ever was
    std::unique_ptr<LineFile> writing_;           ///< the newest one, once something was added
};

}  // namespace torchbus
