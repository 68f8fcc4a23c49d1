#pragma once
/// Ends what a process has started when it ends, however it does.

#include <sys/types.h>

#include <cstddef>

namespace torchbus {

/// A process that waits at a pipe whose other end only this process has. When that end is closed, by the destructor or by the
/// death of this process, it kills the groups that it was told to watch. A process that has left its group it cannot find.
class ProcessGuard {
public:
    /// `most_groups`: that are watched at once. Throws: Error where the system has no process or pipe left.
    explicit ProcessGuard(std::size_t most_groups);
    ~ProcessGuard();
    ProcessGuard(const ProcessGuard&) = delete;
    ProcessGuard& operator=(const ProcessGuard&) = delete;

    /// May be called between fork and exec.
    void watch(pid_t group) const;
    /// Before the group's leader is waited for: its number may be another's after that.
    void forget(pid_t group) const;

private:
    pid_t id_ = -1;
    int to_guard_ = -1;
};

}  // namespace torchbus
