// What clients and recordings may hold.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <boost/asio/io_context.hpp>
#include <boost/beast/_experimental/test/stream.hpp>
#include <boost/beast/core/buffers_to_string.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/websocket.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/stream/stream_server.hpp>

#include "../../src/json_text.hpp"
#include "../../src/stream/query.hpp"
#include "../../src/stream/recording.hpp"
#include "../../src/stream/server/request_head.hpp"
#include "../../src/stream/shown_runs.hpp"
#include "../../src/stream/subscription.hpp"
#include "targets.hpp"

namespace torchbus::fuzz {
namespace {

namespace beast = boost::beast;

constexpr const char* kToken = "0123456789abcdef";
const AccessRules kRules = {.hosts = {"localhost", "127.0.0.1", "[::1]"}, .origins = {}, .token = kToken, .needs_token_to_read = true, .allows_control = true};

void demand(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::abort();
}

void check_subscription(const Subscription& wanted) {
    demand(wanted.events.size() <= 64 && wanted.fields.size() <= 64, "more was subscribed to than may be");
    demand(wanted.every.amount >= 0 && std::isfinite(wanted.every.amount), "an interval that is none was taken");
    demand(!wanted.key().empty(), "a subscription has no key");
}

/// The query of a request as the server takes it.
void ask(Route route, std::string_view query) {
    if (route == Route::Events) return check_subscription(subscription_from_query(query));
    if (route == Route::Curves) {
        const CurvesQuery wanted = curves_query(query);
        demand(!wanted.names.empty() && wanted.names.size() <= 64, "no curve, or more than may be, was asked for");
        demand(wanted.range.points >= 2 && wanted.range.points <= 4000, "an answer would have no end");
        for (const auto& limit : {wanted.range.from, wanted.range.to}) demand(!limit || std::isfinite(*limit), "a limit that is no number was taken");
    } else if (route == Route::State) {
        parse_query(query);
    }
}

/// A file that is nowhere.
class MemoryFile {
public:
    explicit MemoryFile(std::string_view bytes) : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
        demand(descriptor_ >= 0 && ::write(descriptor_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()), "no file in memory");
    }
    ~MemoryFile() { ::close(descriptor_); }
    MemoryFile(const MemoryFile&) = delete;
    MemoryFile& operator=(const MemoryFile&) = delete;
    std::string path() const { return fmt::format("/proc/self/fd/{}", descriptor_); }

private:
    int descriptor_;
};

}  // namespace

void request(std::string_view bytes) {
    beast::http::request_parser<beast::http::empty_body> parser;
    parser.header_limit(8U << 10);
    beast::error_code error;
    parser.put(boost::asio::buffer(bytes), error);
    if (error || !parser.is_header_done()) return;
    const RequestHead head = head_of(parser.get());
    const Verdict verdict = judge(kRules, head);
    demand((verdict.status == 200) == verdict.what.empty(), "a refusal says nothing, or what is allowed says why not");
    if (verdict.status == 200) {
        const auto name = head.hosts.size() == 1 ? host_name(head.hosts.front()) : std::nullopt;
        demand(name && std::ranges::find(kRules.hosts, *name) != kRules.hosts.end(), "a foreign host was let in");
        demand(verdict.route != Route::Control || verdict.is_authorized, "control without the token");
        demand(!verdict.is_authorized || bytes.find(kToken) != std::string_view::npos, "a token was taken for another");
    }
    if (!verdict.route) return;
    const std::size_t mark = head.target.find('?');
    try {
        ask(*verdict.route, mark == std::string_view::npos ? std::string_view() : head.target.substr(mark + 1));
    } catch (const ConfigError& refused) {
        demand(std::string_view(refused.what()).size() > 10, "the refusal says nothing");
    }
}

void subscription(std::string_view bytes) {
    try {
        check_subscription(subscription_from_json(json_of_text(std::string(bytes), "subscription"), "subscription"));
    } catch (const ConfigError& refused) {
        demand(std::string_view(refused.what()).size() > 10, "the refusal says nothing");
    }
}

void websocket_message(std::string_view bytes) {
    boost::asio::io_context io;
    beast::test::stream there(io);
    beast::websocket::stream<beast::test::stream> socket(io);
    there.connect(socket.next_layer());
    there.write_some(boost::asio::buffer(std::string_view("GET /events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n")));
    beast::error_code error;
    socket.read_message_max(64U << 10);
    socket.accept(error);
    demand(!error, "the hand-shake failed");
    there.write_some(boost::asio::buffer(bytes));
    there.close();
    while (!error) {
        beast::flat_buffer buffer;
        socket.read(buffer, error);
        if (!error) command(beast::buffers_to_string(buffer.data()));
    }
}

void command(std::string_view bytes) {
    try {
        const StreamCommand read = command_from_text(std::string(bytes));
        demand(!read.command.empty() || !read.token.empty(), "a command that says nothing was taken");
        demand(read.command != "change_option" || !(read.subscriber.empty() || read.option.empty() || read.value.is_null()), "a change of nothing was taken");
    } catch (const ConfigError& refused) {
        demand(std::string_view(refused.what()).starts_with("command: "), "the refusal does not say of what");
    }
}

void recording(std::string_view bytes) {
    const MemoryFile file(bytes);
    try {
        Recording recording(file.path());
        std::size_t taken = 0;
        while (const RecordedMessage* message = recording.next()) {
            taken += message->view().line.size() + 1;
            demand(message->data().is_object() && !message->name().empty(), "a message without a name or data was taken");
            message->numbers();
            message->seconds();
            message->view().position("step");
        }
        demand(taken <= bytes.size(), "more was read than there is");
    } catch (const DataError& refused) {
        demand(std::string_view(refused.what()).find(':') != std::string_view::npos, "the refusal does not say where");
    }
}

}  // namespace torchbus::fuzz
