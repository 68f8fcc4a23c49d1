// WebSocket: a message is an event, or a command. It is told what it wants by the query, as Server-Sent Events are.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/buffers_to_string.hpp>
#include <boost/beast/websocket.hpp>

#include <torchbus/error.hpp>

#include "http_exchange.hpp"

namespace torchbus {
namespace {

using asio::use_awaitable;
using boost::system::error_code;
namespace websocket = boost::beast::websocket;
using Socket = websocket::stream<asio::generic::stream_protocol::socket&>;

constexpr std::size_t kLongestMessage = 64U << 10;

asio::awaitable<std::optional<std::string>> next_message(Socket& socket) {
    boost::beast::flat_buffer buffer;
    error_code error;
    co_await socket.async_read(buffer, asio::redirect_error(use_awaitable, error));
    if (error) co_return std::nullopt;
    co_return boost::beast::buffers_to_string(buffer.data());
}

asio::awaitable<void> close(StreamClient& client, Socket& socket, websocket::close_code code, std::string why) {
    error_code ignored;
    client.is_between_messages = false;
    co_await socket.async_close({code, why.substr(0, 120)}, asio::redirect_error(use_awaitable, ignored));
}

}  // namespace

asio::awaitable<void> StreamServer::Implementation::serve_websocket(HttpExchange& exchange) {
    const ClientPointer client = exchange.client;
    const std::string_view key = exchange.header(boost::beast::http::field::sec_websocket_key);
    if (key.size() != 24 || !key.ends_with("==")) {  // sixteen bytes
        exchange.keep_alive = false;
        co_return co_await exchange.respond(400, "application/json", "{\"error\":\"Sec-WebSocket-Key is not of sixteen bytes\"}\n");
    }
    client->transport = Transport::WebSocket;
    ++served_[Transport::WebSocket];
    const auto socket = std::make_shared<Socket>(client->socket);
    socket->read_message_max(kLongestMessage);
    socket->set_option(websocket::stream_base::timeout{.handshake_timeout = options_.patience, .idle_timeout = options_.idle, .keep_alive_pings = true});
    socket->set_option(websocket::stream_base::decorator([](websocket::response_type& response) { response.set(boost::beast::http::field::server, "torchbus"); }));
    const std::string query(exchange.query());
    client->expires_in(options_.patience);
    co_await socket->async_accept(exchange.parser.get(), use_awaitable);
    client->is_between_messages = true;

    std::optional<Subscription> wanted;
    std::string refusal;
    try {
        wanted = subscription_from_query(query);
    } catch (const Error& error) {
        refusal = error.what();
    }
    if (!wanted) co_return co_await close(*client, *socket, websocket::close_code::policy_error, refusal);
    if (rules_.needs_token_to_read && !client->is_authorized) {  // then its first message has the token
        const auto first = co_await next_message(*socket);
        try {
            client->is_authorized = first && is_same_secret(command_from_text(*first).token, rules_.token);
        } catch (const Error&) {  // then it is no token
        }
        if (!client->is_authorized) co_return co_await close(*client, *socket, websocket::close_code::policy_error, R"(a token is needed: give the header Authorization, or begin with {"token": "..."})");
    }
    auto place = place_for(*wanted, {});
    if (!place) co_return co_await close(*client, *socket, websocket::close_code::try_again_later, too_many_choices());
    client->never_expires();
    client->has_all = false;
    co_spawn(io_, [](Implementation* self, ClientPointer its_client, std::shared_ptr<Socket> its_socket) -> asio::awaitable<void> {
        while (auto message = co_await next_message(*its_socket)) self->obey(*its_client, *message);
        its_client->is_between_messages = false;
        co_await self->say_goodbye(its_client);
        its_client->close();
    }(this, client, socket), asio::detached);
    const Send send = [this, client, socket](std::string_view lines) -> asio::awaitable<void> {
        socket->text(true);
        for (std::size_t begin = 0; begin < lines.size();) {
            const std::size_t end = lines.find('\n', begin);
            client->expires_in(options_.stall);
            const bool is_open = std::exchange(client->is_between_messages, false);
            co_await socket->async_write(asio::buffer(lines.data() + begin, end - begin), use_awaitable);
            client->is_between_messages = is_open;
            begin = end + 1;
            note_taken();
        }
        client->never_expires();
    };
    co_await follow(client, std::move(*place), /*as_server_sent=*/false, send);
}

}  // namespace torchbus
