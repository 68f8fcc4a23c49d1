#include "request_head.hpp"

#include <boost/beast/websocket/rfc6455.hpp>

namespace torchbus {
namespace {

namespace http = boost::beast::http;

std::vector<std::string_view> values_of(const HttpHead& request, http::field name) {
    std::vector<std::string_view> values;
    const auto [begin, end] = request.equal_range(name);
    for (auto field = begin; field != end; ++field) values.emplace_back(field->value().data(), field->value().size());
    return values;
}

}  // namespace

RequestHead head_of(const HttpHead& request) {
    const auto requested = values_of(request, http::field::access_control_request_method);
    return {.method = {request.method_string().data(), request.method_string().size()}, .target = {request.target().data(), request.target().size()}, .hosts = values_of(request, http::field::host),
            .origins = values_of(request, http::field::origin), .authorizations = values_of(request, http::field::authorization), .asks_for_upgrade = boost::beast::websocket::is_upgrade(request),
            .requested_method = requested.size() == 1 ? requested.front() : std::string_view()};
}

}  // namespace torchbus
