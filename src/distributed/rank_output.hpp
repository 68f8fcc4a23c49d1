#pragma once
/// What a rank says, as its launcher passes it on.

#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <string>

namespace torchbus {

/// One stream of a rank: printed line by line with a prefix, logged as it comes.
class RankOutput {
public:
    /// `log`: empty for none. Throws: ConfigError where it cannot be written.
    RankOutput(int from, std::FILE* to, std::string prefix, const std::filesystem::path& log);
    int descriptor() const { return from_; }
    bool is_open() const { return is_open_; }
    /// Something is there, or the end.
    void read();
    /// What is there, once its rank has ended; a process that has left the rank's group may still hold it open.
    void read_rest();
    const std::deque<std::string>& last_lines() const { return last_lines_; }

private:
    void print(const std::string& line);
    void close();
    int from_;
    std::FILE* to_;
    std::string prefix_, pending_;
    std::ofstream log_;
    std::deque<std::string> last_lines_;
    bool is_open_ = true;
};

}  // namespace torchbus
