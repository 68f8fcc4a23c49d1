#pragma once
/// A process that was started here, with all that it starts.

#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "process_guard.hpp"

namespace torchbus {

/// In a process group of its own, which does not outlive this, nor the process that made it: a guard sees to that.
class ChildProcess {
public:
    /// `environment` is added to that of this process. `guard` stays. Throws: ConfigError where the program cannot be run.
    ChildProcess(const std::vector<std::string>& command, const std::map<std::string, std::string>& environment, const ProcessGuard& guard);
    ~ChildProcess();
    ChildProcess(const ChildProcess&) = delete;
    ChildProcess& operator=(const ChildProcess&) = delete;

    pid_t id() const { return id_; }
    int out() const { return out_; }  ///< its standard output, to be read from
    int err() const { return err_; }
    /// How it ended, as waitpid() has it; nothing while it runs. The rest of its group ends with it.
    std::optional<int> status();
    void signal(int number) const;

private:
    void end();  ///< kills what is left of its group, and waits for it

    const ProcessGuard& guard_;
    pid_t id_ = -1;
    int out_ = -1, err_ = -1;
    std::optional<int> status_;
};

}  // namespace torchbus
