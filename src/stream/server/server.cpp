#include "server.hpp"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <future>
#include <optional>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "../dashboard/page.hpp"

namespace torchbus {
namespace {

using asio::use_awaitable;
using boost::system::error_code;
using namespace std::chrono_literals;

/// How long a client may be silent before it is taken for one that wants lines, and nothing else. A browser connects before it has something to ask for.
constexpr auto kSilence = 3s;
/// Of lines on their way to the server's thread; who has more waits.
constexpr std::size_t kMostHandedOver = 8U << 20;
/// Who has taken nothing for so long is not waited for when a run ends.
constexpr auto kNoProgress = 100ms;
/// Why a WebSocket is closed: the server goes, or the client took too long.
constexpr std::uint16_t kGoingAway = 1001, kPolicy = 1008;
/// What the system keeps of a stream that a client does not read; it doubles this.
constexpr int kSendBuffer = 64 << 10;

void remove_stale(const std::filesystem::path& socket) {
    struct stat found = {};
    if (::lstat(socket.c_str(), &found) != 0 || !S_ISSOCK(found.st_mode)) return;
    asio::io_context io;
    asio::local::stream_protocol::socket probe(io);
    error_code is_dead;
    probe.connect(asio::local::stream_protocol::endpoint(socket.string()), is_dead);
    if (is_dead) ::unlink(socket.c_str());
}

/// A client is a descriptor, and a process may have fewer than clients may come.
void allow_descriptors(std::size_t wanted) {
    struct rlimit limit = {};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
    limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, wanted);
    ::setrlimit(RLIMIT_NOFILE, &limit);
}

std::string place_of(const asio::ip::tcp::socket& socket) {
    error_code gone;
    const auto there = socket.remote_endpoint(gone);
    return gone ? "somewhere" : there.address().to_string();
}
std::string place_of(const asio::local::stream_protocol::socket&) { return "this machine"; }

}  // namespace

void StreamClient::close() {
    error_code ignored;
    socket.shutdown(asio::socket_base::shutdown_both, ignored);
    socket.close(ignored);
    news.cancel();
}

void StreamClient::say_close(std::uint16_t code) {
    if (!std::exchange(is_between_messages, false)) return;
    const unsigned char frame[] = {0x88, 2, static_cast<unsigned char>(code >> 8), static_cast<unsigned char>(code & 0xff)};
    [[maybe_unused]] const ssize_t sent = ::send(socket.native_handle(), frame, sizeof frame, MSG_DONTWAIT | MSG_NOSIGNAL);
}

StreamServer::Implementation::Implementation(StreamServerOptions options, std::function<void(const StreamCommand&)> control)
    : options_(std::move(options)), control_(std::move(control)), histories_(options_.history_bytes), runs_(options_.curve_points), beside_(std::make_unique<MessageWriter>(StreamSource{})) {
    listen();
    allow_descriptors(options_.max_clients + 1024);
    co_spawn(io_, accept(acceptor_), asio::detached);
    if (unix_acceptor_.is_open()) co_spawn(io_, accept(unix_acceptor_), asio::detached);
    co_spawn(io_, sweep(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
}

StreamServer::Implementation::~Implementation() {
    asio::post(io_, [this] {
        error_code ignored;
        acceptor_.close(ignored);
        unix_acceptor_.close(ignored);
        sweep_timer_.cancel();
        const auto all = clients_;
        for (const ClientPointer& client : all) {
            client->say_close(kGoingAway);
            client->close();
        }
        asio::post(io_, [this] { io_.stop(); });
    });
    thread_.join();
    clients_.clear();
    if (!options_.unix_socket.empty()) ::unlink(options_.unix_socket.c_str());
}

void StreamServer::Implementation::listen() {
    error_code error;
    const auto address = asio::ip::make_address(options_.address, error);
    if (error) throw ConfigError(fmt::format("{}: address: '{}' is no IP address; give e.g. 127.0.0.1, or 0.0.0.0 with a token", options_.owner, options_.address));
    if (!address.is_loopback() && options_.token.empty())
        throw ConfigError(fmt::format("{}: {} can be reached from other machines, and no token is set; give token_file, or listen on 127.0.0.1", options_.owner, options_.address));
    if (options_.allows_control && options_.token.empty()) throw ConfigError(fmt::format("{}: control needs a token; give token_file", options_.owner));
    const auto refuse = [&](const char* doing) {
        throw ConfigError(fmt::format("{}: cannot {} {} port {}: {}; give another port, or 0 for any that is free", options_.owner, doing, options_.address, options_.port, error.message()));
    };
    const asio::ip::tcp::endpoint endpoint(address, options_.port);
    acceptor_.open(endpoint.protocol(), error);
    if (error) refuse("open");
    acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    acceptor_.bind(endpoint, error);
    if (error) refuse("listen at");
    acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) refuse("listen at");
    port_ = acceptor_.local_endpoint().port();

    if (!options_.unix_socket.empty()) {
        remove_stale(options_.unix_socket);
        try {
            const asio::local::stream_protocol::endpoint place(options_.unix_socket.string());
            unix_acceptor_.open(place.protocol());
            // The file that bind() makes has the mode of the socket, less the umask, which is the whole process's.
            if (::fchmod(unix_acceptor_.native_handle(), S_IRUSR | S_IWUSR) != 0) throw boost::system::system_error(errno, boost::system::system_category());
            unix_acceptor_.bind(place);
            unix_acceptor_.listen();
        } catch (const boost::system::system_error& failed) {
            throw ConfigError(fmt::format("{}: unix_socket: {}: {}; give a path of at most {} bytes that is free", options_.owner, options_.unix_socket.string(), failed.code().message(), sizeof(sockaddr_un::sun_path) - 1));
        }
    }
    rules_ = {.hosts = {"localhost", "127.0.0.1", "[::1]"}, .origins = options_.origins, .token = options_.token, .needs_token_to_read = !address.is_loopback(), .allows_control = options_.allows_control};
    if (!address.is_unspecified()) rules_.hosts.push_back(address.is_v6() ? fmt::format("[{}]", address.to_string()) : address.to_string());
    for (const std::string& host : options_.hosts) {
        const auto name = host_name(host);
        if (!name || host.ends_with(':')) throw ConfigError(fmt::format("{}: hosts: '{}' is no host; give a name or an address, IPv6 in brackets", options_.owner, host));
        rules_.hosts.push_back(*name);
    }
}

std::string StreamServer::Implementation::url() const {
    const auto address = asio::ip::make_address(options_.address);
    return address.is_v6() ? fmt::format("http://[{}]:{}", options_.address, port_) : fmt::format("http://{}:{}", options_.address, port_);
}

template <class Acceptor>
asio::awaitable<void> StreamServer::Implementation::accept(Acceptor& acceptor) {
    while (acceptor.is_open()) {
        error_code error;
        auto socket = co_await acceptor.async_accept(asio::redirect_error(use_awaitable, error));
        if (error == asio::error::operation_aborted || !acceptor.is_open()) co_return;
        if (error) {  // descriptors have run out, or the client has gone already
            asio::steady_timer pause(io_, 50ms);
            co_await pause.async_wait(asio::redirect_error(use_awaitable, error));
            continue;
        }
        if (clients_.size() >= options_.max_clients) {
            ++turned_away_;
            continue;
        }
        socket.set_option(asio::socket_base::send_buffer_size(kSendBuffer), error);
        socket.set_option(asio::socket_base::keep_alive(true), error);  // no use to a Unix socket, and no harm
        std::string place = place_of(socket);
        auto client = std::make_shared<StreamClient>(asio::generic::stream_protocol::socket(std::move(socket)), std::move(place));
        clients_.insert(client);
        co_spawn(io_, serve(client), [this, client](std::exception_ptr) {  // whatever went wrong, it went wrong with this client
            client->close();
            clients_.erase(client);
        });
    }
}

asio::awaitable<void> StreamServer::Implementation::serve(ClientPointer client) {
    // Who begins as JSON does, or with an empty line, wants lines, and so does who says that it will say nothing, or says nothing for long; all else is HTTP.
    const auto readable = std::make_shared<bool>(false);
    co_spawn(io_, [](ClientPointer waiting, std::shared_ptr<bool> is_readable) -> asio::awaitable<void> {
        error_code ignored;
        co_await waiting->socket.async_wait(asio::socket_base::wait_read, asio::redirect_error(use_awaitable, ignored));
        *is_readable = true;
        waiting->news.cancel();
    }(client, readable), asio::detached);
    for (const auto until = ServerClock::now() + kSilence; !*readable && ServerClock::now() < until;) {
        error_code woken;
        client->news.expires_at(until);
        co_await client->news.async_wait(asio::redirect_error(use_awaitable, woken));
    }
    if (!client->socket.is_open()) co_return;
    error_code error;
    client->expires_in(options_.patience);
    if (client->socket.available(error) > 0) {
        const auto space = client->buffer.prepare(4096);
        client->buffer.commit(co_await client->socket.async_read_some(space, use_awaitable));
        const char first = *static_cast<const char*>(client->buffer.data().data());
        if (first != '{' && first != '\n') co_return co_await serve_http(client);
    }
    co_await serve_lines(client);
}

asio::awaitable<void> StreamServer::Implementation::sweep() {
    while (acceptor_.is_open()) {
        error_code stopped;
        sweep_timer_.expires_after(200ms);
        co_await sweep_timer_.async_wait(asio::redirect_error(use_awaitable, stopped));
        const auto now = ServerClock::now();
        const auto all = clients_;
        for (const ClientPointer& client : all) {
            if (client->deadline > now) continue;
            if (client->socket.is_open()) ++cut_off_;
            client->say_close(kPolicy);
            client->close();
        }
    }
}

void StreamServer::Implementation::begin(const std::string& run, int rank) {
    asio::post(io_, [this, run, rank] {
        runs_.begin(run, rank);
        beside_ = std::make_unique<MessageWriter>(StreamSource{run, rank});
    });
}

void StreamServer::Implementation::hand_over(std::string lines, std::function<void(const std::string&)> take) {
    {
        std::unique_lock lock(mutex_);
        taken_.wait(lock, [this] { return handed_over_ <= kMostHandedOver; });
        handed_over_ += lines.size();
    }
    asio::post(io_, [this, lines = std::move(lines), take = std::move(take)] {
        try {
            take(lines);
        } catch (const std::exception& error) {  // whatever a line holds, the server goes on
            warn(fmt::format("{}: a message cannot be shown: {}", options_.owner, error.what()));
        }
        const std::lock_guard lock(mutex_);
        handed_over_ -= lines.size();
        taken_.notify_all();
    });
}

void StreamServer::Implementation::publish(std::string lines) {
    hand_over(std::move(lines), [this](const std::string& taken) {
        runs_.add(taken);
        histories_.add(runs_.live().run(), taken);
        for (const ClientPointer& client : clients_) {
            client->has_all = client->transport != Transport::Lines && client->transport != Transport::ServerSent && client->transport != Transport::WebSocket;
            client->news.cancel();
        }
    });
}

void StreamServer::Implementation::show(std::string label, std::string run, int rank, std::string lines) {
    hand_over(std::move(lines), [this, label = std::move(label), run = std::move(run), rank](const std::string& taken) { runs_.add_recorded(label, run, rank, taken); });
}

bool StreamServer::Implementation::has_all() const {
    return std::ranges::all_of(clients_, [](const ClientPointer& client) { return client->has_all; });
}

void StreamServer::Implementation::drain(std::chrono::milliseconds at_most) {
    const auto end = ServerClock::now() + at_most;
    // Of what was published before, all is taken over when the first question is answered; from then on clients are given time.
    for (std::optional<ServerClock::time_point> began;;) {
        const auto answer = std::make_shared<std::promise<std::optional<ServerClock::time_point>>>();  // nobody may be there to hear it
        auto last_taken = answer->get_future();
        asio::post(io_, [this, answer] { answer->set_value(has_all() ? std::nullopt : std::optional(last_taken_)); });
        if (last_taken.wait_until(end) != std::future_status::ready) return;
        const auto taken = last_taken.get();
        const auto now = ServerClock::now();
        if (!began) began = now;
        if (!taken || now >= end || now - std::max(*taken, *began) >= kNoProgress) return;
        std::this_thread::sleep_for(5ms);
    }
}

StreamServer::StreamServer(StreamServerOptions options, std::function<void(const StreamCommand&)> control) : implementation_(std::make_unique<Implementation>(std::move(options), std::move(control))) {}
StreamServer::~StreamServer() = default;
bool StreamServer::has_dashboard() { return page_file("/") != nullptr; }
std::uint16_t StreamServer::port() const { return implementation_->port(); }
std::string StreamServer::url() const { return implementation_->url(); }
void StreamServer::begin(const std::string& run, int rank) { implementation_->begin(run, rank); }
void StreamServer::publish(std::string lines) { implementation_->publish(std::move(lines)); }
void StreamServer::show(std::string label, std::string run, int rank, std::string lines) { implementation_->show(std::move(label), std::move(run), rank, std::move(lines)); }
void StreamServer::drain(std::chrono::milliseconds at_most) { implementation_->drain(at_most); }

}  // namespace torchbus
