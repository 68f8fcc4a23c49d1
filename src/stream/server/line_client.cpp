// Lines of JSON over TCP or a Unix socket. The first line a client sends may say what it wants; each one later is a command.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/events_json.hpp>

#include "../../json_text.hpp"
#include "server.hpp"

namespace torchbus {
namespace {

using asio::use_awaitable;
using boost::system::error_code;
using nlohmann::json;

constexpr std::size_t kLongestLine = 64U << 10;

/// The next line without its line break; nothing once there is none, or it is too long.
asio::awaitable<std::optional<std::string>> next_line(StreamClient& client) {
    error_code error;
    auto bytes = asio::dynamic_buffer(client.line, kLongestLine);
    const std::size_t length = co_await asio::async_read_until(client.socket, bytes, '\n', asio::redirect_error(use_awaitable, error));
    if (error) co_return std::nullopt;
    std::string line = client.line.substr(0, length - 1);
    client.line.erase(0, length);
    if (line.ends_with('\r')) line.pop_back();
    co_return line;
}

/// Takes the token out of what was said, if there is one.
std::optional<std::string> taken_token(json& said) {
    if (!said.is_object() || !said.contains("token")) return std::nullopt;
    std::string token = said["token"].is_string() ? said["token"].get<std::string>() : "";
    said.erase("token");
    return token;
}

}  // namespace

asio::awaitable<void> StreamServer::Implementation::serve_lines(ClientPointer client) {
    client->transport = Transport::Lines;
    client->has_all = false;
    ++served_[Transport::Lines];
    const auto said = client->buffer.data();
    client->line.assign(static_cast<const char*>(said.data()), said.size());
    client->buffer.consume(said.size());
    Subscription wanted;
    std::string refusal;
    if (!client->line.empty()) {
        const auto first = co_await next_line(*client);
        if (!first) co_return;
        try {
            json request = first->empty() ? json::object() : json_of_text(*first, "subscription", Quotes::Nothing);
            const auto token = taken_token(request);
            client->is_authorized = token && is_same_secret(*token, rules_.token);
            if (token && !client->is_authorized) throw ConfigError("subscription: the token is not the server's");
            wanted = subscription_from_json(request, "subscription");
        } catch (const Error& error) {
            refusal = error.what();
        }
    }
    if (refusal.empty() && rules_.needs_token_to_read && !client->is_authorized) refusal = R"(a token is needed; begin with a line {"token": "..."})";
    std::optional<StreamPlace> place;
    if (refusal.empty()) {
        place = place_for(wanted, {});
        if (!place) refusal = too_many_choices();
    }
    if (!refusal.empty()) {
        std::string line = "{\"error\":";
        append_json_text(line, refusal);
        co_return co_await write(*client, line + "}\n");
    }
    client->never_expires();
    co_spawn(io_, read_lines(client), asio::detached);
    const Send send = [this, client](std::string_view bytes) { return write(*client, bytes); };
    co_await follow(client, std::move(*place), /*as_server_sent=*/false, send);
}

asio::awaitable<void> StreamServer::Implementation::read_lines(ClientPointer client) {
    // Who has said all it had to say may go on listening: that it has gone is seen when it is written to.
    while (const auto line = co_await next_line(*client))
        if (!line->empty()) obey(*client, *line);
    if (client->line.size() >= kLongestLine) client->close();
}

}  // namespace torchbus
