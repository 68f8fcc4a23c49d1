// HTTP/1.1: one answer, or a stream that lasts.
#include "http_exchange.hpp"

#include <algorithm>
#include <array>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using asio::use_awaitable;
using boost::system::error_code;
namespace beast = boost::beast;
namespace http = beast::http;

constexpr auto kGoodbye = std::chrono::seconds(2);

std::string status_line(int status) { return fmt::format("HTTP/1.1 {} {}\r\n", status, std::string(http::obsolete_reason(http::int_to_status(static_cast<unsigned>(status))))); }

constexpr std::string_view kHeaders =
    "Server: torchbus\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\nCache-Control: no-store\r\n";
/// The page takes all it needs from here, and nothing in its markup runs; what is no page loads nothing.
constexpr std::string_view kPagePolicy =
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n";
constexpr std::string_view kDataPolicy = "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n";

/// Reads what a client still sends, and forgets it, until the client has gone or has sent so many bytes.
asio::awaitable<void> read_until_gone(StreamClient& client, std::size_t most) {
    std::array<char, 4096> ignored_bytes;
    error_code gone;
    for (std::size_t taken = 0; !gone && taken < most;) taken += co_await client.socket.async_read_some(asio::buffer(ignored_bytes), asio::redirect_error(use_awaitable, gone));
}

}  // namespace

std::string_view HttpExchange::header(http::field name) const {
    const auto found = head().find(name);
    return found == head().end() ? std::string_view() : std::string_view(found->value().data(), found->value().size());
}

std::string json_error(const std::string& what) { return nlohmann::json{{"error", what}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"; }

std::string_view HttpExchange::path() const {
    const std::string_view target(head().target().data(), head().target().size());
    return target.substr(0, target.find('?'));
}

std::string_view HttpExchange::query() const {
    const std::string_view target(head().target().data(), head().target().size());
    const std::size_t mark = target.find('?');
    return mark == std::string_view::npos ? std::string_view() : target.substr(mark + 1);
}

std::string origin_header(const HttpExchange& exchange) {
    const std::string_view origin = exchange.header(http::field::origin);
    return origin.empty() ? "" : fmt::format("Access-Control-Allow-Origin: {}\r\nVary: Origin\r\n", origin);
}

asio::awaitable<void> HttpExchange::respond(int its_status, std::string type, std::string body) {
    std::string out = status_line(its_status);
    out += kHeaders;
    out += its_status == 200 && verdict.route == Route::Page ? kPagePolicy : kDataPolicy;
    if (its_status < 400) out += origin_header(*this);
    if (its_status == 401) out += "WWW-Authenticate: Bearer\r\n";
    fmt::format_to(std::back_inserter(out), "Content-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n", type, body.size(), keep_alive ? "keep-alive" : "close");
    if (head().method() != http::verb::head) out += body;
    co_await write(out);
}

asio::awaitable<void> HttpExchange::respond_to_preflight() {
    std::string out = status_line(204);
    out += kHeaders;
    out += kDataPolicy;
    out += origin_header(*this);
    fmt::format_to(std::back_inserter(out), "Access-Control-Allow-Methods: {}\r\nAccess-Control-Allow-Headers: authorization, last-event-id, content-type\r\nConnection: {}\r\n\r\n", methods_of(*verdict.route), keep_alive ? "keep-alive" : "close");
    co_await write(out);
}

asio::awaitable<void> StreamServer::Implementation::serve_http(ClientPointer client) {
    client->transport = Transport::Http;
    ++served_[Transport::Http];
    for (bool keep_alive = true; keep_alive;) {
        HttpExchange exchange(client, [this, client](std::string_view bytes) { return write(*client, bytes); });
        error_code error;
        if (client->buffer.size() == 0) co_await client->socket.async_wait(asio::socket_base::wait_read, asio::redirect_error(use_awaitable, error));
        client->expires_in(options_.patience);
        co_await http::async_read_header(client->socket, client->buffer, exchange.parser, asio::redirect_error(use_awaitable, error));
        if (error == http::error::end_of_stream || error == asio::error::operation_aborted || error == http::error::partial_message || error == asio::error::connection_reset) co_return;
        if (error) {
            exchange.keep_alive = false;
            const bool is_too_long = error == http::error::header_limit || error == http::error::buffer_overflow;
            const int status = is_too_long ? 431 : error == http::error::body_limit ? 413 : 400;
            co_await exchange.respond(status, kJsonType, json_error(fmt::format("the request is malformed or too long: {}", error.message())));
            break;
        }
        exchange.verdict = judge(rules_, head_of(exchange.head()));
        const bool is_preflight = exchange.verdict.status == 204;
        exchange.keep_alive = exchange.parser.keep_alive() && (exchange.verdict.status == 200 || (is_preflight && exchange.parser.is_done()));
        client->is_authorized = exchange.verdict.is_authorized;
        if (is_preflight) co_await exchange.respond_to_preflight();
        else if (exchange.verdict.status != 200) co_await exchange.respond(exchange.verdict.status, kJsonType, json_error(exchange.verdict.what));
        else if (beast::websocket::is_upgrade(exchange.head())) co_return co_await serve_websocket(exchange);
        else if (exchange.verdict.route == Route::Events) co_return co_await serve_stream(exchange);
        else co_await answer(exchange);
        keep_alive = exchange.keep_alive;
        client->expires_in(options_.idle);
    }
    co_await say_goodbye(client);
}

/// What a client has still sent is read, for a while: to close before would take back what it was told.
asio::awaitable<void> StreamServer::Implementation::say_goodbye(ClientPointer client) {
    error_code gone;
    client->expires_in(kGoodbye);
    client->socket.shutdown(asio::socket_base::shutdown_send, gone);
    co_await read_until_gone(*client, 1U << 20);
}

asio::awaitable<void> StreamServer::Implementation::serve_stream(HttpExchange& exchange) {
    const ClientPointer client = exchange.client;
    const bool as_lines = exchange.header(http::field::accept).find("application/x-ndjson") != std::string_view::npos;
    Subscription wanted;
    std::string refusal;
    try {
        wanted = subscription_from_query(exchange.query());
    } catch (const Error& error) {
        refusal = error.what();
    }
    exchange.keep_alive = false;
    if (!refusal.empty()) co_return co_await exchange.respond(400, kJsonType, json_error(refusal));
    auto place = place_for(wanted, exchange.last_event_id());
    if (!place) co_return co_await exchange.respond(503, kJsonType, json_error(too_many_choices()));
    client->transport = as_lines ? Transport::Lines : Transport::ServerSent;
    client->has_all = false;
    ++served_[client->transport];
    std::string out = status_line(200);
    out += kHeaders;
    out += kDataPolicy;
    out += origin_header(exchange);
    fmt::format_to(std::back_inserter(out), "Content-Type: {}\r\nConnection: close\r\n\r\n", as_lines ? "application/x-ndjson" : "text/event-stream; charset=utf-8");
    co_await write(*client, out);
    co_spawn(io_, await_goodbye(client), asio::detached);
    const Send send = [this, client](std::string_view bytes) { return write(*client, bytes); };
    co_await follow(client, std::move(*place), !as_lines, send);
}

asio::awaitable<void> StreamServer::Implementation::await_goodbye(ClientPointer client) {
    co_await read_until_gone(*client, 64U << 10);
    client->close();
}

}  // namespace torchbus
