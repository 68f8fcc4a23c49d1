#include "file.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {

FileContent read_file(const std::filesystem::path& file) {
    errno = 0;
    std::ifstream stream(file, std::ios::binary | std::ios::ate);
    if (!stream) throw CheckpointError(fmt::format("{}: cannot open the file: {}", file.string(), std::strerror(errno)));
    const std::streamoff size = stream.tellg();
    FileContent bytes(size > 0 ? static_cast<std::size_t>(size) : 0);
    stream.seekg(0);
    if (size < 0 || !stream.read(bytes.data(), size)) throw CheckpointError(fmt::format("{}: cannot read the file: {}", file.string(), errno ? std::strerror(errno) : "it ends too soon"));
    return bytes;
}

}  // namespace torchbus
