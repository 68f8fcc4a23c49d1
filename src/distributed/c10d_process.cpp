#include "c10d_process.hpp"

#include <csignal>
#include <cstdlib>

#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <fmt/format.h>

namespace torchbus {

QuietC10d::QuietC10d() : former_(FLAGS_caffe2_log_level) {
    if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
}
QuietC10d::~QuietC10d() { FLAGS_caffe2_log_level = former_; }

std::string first_line(const std::exception& error) {
    const auto* of_c10d = dynamic_cast<const c10::Error*>(&error);
    const std::string text = of_c10d ? of_c10d->what_without_backtrace() : error.what();
    return text.substr(0, text.find('\n'));
}

std::string seconds_text(std::chrono::milliseconds time) { return fmt::format("{:.3g} s", static_cast<double>(time.count()) / 1000); }

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
