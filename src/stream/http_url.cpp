#include <algorithm>
#include <cctype>
#include <fstream>

#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/stream/http_poster.hpp>

namespace torchbus {
namespace {

constexpr std::string_view kScheme = "http://";

bool is_letter_or_digit(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; }
bool is_printable(char c) { return c > ' ' && c < '\x7f'; }

/// "host:8080" or "[::1]:8080", the port optional.
bool split_authority(std::string_view authority, HttpUrl& url) {
    const bool is_bracketed = authority.starts_with('[');
    const std::size_t end = is_bracketed ? authority.find(']') : std::min(authority.find(':'), authority.size());
    if (end == std::string_view::npos || end == 0) return false;
    const std::string_view host = authority.substr(is_bracketed ? 1 : 0, end - (is_bracketed ? 1 : 0));
    const std::string_view rest = authority.substr(end + (is_bracketed ? 1 : 0));
    const auto is_of_host = [&](char c) { return is_letter_or_digit(c) || c == '.' || c == '-' || c == '_' || (is_bracketed && c == ':'); };
    if (host.empty() || !std::ranges::all_of(host, is_of_host)) return false;
    url.host = host;
    url.port = "80";
    if (rest.empty()) return true;
    url.port = rest.substr(1);
    const bool has_digits = !url.port.empty() && url.port.size() <= 5 && std::ranges::all_of(url.port, [](char c) { return c >= '0' && c <= '9'; });
    return rest.front() == ':' && has_digits && std::stoi(url.port) >= 1 && std::stoi(url.port) <= 65535;
}

std::string first_line(const std::filesystem::path& file, std::string_view owner) {
    std::ifstream stream(file);
    std::string line;
    if (!std::getline(stream, line)) throw ConfigError(fmt::format("{}: token_file: {} cannot be read, or is empty; write the token into it, as its only line", owner, file.string()));
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty() || !std::ranges::all_of(line, is_printable))
        throw ConfigError(fmt::format("{}: token_file: the first line of {} is empty, or has blanks or characters that no token has", owner, file.string()));
    return line;
}

void add_headers(HttpHeaders& headers, const std::filesystem::path& file, std::string_view owner) {
    std::ifstream stream(file);
    if (!stream) throw ConfigError(fmt::format("{}: headers_file: {} cannot be read", owner, file.string()));
    int number = 0;
    for (std::string line; std::getline(stream, line);) {
        ++number;
        if (line.ends_with('\r')) line.pop_back();
        if (line.empty()) continue;
        const std::size_t colon = line.find(':');
        const std::string name = line.substr(0, colon);
        const bool is_name = colon != std::string::npos && !name.empty() && std::ranges::all_of(name, [](char c) { return is_letter_or_digit(c) || c == '-' || c == '_'; });
        std::size_t begin = is_name ? line.find_first_not_of(" \t", colon + 1) : std::string::npos;
        if (!is_name || begin == std::string::npos || !std::ranges::all_of(line, [](char c) { return c >= ' ' && c != '\x7f'; }))
            throw ConfigError(fmt::format("{}: headers_file: {}:{}: this is no header; expected a line such as X-Team: vision", owner, file.string(), number));
        headers.emplace_back(name, line.substr(begin));
    }
}

/// Scheme and authority: what is behind them may be secret, and so may be all that is around an '@'.
std::string_view without_secrets(std::string_view text) {
    const std::size_t colon = text.find_first_of(":/?#");
    const std::size_t begin = colon != std::string_view::npos && text.substr(colon).starts_with("://") ? colon + 3 : 0;
    return text.substr(0, text.find('@') == std::string_view::npos ? text.find_first_of("/?#", begin) : begin);
}

}  // namespace

HttpUrl http_url(std::string_view text, std::string_view where) {
    if (text.starts_with("https://"))
        throw ConfigError(fmt::format("{}: '{}' asks for TLS, which no library here speaks; give http:// and the address of a proxy nearby that does", where, without_secrets(text)));
    HttpUrl url;
    const auto refuse = [&](const char* why) { throw ConfigError(fmt::format("{}: '{}' {}; give e.g. http://127.0.0.1:5000", where, without_secrets(text), why)); };
    if (!text.starts_with(kScheme)) refuse("does not begin with http://");
    const std::string_view rest = text.substr(kScheme.size());
    const std::size_t end = std::min(rest.find_first_of("/?#"), rest.size());
    if (rest.substr(0, end).find('@') != std::string_view::npos) throw ConfigError(fmt::format("{}: an address with a name or a password in it would be seen by who reads the run file; give token_file or headers_file", where));
    if (!split_authority(rest.substr(0, end), url)) refuse("has no host, or a port that is none");
    const std::string_view target = rest.substr(end);
    if (target.find('#') != std::string_view::npos || !std::ranges::all_of(target, is_printable)) refuse("is followed by characters that no address has");
    url.target = target.starts_with('/') ? std::string(target) : fmt::format("/{}", target);
    url.place = fmt::format("http://{}{}{}:{}", url.host.find(':') == std::string::npos ? "" : "[", url.host, url.host.find(':') == std::string::npos ? "" : "]", url.port);
    return url;
}

HttpHeaders http_headers(const std::filesystem::path& token_file, const std::filesystem::path& headers_file, std::string_view owner) {
    HttpHeaders headers;
    if (!token_file.empty()) headers.emplace_back("Authorization", fmt::format("Bearer {}", first_line(token_file, owner)));
    if (!headers_file.empty()) add_headers(headers, headers_file, owner);
    return headers;
}

std::string percent_encoded(std::string_view text) {
    std::string encoded;
    for (const char c : text) {
        if (is_letter_or_digit(c) || c == '-' || c == '.' || c == '_' || c == '~') encoded += c;
        else encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
    return encoded;
}

}  // namespace torchbus
