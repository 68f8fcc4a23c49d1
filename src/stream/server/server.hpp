#pragma once
/// The server's own side: all of it runs on its thread.

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>

#include <torchbus/stream/message.hpp>
#include <torchbus/stream/stream_server.hpp>

#include "../history.hpp"
#include "../shown_runs.hpp"
#include "access.hpp"

namespace torchbus {

namespace asio = boost::asio;
using ServerClock = std::chrono::steady_clock;

enum class Transport { Unknown, Http, Lines, ServerSent, WebSocket };

/// One connection.
struct StreamClient {
    StreamClient(asio::generic::stream_protocol::socket&& its_socket, std::string its_place) : socket(std::move(its_socket)), place(std::move(its_place)), news(socket.get_executor()) {}
    /// Cuts it off; what waits for it ends with an error.
    void close();
    /// To a WebSocket that is between two messages: why it is closed, as RFC 6455 numbers it. Does not wait, and so may fail.
    void say_close(std::uint16_t code);
    void expires_in(ServerClock::duration time) { deadline = ServerClock::now() + time; }
    void never_expires() { deadline = ServerClock::time_point::max(); }

    asio::generic::stream_protocol::socket socket;
    std::string place;                ///< where it is
    boost::beast::flat_buffer buffer; ///< what was read and not yet taken
    asio::steady_timer news;          ///< cancelled where there is something for it
    ServerClock::time_point deadline = ServerClock::time_point::max();
    Transport transport = Transport::Unknown;
    bool is_authorized = false;
    bool has_all = true;              ///< it has been sent all there is
    bool is_between_messages = false; ///< of a WebSocket that is open
    std::string line;                 ///< the beginning of the next line of a client of lines
    std::string answers;              ///< to its commands, on their way
};
using ClientPointer = std::shared_ptr<StreamClient>;

struct HttpExchange;

/// Where a client is in the stream.
struct StreamPlace {
    std::shared_ptr<History> history;
    std::int64_t next = 0;  ///< number of the chunk that comes next
    std::string run;        ///< of the message it had last
    std::int64_t sequence = 0;
};

class StreamServer::Implementation {
public:
    Implementation(StreamServerOptions options, std::function<void(const StreamCommand&)> control);
    ~Implementation();
    std::uint16_t port() const { return port_; }
    std::string url() const;
    void begin(const std::string& run, int rank);
    void publish(std::string lines);
    void show(std::string label, std::string run, int rank, std::string lines);
    void drain(std::chrono::milliseconds at_most);

private:
    // server.cpp
    void listen();
    template <class Acceptor>
    asio::awaitable<void> accept(Acceptor& acceptor);
    asio::awaitable<void> serve(ClientPointer client);
    asio::awaitable<void> sweep();
    bool has_all() const;
    /// A client has taken what it was sent.
    void note_taken() { last_taken_ = ServerClock::now(); }
    /// Has the server's thread take lines, and waits where it has too many of them before it.
    void hand_over(std::string lines, std::function<void(const std::string&)> take);

    // following.cpp
    using Send = std::function<asio::awaitable<void>(std::string_view bytes)>;
    /// None where so many others are chosen already that there is none for this one; too_many_choices() says so.
    std::optional<StreamPlace> place_for(const Subscription& wanted, std::string_view last_id);
    std::string too_many_choices() const;
    /// Sends the present state, then message after message, until the client goes.
    asio::awaitable<void> follow(ClientPointer client, StreamPlace place, bool as_server_sent, Send send);
    /// Of the run that began last.
    std::string snapshot_line();
    std::string gap_line(const StreamPlace& place, const Chunk& next);
    asio::awaitable<void> write(StreamClient& client, std::string_view bytes);
    /// Does as a client says in a line or message; the answer goes into its answers.
    void obey(StreamClient& client, const std::string& text);

    // line_client.cpp, http_client.cpp, websocket_client.cpp
    asio::awaitable<void> serve_lines(ClientPointer client);
    asio::awaitable<void> read_lines(ClientPointer client);
    asio::awaitable<void> serve_http(ClientPointer client);
    asio::awaitable<void> answer(HttpExchange& exchange);
    /// The body of an answer about runs. Throws: ConfigError for a query that is none.
    std::string about_runs(Route route, std::string_view query);
    asio::awaitable<void> serve_stream(HttpExchange& exchange);
    asio::awaitable<void> await_goodbye(ClientPointer client);
    asio::awaitable<void> say_goodbye(ClientPointer client);
    asio::awaitable<void> serve_websocket(HttpExchange& exchange);
    std::string metrics() const;

    StreamServerOptions options_;
    std::function<void(const StreamCommand&)> control_;
    AccessRules rules_;
    std::uint16_t port_ = 0;
    asio::io_context io_{1};
    asio::ip::tcp::acceptor acceptor_{io_};
    asio::local::stream_protocol::acceptor unix_acceptor_{io_};
    asio::steady_timer sweep_timer_{io_};

    Histories histories_;
    ShownRuns runs_;
    std::unique_ptr<MessageWriter> beside_;                 ///< writes what is no event of the run: snapshots and gaps
    std::set<ClientPointer> clients_;
    std::map<Transport, std::int64_t> served_;
    std::int64_t turned_away_ = 0, cut_off_ = 0;
    ServerClock::time_point last_taken_ = {};               ///< when a client had taken something
    std::mutex mutex_;
    std::condition_variable taken_;
    std::size_t handed_over_ = 0;  ///< bytes of lines that the thread has not taken yet; guarded by mutex_
    std::thread thread_;
};

}  // namespace torchbus
