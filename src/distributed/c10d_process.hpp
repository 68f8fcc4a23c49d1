#pragma once
/// What c10d expects of a process that Python has started, and how much it logs.

#include <csignal>
#include <cstdlib>

#include <c10/util/Logging.h>

namespace torchbus {

/// While it lives nothing is logged, as it is in the error; unless the user has set how much is.
class QuietC10d {
public:
    QuietC10d() : former_(FLAGS_caffe2_log_level) {
        if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
    }
    ~QuietC10d() { FLAGS_caffe2_log_level = former_; }
    QuietC10d(const QuietC10d&) = delete;
    QuietC10d& operator=(const QuietC10d&) = delete;

private:
    int former_;
};

/// A peer that is gone is to be an error, and not the end of this process. Python does so at its start.
inline void ignore_broken_pipes() {
    struct sigaction now = {};
    if (::sigaction(SIGPIPE, nullptr, &now) == 0 && now.sa_handler == SIG_DFL) ::signal(SIGPIPE, SIG_IGN);
}

}  // namespace torchbus
