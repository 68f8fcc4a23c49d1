#include <torchbus/checkpoint/writable.hpp>

#include <cerrno>
#include <cstring>
#include <fstream>

#include <fmt/format.h>

namespace torchbus {
namespace {

namespace fs = std::filesystem;

std::vector<Finding> finding(std::string_view owner, std::string_view option, const fs::path& path, const std::string& why) {
    if (why.empty()) return {};
    return {{Finding::Weight::Error, fmt::format("'{}' cannot write to '{}': {}; give another `{}`", owner, path.string(), why, option)}};
}

}  // namespace

std::string against_writing_in(const fs::path& folder, Probe how) {
    std::error_code error;
    std::vector<fs::path> made;  // folders that are not there yet, innermost first
    for (auto path = folder; how == Probe::LeaveNoTrace && !path.empty() && !fs::exists(path, error); path = path.parent_path()) made.push_back(path);
    error.clear();
    fs::create_directories(folder, error);
    const fs::path probe = folder / ".torchbus-probe";
    errno = 0;
    const bool writable = !error && std::ofstream(probe).put('x').flush().good();
    const std::string why = error ? error.message() : std::strerror(errno);
    std::error_code ignored;
    fs::remove(probe, ignored);
    for (const auto& path : made) fs::remove(path, ignored);
    return writable ? "" : why;
}

std::string against_writing(const fs::path& file) {
    std::error_code ignored;
    const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
    if (!fs::exists(folder, ignored)) return std::strerror(ENOENT);
    if (!fs::exists(file, ignored)) return against_writing_in(folder);
    errno = 0;
    return std::ofstream(file, std::ios::app).good() ? "" : std::strerror(errno);
}

std::vector<Finding> check_folder(std::string_view owner, std::string_view option, const fs::path& folder) { return finding(owner, option, folder, against_writing_in(folder)); }
std::vector<Finding> check_file(std::string_view owner, std::string_view option, const fs::path& file) { return finding(owner, option, file, against_writing(file)); }

}  // namespace torchbus
