#pragma once
/// Gives the messages of a run to whoever connects: lines over TCP and a Unix socket, Server-Sent Events, WebSocket, and
/// for Prometheus, on one port and by a thread of its own.
/// A client that begins with `{` or an empty line, closes its sending side without a word, or is silent for 3 s is given lines;
/// any other speaks HTTP.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace torchbus {

struct StreamServerOptions {
    std::string owner = "event_server";     ///< with which messages begin
    std::string address = "127.0.0.1";      ///< an IP address; another one than of the loopback needs a token
    std::uint16_t port = 0;                 ///< 0: any that is free
    std::filesystem::path unix_socket = {}; ///< beside it, for this user alone; empty: none
    std::string token = {};                 ///< asked for before control, and before anything from another address than the loopback
    std::vector<std::string> hosts = {};    ///< names by which it may be called, besides localhost and its address
    std::vector<std::string> origins = {};  ///< of pages served by others that may ask
    bool allows_control = false;
    std::size_t history_bytes = 16U << 20;  ///< of all messages, for who connects late; and as many of what clients choose, in equal shares for each choice
    std::size_t curve_points = 2U << 20;    ///< of numbers, for the dashboard: 32 bytes each, of all runs together
    std::size_t max_clients = 4096;         ///< one more is turned away
    std::chrono::milliseconds stall = std::chrono::seconds(30);    ///< a client that takes no chunk of 32 KiB in this time is cut off
    std::chrono::milliseconds patience = std::chrono::seconds(10); ///< for a whole request from its first byte on, or a WebSocket's hand-shake
    std::chrono::milliseconds idle = std::chrono::seconds(75);     ///< between two requests of a connection, and for a WebSocket's answer to a ping; longer than Prometheus waits between two scrapes
};

/// What a client asks of the run.
struct StreamCommand {
    std::string command;     ///< stop, save, evaluate, pause, resume or change_option; empty where a client gives its token, and no more
    std::string requester;   ///< who asks, by their own word, and where they are
    std::string reason;
    std::string subscriber, option;  ///< for change_option
    nlohmann::json value;
    std::string token;       ///< where it was given in the text
};

/// The only line of a file, at least 16 characters; empty for no file. Throws: ConfigError that begins with `where`.
std::string token_from_file(const std::filesystem::path& file, const std::string& where);

/// Throws: ConfigError for what is none.
StreamCommand command_from_text(const std::string& text);

/// Thread: any, all of it.
class StreamServer {
public:
    /// `control` is called by the server's thread. It throws ConfigError for what it does not take.
    /// Throws: ConfigError where it cannot listen there, or may not without a token.
    StreamServer(StreamServerOptions options, std::function<void(const StreamCommand&)> control);
    ~StreamServer();
    StreamServer(const StreamServer&) = delete;
    StreamServer& operator=(const StreamServer&) = delete;

    /// Whether the dashboard is in this build.
    static bool has_dashboard();
    std::uint16_t port() const;
    /// "http://127.0.0.1:8080"
    std::string url() const;
    /// What is published from now on is of this run.
    void begin(const std::string& run, int rank);
    /// Whole lines of a MessageWriter. Waits where the server's thread has not taken 8 MiB of others yet.
    void publish(std::string lines);
    /// Lines of a run that lies elsewhere, for the dashboard to compare with; the same.
    void show(std::string label, std::string run, int rank, std::string lines);
    /// Waits until every client has all, or none has taken anything for 100 ms, for at most this time: who does not read holds up nobody.
    void drain(std::chrono::milliseconds at_most);

private:
    class Implementation;
    std::unique_ptr<Implementation> implementation_;
};

}  // namespace torchbus
