#include "child_process.hpp"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include <fmt/format.h>

#include <torchbus/error.hpp>

extern char** environ;

namespace torchbus {
namespace {

struct Pipe {
    int read = -1, write = -1;
    Pipe() {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) throw Error(fmt::format("cannot make a pipe: {}", std::strerror(errno)));
        read = ends[0];
        write = ends[1];
    }
};

std::vector<std::string> merged_environment(const std::map<std::string, std::string>& own) {
    std::vector<std::string> all;
    for (char** entry = environ; *entry; ++entry) {
        const std::string text = *entry;
        if (!own.contains(text.substr(0, text.find('=')))) all.push_back(text);
    }
    for (const auto& [name, value] : own) all.push_back(name + "=" + value);
    return all;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
    std::vector<char*> pointers;
    for (std::string& text : texts) pointers.push_back(text.data());
    pointers.push_back(nullptr);
    return pointers;
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& command, const std::map<std::string, std::string>& environment, const ProcessGuard& guard) : guard_(guard) {
    const Pipe out, err, refusal;
    // All is made ready here: between fork and exec nothing may allocate.
    std::vector<std::string> words = command, variables = merged_environment(environment);
    const std::vector<char*> arguments = pointers_to(words), own_environment = pointers_to(variables);
    const pid_t parent = ::getpid();
    id_ = ::fork();
    if (id_ == 0) {
        ::setpgid(0, 0);
        guard.watch(::getpid());  // before it can start anything
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        ::signal(SIGPIPE, SIG_DFL);  // what is ignored here would be there
        if (::getppid() != parent) ::_exit(1);
        ::dup2(out.write, STDOUT_FILENO);
        ::dup2(err.write, STDERR_FILENO);
        ::execvpe(arguments[0], arguments.data(), own_environment.data());
        const int error = errno;
        [[maybe_unused]] const ssize_t told = ::write(refusal.write, &error, sizeof error);
        ::_exit(127);
    }
    const int fork_error = errno;
    for (const int end : {out.write, err.write, refusal.write}) ::close(end);
    out_ = out.read;
    err_ = err.read;
    int error = id_ < 0 ? fork_error : 0;
    if (id_ > 0) {
        ::setpgid(id_, id_);  // whoever is first
        [[maybe_unused]] const ssize_t heard = ::read(refusal.read, &error, sizeof error);  // nothing, once it runs
    }
    ::close(refusal.read);
    if (error == 0) return;
    if (id_ > 0) end();
    ::close(out_);
    ::close(err_);
    throw ConfigError(fmt::format("cannot run '{}': {}; give a program that is on the path, or its file", command.front(), std::strerror(error)));
}

ChildProcess::~ChildProcess() {
    if (!status_) end();
    ::close(out_);
    ::close(err_);
}

std::optional<int> ChildProcess::status() {
    siginfo_t ended = {};
    // Its number, which is that of its group, is free for others once it is waited for: that comes last.
    if (!status_ && ::waitid(P_PID, static_cast<id_t>(id_), &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid == id_) end();
    return status_;
}

void ChildProcess::end() {
    ::kill(-id_, SIGKILL);
    guard_.forget(id_);
    int status = 0;
    while (::waitpid(id_, &status, 0) < 0 && errno == EINTR) {}
    status_ = status;
}

void ChildProcess::signal(int number) const {
    if (!status_) ::kill(-id_, number);
}

}  // namespace torchbus
