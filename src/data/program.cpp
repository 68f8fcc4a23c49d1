#include "program.hpp"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

extern char** environ;

namespace torchbus {
namespace {

/// A running program; killed and reaped where the caller leaves early.
class Program {
public:
    explicit Program(const Invocation& invocation) : name_(invocation.arguments.front()), complaints_(::memfd_create("complaints", MFD_CLOEXEC)) {
        int ends[2] = {-1, -1};
        if (::pipe2(ends, O_CLOEXEC) != 0) throw ProgramError(fmt::format("no pipe for '{}': {}", name_, std::strerror(errno)));
        output_ = FileDescriptor(ends[0]);
        const FileDescriptor far_end(ends[1]);
        if (const int error = spawn(invocation, *far_end))
            throw ProgramError(error == ENOENT ? fmt::format("'{}' is not installed", name_) : fmt::format("'{}' does not start: {}", name_, std::strerror(error)));
    }
    Program(const Program&) = delete;
    ~Program() {
        if (id_ > 0) {
            ::kill(id_, SIGKILL);
            reap();
        }
    }

    /// Hands its output on until it ends. Throws: ProgramError where it fails or falls silent.
    void finish(const ByteSink& sink, int silence_seconds) {
        char buffer[1 << 16];
        while (await_output(silence_seconds)) {
            const ssize_t count = ::read(*output_, buffer, sizeof buffer);
            if (count < 0 && errno == EINTR) continue;
            if (count <= 0) break;
            sink({buffer, static_cast<std::size_t>(count)});
        }
        const int status = reap();
        if (status != 0) throw ProgramError(complaint(status));
    }

private:
    int spawn(const Invocation& invocation, int output) {
        posix_spawn_file_actions_t actions;
        ::posix_spawn_file_actions_init(&actions);
        if (invocation.input >= 0) ::posix_spawn_file_actions_adddup2(&actions, invocation.input, STDIN_FILENO);
        else ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
        ::posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
        ::posix_spawn_file_actions_adddup2(&actions, *complaints_, STDERR_FILENO);
        if (!invocation.folder.empty()) ::posix_spawn_file_actions_addchdir_np(&actions, invocation.folder.c_str());
        // A trainer blocks and ignores signals; the program starts with a clean slate.
        posix_spawnattr_t attributes;
        ::posix_spawnattr_init(&attributes);
        sigset_t none, usual;
        ::sigemptyset(&none);
        ::sigemptyset(&usual);
        for (const int signal : {SIGINT, SIGTERM, SIGPIPE}) ::sigaddset(&usual, signal);
        ::posix_spawnattr_setsigmask(&attributes, &none);
        ::posix_spawnattr_setsigdefault(&attributes, &usual);
        ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
        std::vector<char*> arguments;
        for (const std::string& argument : invocation.arguments) arguments.push_back(const_cast<char*>(argument.c_str()));
        arguments.push_back(nullptr);
        const int error = ::posix_spawnp(&id_, arguments.front(), &actions, &attributes, arguments.data(), environ);
        if (error) id_ = -1;
        ::posix_spawnattr_destroy(&attributes);
        ::posix_spawn_file_actions_destroy(&actions);
        return error;
    }

    bool await_output(int silence_seconds) const {
        using namespace std::chrono;
        const auto deadline = steady_clock::now() + seconds(silence_seconds);
        for (;;) {
            const auto left = duration_cast<milliseconds>(deadline - steady_clock::now()).count();
            pollfd waiting = {*output_, POLLIN, 0};
            const int ready = left > 0 ? ::poll(&waiting, 1, static_cast<int>(left)) : 0;
            if (ready > 0) return true;
            if (ready == 0) throw ProgramError(fmt::format("'{}' sent nothing for {} s", name_, silence_seconds));
            if (errno != EINTR) return false;
        }
    }

    int reap() {
        int status = -1;
        while (::waitpid(id_, &status, 0) < 0 && errno == EINTR) {}
        id_ = -1;
        return status;
    }

    /// What it wrote to standard error, in one line and shortened.
    std::string complaint(int status) const {
        std::string text, line, said;
        ::lseek(*complaints_, 0, SEEK_SET);
        read_all(*complaints_, [&](std::span<const char> part) { said.append(part.data(), part.size()); });
        said += '\n';
        for (const char letter : said) {
            if (letter != '\n') {
                line += letter;
                continue;
            }
            if (line.starts_with("npm error ")) line.erase(0, 10);
            if (!line.empty() && !line.starts_with("A complete log")) text += (text.empty() ? "" : ", ") + line;
            line.clear();
        }
        if (text.size() > 240) text = text.substr(0, 240) + "…";
        if (!text.empty()) return text;
        return WIFEXITED(status) ? fmt::format("'{}' ended with {}", name_, WEXITSTATUS(status)) : fmt::format("'{}' was killed", name_);
    }

    std::string name_;
    FileDescriptor complaints_, output_;
    pid_t id_ = -1;
};

}  // namespace

void run_program(const Invocation& invocation, const ByteSink& sink) { Program(invocation).finish(sink, invocation.silence_seconds); }

}  // namespace torchbus
