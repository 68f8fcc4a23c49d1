#pragma once
/// One request and what becomes of it.

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <boost/beast/http.hpp>
#include <boost/beast/websocket/rfc6455.hpp>

#include "request_head.hpp"
#include "server.hpp"

namespace torchbus {

inline constexpr const char* kJsonType = "application/json";
std::string json_error(const std::string& what);

struct HttpExchange {
    using Request = boost::beast::http::request<boost::beast::http::string_body>;
    static constexpr std::uint32_t kHeaderLimit = 8U << 10;
    static constexpr std::uint64_t kBodyLimit = 64U << 10;

    HttpExchange(ClientPointer its_client, std::function<asio::awaitable<void>(std::string_view)> its_write) : client(std::move(its_client)), write(std::move(its_write)) {
        parser.header_limit(kHeaderLimit);
        parser.body_limit(kBodyLimit);
    }
    const HttpHead& head() const { return taken_head ? static_cast<const HttpHead&>(*taken_head) : parser.get(); }
    std::string_view header(boost::beast::http::field name) const;
    std::string last_event_id() const {
        const auto found = head().find("Last-Event-ID");
        return found == head().end() ? std::string() : std::string(found->value());
    }
    std::string_view path() const;
    std::string_view query() const;
    asio::awaitable<void> respond(int status, std::string type, std::string body);
    /// To a browser that asks what a page of another origin may send.
    asio::awaitable<void> respond_to_preflight();

    ClientPointer client;
    std::function<asio::awaitable<void>(std::string_view)> write;
    boost::beast::http::request_parser<boost::beast::http::empty_body> parser;
    std::optional<Request> taken_head;  ///< once the body was read
    Verdict verdict;
    bool keep_alive = false;
};

}  // namespace torchbus
