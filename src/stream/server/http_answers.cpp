// What is answered at once: files of the dashboard, runs, their curves, what Prometheus reads, and commands.
#include <algorithm>
#include <array>
#include <charconv>

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/process_memory.hpp>

#include "../dashboard/page.hpp"
#include "../query.hpp"
#include "http_exchange.hpp"

namespace torchbus {
namespace {

using asio::use_awaitable;
using boost::system::error_code;
namespace http = boost::beast::http;

/// Made when it is asked for first.
const std::string& schema_text() {
    static const std::string text = stream_schema().dump();
    return text;
}

}  // namespace

asio::awaitable<void> StreamServer::Implementation::answer(HttpExchange& exchange) {
    switch (*exchange.verdict.route) {
        case Route::State:
        case Route::Runs:
        case Route::Curves: {
            std::string refused, body;
            try {
                body = about_runs(*exchange.verdict.route, exchange.query());
            } catch (const Error& error) {
                refused = error.what();
            }
            if (refused.empty()) co_return co_await exchange.respond(200, kJsonType, body);
            co_return co_await exchange.respond(400, kJsonType, json_error(refused));
        }
        case Route::Health: co_return co_await exchange.respond(200, kJsonType, "{\"status\":\"ok\"}\n");
        case Route::Metrics: co_return co_await exchange.respond(200, "text/plain; version=0.0.4; charset=utf-8", metrics());
        case Route::Page: {
            const PageFile* file = page_file(exchange.path());
            co_return co_await exchange.respond(200, std::string(file->type), std::string(file->content));
        }
        case Route::Schema: co_return co_await exchange.respond(200, "application/schema+json", schema_text());
        case Route::Events:  // no single answer
        case Route::Control: break;
    }
    // What is asked for is read no earlier than it is known who asks.
    error_code error;
    const auto& client = exchange.client;
    const auto deadline = client->deadline;
    if (exchange.header(http::field::expect) == "100-continue") co_await exchange.write("HTTP/1.1 100 Continue\r\n\r\n");
    client->deadline = deadline;
    http::request_parser<http::string_body> whole(std::move(exchange.parser));
    co_await http::async_read(client->socket, client->buffer, whole, asio::redirect_error(use_awaitable, error));
    exchange.taken_head = whole.release();
    if (error) {
        exchange.keep_alive = false;
        const bool is_too_long = error == http::error::body_limit;
        co_return co_await exchange.respond(is_too_long ? 413 : 400, kJsonType, json_error(fmt::format("the body cannot be read: {}", error.message())));
    }
    client->answers.clear();
    obey(*client, exchange.taken_head->body());
    const std::string said = std::exchange(client->answers, {});
    co_await exchange.respond(said.find("\"accepted\":true") != std::string::npos ? 202 : 400, kJsonType, said);
}

std::string StreamServer::Implementation::about_runs(Route route, std::string_view query) {
    if (route == Route::Curves) return runs_.curves(curves_query(query));
    if (route == Route::Runs) return runs_.list(fmt::format("\"allows_control\":{},\"needs_token\":{}", rules_.allows_control, rules_.needs_token_to_read));
    std::string run = runs_.live().run();
    int rank = runs_.live().rank();
    for (const auto& [name, value] : parse_query(query)) {
        if (name == "run") run = value;
        else if (const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), rank); name == "rank" && error == std::errc() && end == value.data() + value.size()) continue;
        else throw ConfigError(fmt::format("query: '{}' is not known or no number; give run and rank, or nothing for the run under way", name));
    }
    const ShownRun* shown = runs_.find(run, rank);
    if (!shown) throw ConfigError(fmt::format("query: no run '{}' of rank {} is shown here; /runs lists them", run, rank));
    if (shown->is_live || shown->picture.run().empty()) return snapshot_line();
    std::string line;
    MessageWriter({run, rank}).append_beside(line, "snapshot", shown->picture.sequence(), shown->picture.snapshot(), std::chrono::system_clock::now());
    return line;
}

std::string StreamServer::Implementation::metrics() const {
    std::string out;
    append_help(out, "torchbus_clients", "gauge", "Clients that are connected.");
    constexpr std::array<std::pair<Transport, const char*>, 5> kNames = {
        {{Transport::Unknown, "unknown"}, {Transport::Http, "http"}, {Transport::Lines, "lines"}, {Transport::ServerSent, "server_sent"}, {Transport::WebSocket, "websocket"}}};
    for (const auto& [transport, name] : kNames) {
        const auto count = std::ranges::count_if(clients_, [&](const ClientPointer& client) { return client->transport == transport; });
        append_sample(out, "torchbus_clients", {{"transport", name}}, static_cast<double>(count));
    }
    append_help(out, "torchbus_clients_served_total", "counter", "Clients that ever asked for it.");
    for (const auto& [transport, name] : kNames)
        if (const auto found = served_.find(transport); found != served_.end()) append_sample(out, "torchbus_clients_served_total", {{"transport", name}}, static_cast<double>(found->second));
    append_help(out, "torchbus_clients_cut_off_total", "counter", "Clients that took too long.");
    append_sample(out, "torchbus_clients_cut_off_total", {}, static_cast<double>(cut_off_));
    append_help(out, "torchbus_clients_turned_away_total", "counter", "Clients that came when there were too many.");
    append_sample(out, "torchbus_clients_turned_away_total", {}, static_cast<double>(turned_away_));
    append_help(out, "process_resident_memory_bytes", "gauge", "Memory of the process.");
    append_sample(out, "process_resident_memory_bytes", {}, memory_of_process().resident_bytes);
    runs_.live().append_metrics(out);
    return out;
}

}  // namespace torchbus
