#include <fstream>

#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/stream/stream_server.hpp>

namespace torchbus {

std::string token_from_file(const std::filesystem::path& file, const std::string& where) {
    constexpr std::size_t kShortest = 16;
    std::string token;
    if (file.empty()) return token;
    std::ifstream stream(file);
    if (!std::getline(stream, token)) throw ConfigError(fmt::format("{}: {} cannot be read, or is empty; write a token of at least {} characters into it", where, file.string(), kShortest));
    if (token.ends_with('\r')) token.pop_back();
    if (token.size() < kShortest)
        throw ConfigError(fmt::format("{}: the token in {} has {} characters, expected at least {}; make one with: openssl rand -hex 16", where, file.string(), token.size(), kShortest));
    return token;
}

}  // namespace torchbus
