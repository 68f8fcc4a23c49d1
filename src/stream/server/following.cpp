// How a client is given the stream, whatever it came by.
#include <algorithm>

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/events_json.hpp>

#include "server.hpp"

namespace torchbus {
namespace {

using asio::use_awaitable;
using boost::system::error_code;

constexpr std::size_t kMostAnswers = 16U << 10;  // bytes: who asks without reading is not read any more

/// The messages of a chunk behind one of them.
Chunk rest_of(const Chunk& chunk, std::int64_t sequence) {
    Chunk rest;
    rest.run = chunk.run;
    rest.last = chunk.last;
    for_each_line(chunk.lines, [&](std::string_view line) {
        if (const auto message = view_of(line); message && message->sequence > sequence) rest.lines += line;
    });
    return rest;
}

}  // namespace

asio::awaitable<void> StreamServer::Implementation::write(StreamClient& client, std::string_view bytes) {
    client.expires_in(options_.stall);
    co_await asio::async_write(client.socket, asio::buffer(bytes.data(), bytes.size()), use_awaitable);
    client.never_expires();
    note_taken();
}

std::string StreamServer::Implementation::too_many_choices() const {
    return fmt::format("{} different choices of messages are served already; want what another client wants, or all, or come back later", histories_.most_chosen());
}

std::optional<StreamPlace> StreamServer::Implementation::place_for(const Subscription& wanted, std::string_view last_id) {
    StreamPlace place{.history = histories_.of(wanted), .run = {}};
    if (!place.history) return std::nullopt;
    if (wanted.from_now) {
        place.next = place.history->next_number();
        place.run = runs_.live().run();
        place.sequence = runs_.live().sequence();
        return place;
    }
    // "RUN:17", the last message that it had. One of another run is of a server before this one.
    const std::size_t colon = last_id.rfind(':');
    if (colon != std::string_view::npos) {
        place.run = last_id.substr(0, colon);
        for (const char digit : last_id.substr(colon + 1, 18))
            if (digit >= '0' && digit <= '9') place.sequence = place.sequence * 10 + (digit - '0');
        place.next = place.history->number_behind(place.run, place.sequence);
    }
    const History::Message& gone = place.history->last_gone();
    const bool has_missed = gone.run == place.run ? gone.sequence > place.sequence : gone.sequence > 0 && !place.history->has_messages_of(place.run);
    if (has_missed) place.next = -1;  // it is before all that is kept, so a gap is told
    return place;
}

std::string StreamServer::Implementation::snapshot_line() {
    std::string line;
    beside_->append_beside(line, "snapshot", runs_.live().sequence(), runs_.live().snapshot(), std::chrono::system_clock::now());
    return line;
}

std::string StreamServer::Implementation::gap_line(const StreamPlace& place, const Chunk& next) {
    std::string line;
    const History::Message& gone = place.history->last_gone();
    const std::int64_t first = place.run == gone.run ? place.sequence + 1 : 1;
    if (next.number <= place.next || gone.sequence < first) return line;
    MessageWriter({gone.run, runs_.live().rank()}).append_gap(line, first, gone.sequence, std::chrono::system_clock::now());
    return line;
}

asio::awaitable<void> StreamServer::Implementation::follow(ClientPointer client, StreamPlace place, bool as_server_sent, Send send) {
    const auto encoded = [&](const std::string& line) {
        return as_server_sent ? fmt::format("data: {}\n", line) : line;  // without an id, which is the place to go on from
    };
    co_await send(encoded(snapshot_line()));
    while (client->socket.is_open()) {
        while (!client->answers.empty()) co_await send(encoded(std::exchange(client->answers, {})));
        const ChunkPointer chunk = place.history->at(place.next);
        if (!chunk) {
            client->has_all = true;
            error_code woken;
            client->news.expires_at(ServerClock::time_point::max());
            co_await client->news.async_wait(asio::redirect_error(use_awaitable, woken));
            continue;
        }
        if (const std::string gap = gap_line(place, *chunk); !gap.empty()) co_await send(encoded(gap));
        const bool is_part_known = chunk->run == place.run && chunk->first <= place.sequence;
        const Chunk rest = is_part_known ? rest_of(*chunk, place.sequence) : Chunk{};
        const Chunk& next = is_part_known ? rest : *chunk;
        place.next = chunk->number + 1;
        place.run = chunk->run;
        place.sequence = chunk->last;
        if (next.lines.empty()) continue;
        if (as_server_sent) {
            const auto text = next.server_sent();
            co_await send(*text);
        } else {
            co_await send(next.lines);
        }
    }
}

void StreamServer::Implementation::obey(StreamClient& client, const std::string& text) {
    std::string error;
    try {
        if (client.answers.size() > kMostAnswers) return client.close();
        StreamCommand command = command_from_text(text);
        if (!command.token.empty()) client.is_authorized = is_same_secret(command.token, rules_.token);
        if (command.command.empty() && client.is_authorized) return;
        if (!rules_.allows_control) throw ConfigError("control is not allowed here; start the server with `control`");
        if (!client.is_authorized) throw ConfigError("control needs the token; give it as `token`, or when the WebSocket is opened");
        command.requester = command.requester.empty() ? client.place : fmt::format("{} at {}", command.requester, client.place);
        control_(command);
    } catch (const Error& refused) {
        error = refused.what();
    }
    std::string data = fmt::format("{{\"accepted\":{}", error.empty());
    if (!error.empty()) {
        data += ",\"error\":";
        append_json_text(data, error);
    }
    beside_->append_beside(client.answers, "answer", runs_.live().sequence(), data + "}", std::chrono::system_clock::now());
    client.news.cancel();
}

}  // namespace torchbus
