#pragma once
/// c10d logs what it throws as well, with the frames of its stack.

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

}  // namespace torchbus
