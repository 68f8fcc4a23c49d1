#include "c10d_process.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <utility>

#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <fmt/format.h>

namespace torchbus {

namespace {

/// The level is the process's: the first to enter sets it, the last to leave puts it back.
struct Quiet {
    std::mutex mutex;
    int inside = 0, former = 0;
};
Quiet& quiet() {
    static auto* const kQuiet = new Quiet;
    return *kQuiet;
}

}  // namespace

QuietC10d::QuietC10d() {
    const std::lock_guard lock(quiet().mutex);
    if (quiet().inside++ > 0 || std::getenv("TORCH_CPP_LOG_LEVEL")) return;
    quiet().former = std::exchange(FLAGS_caffe2_log_level, c10::GLOG_FATAL);
}
QuietC10d::~QuietC10d() {
    const std::lock_guard lock(quiet().mutex);
    if (--quiet().inside == 0 && !std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = quiet().former;
}

std::string first_line(const std::exception& error) {
    const auto* of_c10d = dynamic_cast<const c10::Error*>(&error);
    const std::string text = of_c10d ? of_c10d->what_without_backtrace() : error.what();
    return text.substr(0, text.find('\n'));
}

std::string seconds_text(std::chrono::milliseconds time) { return fmt::format("{:.3g} s", static_cast<double>(time.count()) / 1000); }

void shut_down_connections_but(int port) {
    const auto port_of = [](const sockaddr_storage& address) {
        if (address.ss_family == AF_INET) return int(ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port));
        return address.ss_family == AF_INET6 ? int(ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port)) : 0;
    };
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
        const int descriptor = std::atoi(entry.path().filename().c_str());
        sockaddr_storage own{}, other{};
        socklen_t own_size = sizeof own, other_size = sizeof other;
        if (::getsockname(descriptor, reinterpret_cast<sockaddr*>(&own), &own_size) != 0 || ::getpeername(descriptor, reinterpret_cast<sockaddr*>(&other), &other_size) != 0) continue;
        if (port_of(own) == 0 || port_of(own) == port || port_of(other) == port) continue;
        ::shutdown(descriptor, SHUT_RDWR);
    }
}

std::string why_unknown(const std::string& host) {
    addrinfo* found = nullptr;
    const int error = ::getaddrinfo(host.c_str(), nullptr, nullptr, &found);
    if (found) ::freeaddrinfo(found);
    return error == 0 ? "" : ::gai_strerror(error);
}

c10::intrusive_ptr<c10d::TCPStore> open_store(const std::string& address, int port, bool is_server, std::chrono::milliseconds timeout) {
    const QuietC10d quiet;
    // A peer that is gone is to be an error, and not the end of this process: Python ignores the signal at its start.
    struct sigaction now = {};
    if (::sigaction(SIGPIPE, nullptr, &now) == 0 && now.sa_handler == SIG_DFL) ::signal(SIGPIPE, SIG_IGN);
    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(port);
    options.isServer = is_server;
    options.waitWorkers = false;  // who waits tells who is missing
    options.timeout = timeout;
    return c10::make_intrusive<c10d::TCPStore>(address, options);
}

}  // namespace torchbus
