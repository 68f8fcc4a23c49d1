#include <torchbus/stream/http_poster.hpp>

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <ctime>
#include <future>
#include <thread>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <fmt/format.h>

#include <torchbus/version.hpp>

namespace torchbus {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using PosterClock = std::chrono::steady_clock;
using Endpoints = std::vector<tcp::endpoint>;
using PosterRequest = http::request<http::string_body>;

constexpr std::chrono::milliseconds kGlance(50);  // how often it is seen whether the request was given up

/// "120" or "Fri, 27 Nov 2026 23:41:07 GMT".
std::optional<std::chrono::seconds> wait_of(std::string text) {
    std::int64_t seconds = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
    if (error == std::errc() && end == text.data() + text.size() && seconds >= 0) return std::chrono::seconds(seconds);
    std::tm parts{};
    if (const char* rest = ::strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &parts); !rest || *rest != '\0') return std::nullopt;
    return std::chrono::seconds(std::max<std::int64_t>(0, ::timegm(&parts) - std::time(nullptr)));
}

struct Resolved {
    Endpoints endpoints;
    std::string error;
};

/// A resolver that gets no answer cannot be called back: it is left behind with what it writes to.
std::future<Resolved> resolving(const std::string& host, const std::string& port) {
    auto promise = std::make_shared<std::promise<Resolved>>();
    auto future = promise->get_future();
    std::thread([promise, host, port] {
        Resolved resolved;
        try {
            asio::io_context context;
            tcp::resolver resolver(context);
            for (const auto& entry : resolver.resolve(host, port)) resolved.endpoints.push_back(entry.endpoint());
        } catch (const std::exception& failure) {
            resolved.error = failure.what();
        }
        promise->set_value(std::move(resolved));
    }).detach();
    return future;
}

}  // namespace

struct HttpPoster::State {
    HttpPosterOptions options;
    std::atomic<bool> is_cancelled = false;
    asio::io_context context;
    tcp::socket socket{context};
    boost::beast::flat_buffer buffer;
    PosterClock::time_point deadline;
    bool is_kept = false;  ///< the connection serves another request

    explicit State(HttpPosterOptions its_options) : options(std::move(its_options)) {}

    HttpAnswer exchange(http::verb verb, std::string_view target, std::string_view type, std::string body) {
        HttpAnswer answer;
        if (!is_cancelled) {
            PosterRequest request(verb, boost::beast::string_view(target.data(), target.size()), 11);
            fill(request, type, std::move(body));
            ask(request, answer);
        }
        answer.is_given_up = is_cancelled && (answer.status == 0 || !answer.error.empty());
        if (answer.is_given_up) answer.error = "the request was given up";
        return answer;
    }
    void ask(PosterRequest& request, HttpAnswer& answer) {
        deadline = PosterClock::now() + options.connect_limit;
        Endpoints endpoints;
        if (!has_connection()) {
            close();
            endpoints = find_receiver(answer.error);
            if (endpoints.empty()) return;
        }
        perform(request, endpoints, answer);
    }
    void fill(PosterRequest& request, std::string_view type, std::string body) const {
        const std::string_view host = std::string_view(options.url.place).substr(std::string_view("http://").size());
        request.set(http::field::host, boost::beast::string_view(host.data(), host.size()));
        request.set(http::field::user_agent, fmt::format("torchbus/{}", kVersion));
        for (const auto& [name, value] : options.headers) request.set(name, value);
        if (!type.empty()) request.set(http::field::content_type, boost::beast::string_view(type.data(), type.size()));
        request.body() = std::move(body);
        request.prepare_payload();
    }
    /// Whether it is open, and the other side has not closed it while it was not used.
    bool has_connection() {
        if (!is_kept || !socket.is_open()) return false;
        char byte;
        return ::recv(socket.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    }
    Endpoints find_receiver(std::string& error) const {
        boost::system::error_code is_a_name;
        const auto address = asio::ip::make_address(options.url.host, is_a_name);
        if (!is_a_name) return {tcp::endpoint(address, static_cast<std::uint16_t>(std::stoi(options.url.port)))};
        auto resolved = resolving(options.url.host, options.url.port);
        while (resolved.wait_for(kGlance) != std::future_status::ready) {
            if (!is_cancelled && PosterClock::now() < deadline) continue;
            error = fmt::format("the name {} was not resolved in time", options.url.host);
            return {};
        }
        Resolved found = resolved.get();
        error = found.error.empty() && found.endpoints.empty() ? "the name has no address" : found.error;
        return found.endpoints;
    }
    void perform(PosterRequest& request, const Endpoints& endpoints, HttpAnswer& answer) {
        bool is_done = false;
        std::exception_ptr failure;
        context.restart();
        asio::co_spawn(context, talk(request, endpoints, answer), [&](std::exception_ptr what) {
            failure = what;
            is_done = true;
        });
        while (!is_done && !is_cancelled && PosterClock::now() < deadline) context.run_one_for(kGlance);
        const bool was_cut_off = !is_done;
        while (!is_done) {  // closed anew each time: what has not begun yet opens the socket
            close();
            context.run_one_for(kGlance);
        }
        if (failure) answer.error = was_cut_off ? "there was no answer in time" : message_of(failure);
        if (failure || !is_kept) close();
    }
    static std::string message_of(const std::exception_ptr& failure) {
        try {
            std::rethrow_exception(failure);
        } catch (const boost::system::system_error& error) {
            return error.code().message();
        } catch (const std::exception& error) {
            return error.what();
        }
    }
    asio::awaitable<void> talk(PosterRequest& request, const Endpoints& endpoints, HttpAnswer& answer) {
        if (!endpoints.empty()) {
            co_await asio::async_connect(socket, endpoints, asio::use_awaitable);
            socket.set_option(tcp::no_delay(true));
        }
        is_kept = false;
        deadline = PosterClock::now() + options.limit;
        co_await http::async_write(socket, request, asio::use_awaitable);
        co_await read(answer);
    }
    asio::awaitable<void> read(HttpAnswer& answer) {
        for (;;) {
            http::response_parser<http::string_body> parser;
            parser.body_limit(options.max_answer_bytes);
            boost::system::error_code failure;
            co_await http::async_read_header(socket, buffer, parser, asio::redirect_error(asio::use_awaitable, failure));
            if (failure && failure != http::error::body_limit) throw boost::system::system_error(failure);
            const int status = static_cast<int>(parser.get().result_int());
            if (status >= 100 && status < 200) continue;
            if (const auto wait = parser.get().find(http::field::retry_after); wait != parser.get().end()) answer.retry_after = wait_of(std::string(wait->value()));
            answer.status = status;
            if (failure) co_return;  // the receipt is what counts
            co_await http::async_read(socket, buffer, parser, asio::use_awaitable);
            answer.body = std::move(parser.get().body());
            is_kept = parser.get().keep_alive() && buffer.size() == 0;  // nobody asked for what comes behind it
            co_return;
        }
    }
    void close() {
        boost::system::error_code ignored;
        socket.close(ignored);
        buffer.clear();
        is_kept = false;
    }
};

HttpPoster::HttpPoster(HttpPosterOptions options) : state_(std::make_unique<State>(std::move(options))) {}
HttpPoster::~HttpPoster() = default;

HttpAnswer HttpPoster::post(std::string_view target, std::string_view type, std::string body) { return state_->exchange(http::verb::post, target, type, std::move(body)); }
HttpAnswer HttpPoster::get(std::string_view target) { return state_->exchange(http::verb::get, target, {}, {}); }
void HttpPoster::cancel() { state_->is_cancelled = true; }
const HttpUrl& HttpPoster::url() const { return state_->options.url; }

}  // namespace torchbus
