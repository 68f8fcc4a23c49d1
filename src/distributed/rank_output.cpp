#include "rank_output.hpp"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

constexpr std::size_t kLinesKept = 20;          ///< for when the rank fails
constexpr std::size_t kLongestLine = 64 << 10;  ///< what is longer is printed in parts
constexpr int kPatienceMs = 50;

}  // namespace

RankOutput::RankOutput(int from, std::FILE* to, std::string prefix, const std::filesystem::path& log) : from_(from), to_(to), prefix_(std::move(prefix)) {
    if (log.empty()) return;
    log_.open(log, std::ios::binary);
    if (!log_) throw ConfigError(fmt::format("{}: cannot write the log: {}; give another --log-dir", log.string(), std::strerror(errno)));
}

void RankOutput::read() {
    char bytes[4096];
    const ssize_t count = ::read(from_, bytes, sizeof bytes);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (count <= 0) return close();
    log_.write(bytes, count).flush();
    pending_.append(bytes, static_cast<std::size_t>(count));
    for (std::size_t end; (end = pending_.find('\n')) != std::string::npos; pending_.erase(0, end + 1)) print(pending_.substr(0, end));
    if (pending_.size() > kLongestLine) print(std::exchange(pending_, {}));
}

void RankOutput::read_rest() {
    pollfd stream{from_, POLLIN, 0};
    while (is_open_ && ::poll(&stream, 1, kPatienceMs) > 0) read();
    close();
}

void RankOutput::close() {
    if (!pending_.empty()) print(std::exchange(pending_, {}));
    is_open_ = false;
}

void RankOutput::print(const std::string& line) {
    std::fprintf(to_, "%s%s\n", prefix_.c_str(), line.c_str());
    std::fflush(to_);
    if (last_lines_.size() == kLinesKept) last_lines_.pop_front();
    last_lines_.push_back(line);
}

}  // namespace torchbus
