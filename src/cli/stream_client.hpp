#pragma once
/// Lines of an event server, over TCP or a Unix socket, again after the connection was lost.

#include <chrono>
#include <optional>
#include <string>

namespace torchbus::cli {

/// Whether it names a server: HOST:PORT, [::1]:PORT, http://HOST:PORT, or a Unix socket that is there.
bool is_stream_address(const std::string& text);

/// Thread: one.
class StreamClient {
public:
    /// `request`: the first line that the server is sent. Throws: ConfigError for what is no address.
    StreamClient(const std::string& address, std::string request);
    ~StreamClient();
    StreamClient(const StreamClient&) = delete;
    StreamClient& operator=(const StreamClient&) = delete;

    /// The next line without its line break; nothing where none comes in this time, or a signal does.
    /// Throws: Error where nobody listens at first, and where a line is longer than 64 MiB.
    std::optional<std::string> next(std::chrono::milliseconds at_most);
    bool is_connected() const { return descriptor_ >= 0; }
    /// Why there is no connection; empty where there is one.
    const std::string& trouble() const { return trouble_; }

private:
    bool connect();
    int connected_socket();
    void lose(const std::string& why);

    std::string address_, host_, port_, request_;  ///< no port: a Unix socket
    int descriptor_ = -1;
    std::string buffer_, trouble_;
    bool was_connected_ = false;
    std::chrono::milliseconds pause_{500};  ///< before the next try
    std::chrono::steady_clock::time_point next_try_ = {};
};

}  // namespace torchbus::cli
