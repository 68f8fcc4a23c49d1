#pragma once
/// A table of numbers that grows by rows, and by columns where a name is new.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <torchbus/stream/line_file.hpp>
#include <torchbus/stream/numbers.hpp>

namespace torchbus {

/// Columns: time (seconds since 1970), epoch, step, samples, event, and one for every name, in the order in which they came.
/// Thread: one at a time. Throws: DataError that names the file and what the system says.
class CsvTable {
public:
    /// To add to what is there, once what was torn and what is of steps after `step` is cut off; else what is there is moved aside.
    CsvTable(std::filesystem::path path, std::int64_t keep, bool to_add, std::int64_t step);
    /// A row of what is new. A name that is new as well makes the file be written anew, with a column more.
    void add(const StreamNumbers& numbers);
    /// Rows of steps after `step` are cut off.
    void go_back_to(std::int64_t step);
    void flush();
    void sync();

private:
    void read_header();
    void append_header(std::string& out) const;
    /// Writes the file anew with all columns, and without rows of steps after `last`.
    void rewrite(std::int64_t last);

    std::filesystem::path path_;
    LineFile file_;
    std::vector<std::string> columns_;
    std::map<std::string, std::size_t, std::less<>> places_;  ///< by name
    std::size_t columns_in_file_ = 0;
    std::string waiting_;  ///< rows
};

}  // namespace torchbus
