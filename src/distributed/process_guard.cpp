#include "process_guard.hpp"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <span>
#include <vector>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

/// A number is a group to watch, a negative one a group to forget. This runs in a fork of a process with threads, where only
/// what is safe in a signal handler may be called.
[[noreturn]] void stand_guard(int messages, std::span<pid_t> groups) {
    ::setsid();  // out of reach of what is sent to the group or the terminal of who is guarded
    sigset_t all;
    ::sigfillset(&all);
    ::sigprocmask(SIG_BLOCK, &all, nullptr);
    ::prctl(PR_SET_NAME, "torchbus-guard");
    ::dup2(messages, STDIN_FILENO);
    ::close_range(STDIN_FILENO + 1, ~0U, 0);  // readers of what is open here wait for its end
    std::size_t count = 0;
    for (pid_t group; ::read(STDIN_FILENO, &group, sizeof group) == sizeof group;) {
        if (group > 0 && count < groups.size()) groups[count++] = group;
        for (std::size_t i = 0; i < count; ++i)
            if (groups[i] == -group) groups[i] = groups[--count];
    }
    for (const pid_t group : groups.first(count)) ::kill(-group, SIGKILL);
    ::_exit(0);
}

void send(int to, pid_t message) {
    while (::write(to, &message, sizeof message) < 0 && errno == EINTR) {}
}

}  // namespace

ProcessGuard::ProcessGuard(std::size_t most_groups) {
    std::vector<pid_t> groups(most_groups);
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) throw Error(fmt::format("cannot make a pipe: {}", std::strerror(errno)));
    id_ = ::fork();
    if (id_ == 0) stand_guard(ends[0], groups);
    const int fork_error = errno;
    ::close(ends[0]);
    to_guard_ = ends[1];
    if (id_ > 0) return;
    ::close(to_guard_);
    throw Error(fmt::format("cannot start a process: {}", std::strerror(fork_error)));
}

ProcessGuard::~ProcessGuard() {
    ::close(to_guard_);
    while (::waitpid(id_, nullptr, 0) < 0 && errno == EINTR) {}
}

void ProcessGuard::watch(pid_t group) const { send(to_guard_, group); }
void ProcessGuard::forget(pid_t group) const { send(to_guard_, -group); }

}  // namespace torchbus
