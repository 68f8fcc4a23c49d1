#pragma once
/// Requests over plain HTTP/1.1, for sinks: one at a time, each within a time limit.

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace torchbus {

struct HttpUrl {
    std::string host;    ///< a name or an address, an IPv6 one without its brackets
    std::string port;
    std::string target;  ///< path and query; begins with a slash
    std::string place;   ///< "http://host:port": what may be told, where the rest may hold a secret
};
/// Throws: ConfigError that begins with `where`, and tells no more of it than scheme and authority: another scheme than http, a user's name, or malformed.
HttpUrl http_url(std::string_view text, std::string_view where);

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;
/// `Authorization: Bearer TOKEN` from the first line of `token_file`, and the lines "Name: value" of `headers_file`; empty names: none.
/// Throws: ConfigError that begins with `owner`.
HttpHeaders http_headers(const std::filesystem::path& token_file, const std::filesystem::path& headers_file, std::string_view owner);

struct HttpPosterOptions {
    HttpUrl url;
    HttpHeaders headers = {};
    std::chrono::milliseconds connect_limit{3000};  ///< for the name and the connection
    std::chrono::milliseconds limit{10000};         ///< for what follows, to the last byte of the answer
    std::size_t max_answer_bytes = 1 << 20;         ///< what is longer is cut off
};

struct HttpAnswer {
    int status = 0;      ///< 0: none
    std::string body;
    std::string error;   ///< why there is none, or no whole one
    std::optional<std::chrono::seconds> retry_after = {};
    bool is_given_up = false;  ///< there is none, or no whole one, because of cancel()
    bool is_success() const { return status >= 200 && status < 300; }
    /// The same may be accepted later: no answer, 408, 429 and 5xx.
    bool is_temporary() const { return status == 0 || status == 408 || status == 429 || status >= 500; }
};

/// Keeps its connection. Never follows a redirect, and never repeats a request by itself.
/// Thread: one, but cancel().
class HttpPoster {
public:
    explicit HttpPoster(HttpPosterOptions options);
    ~HttpPoster();
    /// `target`: path and query.
    HttpAnswer post(std::string_view target, std::string_view type, std::string body);
    HttpAnswer get(std::string_view target);
    /// A request that is under way returns within a moment, and later ones at once. Thread: any.
    void cancel();
    const HttpUrl& url() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

/// "a b" → "a%20b"
std::string percent_encoded(std::string_view text);

}  // namespace torchbus
