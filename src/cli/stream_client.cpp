#include "stream_client.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus::cli {
namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int kConnectPatienceMs = 5000;
constexpr std::size_t kLongestLine = 64U << 20;

std::string without_scheme(std::string text) {
    constexpr std::string_view kScheme = "http://";
    if (text.starts_with(kScheme)) text.erase(0, kScheme.size());
    if (text.ends_with('/') && text.find(':') != std::string::npos) text.pop_back();
    return text;
}

bool is_port(std::string_view text) { return !text.empty() && text.size() <= 5 && text.find_first_not_of("0123456789") == std::string_view::npos; }

/// Waits until it is connected. Returns 0, or what went wrong.
int finish_connecting(int descriptor) {
    pollfd waited{descriptor, POLLOUT, 0};
    const auto until = steady_clock::now() + milliseconds(kConnectPatienceMs);
    int ready = 0;
    do ready = ::poll(&waited, 1, static_cast<int>(std::max<std::int64_t>(0, std::chrono::ceil<milliseconds>(until - steady_clock::now()).count())));
    while (ready < 0 && errno == EINTR);
    if (ready == 0) return ETIMEDOUT;
    if (ready < 0) return errno;
    int error = 0;
    socklen_t size = sizeof error;
    return ::getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

int open_socket(int family, const sockaddr* to, socklen_t size) {
    const int descriptor = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -1;
    int error = ::connect(descriptor, to, size) == 0 ? 0 : errno;
    if (error == EINPROGRESS) error = finish_connecting(descriptor);
    if (error == 0) return descriptor;
    ::close(descriptor);
    errno = error;
    return -1;
}

}  // namespace

bool is_stream_address(const std::string& text) {
    std::error_code none;
    if (std::filesystem::is_socket(text, none)) return true;
    if (text.starts_with("http://") || text.starts_with("https://")) return true;
    const std::size_t colon = text.rfind(':');
    return colon != std::string::npos && colon > 0 && is_port(std::string_view(text).substr(colon + 1)) && !std::filesystem::exists(text, none);
}

StreamClient::StreamClient(const std::string& address, std::string request) : address_(address), request_(std::move(request)) {
    std::error_code none;
    if (std::filesystem::is_socket(address, none)) {
        host_ = address;
        return;
    }
    if (address.starts_with("https://")) throw ConfigError(fmt::format("{}: an event_server speaks no TLS; give http:// or HOST:PORT, and a tunnel's end where the way is not safe", address));
    const std::string plain = without_scheme(address);
    const std::size_t colon = plain.rfind(':');
    if (colon == std::string::npos || colon == 0 || !is_port(std::string_view(plain).substr(colon + 1))) throw ConfigError(fmt::format("{}: there is no port; give the address that the run printed, e.g. 127.0.0.1:8080", address));
    host_ = plain.substr(0, colon);
    port_ = plain.substr(colon + 1);
    if (host_.starts_with('[') && host_.ends_with(']')) host_ = host_.substr(1, host_.size() - 2);
}

StreamClient::~StreamClient() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

int StreamClient::connected_socket() {
    if (port_.empty()) {
        sockaddr_un to{};
        to.sun_family = AF_UNIX;
        if (host_.size() >= sizeof to.sun_path) throw ConfigError(fmt::format("{}: the path of a Unix socket has at most {} bytes; give a shorter one, relative to this folder", host_, sizeof to.sun_path - 1));
        std::memcpy(to.sun_path, host_.c_str(), host_.size() + 1);
        return open_socket(AF_UNIX, reinterpret_cast<const sockaddr*>(&to), sizeof to);
    }
    addrinfo wanted{};
    wanted.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (const int failed = ::getaddrinfo(host_.c_str(), port_.c_str(), &wanted, &found); failed != 0) {
        trouble_ = ::gai_strerror(failed);
        errno = 0;
        return -1;
    }
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
    for (const addrinfo* each = found; each; each = each->ai_next)
        if (const int descriptor = open_socket(each->ai_family, each->ai_addr, each->ai_addrlen); descriptor >= 0) return descriptor;
    return -1;
}

void StreamClient::lose(const std::string& why) {
    if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
    buffer_.clear();
    trouble_ = why;
    next_try_ = steady_clock::now() + pause_;
    pause_ = std::min<milliseconds>(pause_ * 2, 5s);
}

bool StreamClient::connect() {
    descriptor_ = connected_socket();
    const std::string line = request_ + "\n";  // shorter than what the system takes at once
    if (descriptor_ >= 0 && ::send(descriptor_, line.data(), line.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(line.size())) {
        was_connected_ = true;
        trouble_.clear();
        return true;
    }
    const std::string why = errno != 0 ? std::strerror(errno) : trouble_;
    if (!was_connected_) throw Error(fmt::format("{}: cannot connect: {}; is the run under way, and is this the address that its event_server printed?", address_, why));
    lose(why);
    return false;
}

std::optional<std::string> StreamClient::next(milliseconds at_most) {
    if (!is_connected() && (steady_clock::now() < next_try_ || !connect())) {
        ::poll(nullptr, 0, static_cast<int>(at_most.count()));
        return std::nullopt;
    }
    for (std::size_t searched = 0;;) {
        if (const std::size_t end = buffer_.find('\n', searched); end != std::string::npos) {
            std::string line = buffer_.substr(0, end);
            buffer_.erase(0, end + 1);
            return line;
        }
        searched = buffer_.size();
        if (searched > kLongestLine) throw Error(fmt::format("{}: a line is longer than {} MiB; is this an event_server?", address_, kLongestLine >> 20));
        pollfd waited{descriptor_, POLLIN, 0};
        if (::poll(&waited, 1, static_cast<int>(at_most.count())) <= 0) return std::nullopt;
        char block[65536];
        const ssize_t count = ::recv(descriptor_, block, sizeof block, 0);
        if (count > 0) {
            buffer_.append(block, static_cast<std::size_t>(count));
            pause_ = 500ms;
        } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
            lose(count == 0 ? "the server has closed the connection" : std::strerror(errno));
            return std::nullopt;
        }
    }
}

}  // namespace torchbus::cli
