#include "access.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstddef>
#include <cstdint>

#include <fmt/format.h>

#include "../dashboard/page.hpp"

namespace torchbus {
namespace {

struct RouteEntry {
    std::string_view path, method;
    Route route;
    bool is_open;  ///< holds nothing of the run: a page's files, and whether somebody is there
};
constexpr std::array kRoutes = {
    RouteEntry{"/healthz", "GET", Route::Health, true},   RouteEntry{"/events", "GET", Route::Events, false},
    RouteEntry{"/state", "GET", Route::State, false},     RouteEntry{"/metrics", "GET", Route::Metrics, false},
    RouteEntry{"/schema", "GET", Route::Schema, false},   RouteEntry{"/control", "POST", Route::Control, false},
    RouteEntry{"/runs", "GET", Route::Runs, false},       RouteEntry{"/curves", "GET", Route::Curves, false},
};

/// A path is one of the table, letter by letter, or one of the page's files, or none of ours.
std::optional<RouteEntry> route_of(std::string_view path) {
    if (const auto known = std::ranges::find(kRoutes, path, &RouteEntry::path); known != kRoutes.end()) return *known;
    if (page_file(path)) return RouteEntry{path, "GET", Route::Page, true};
    return std::nullopt;
}

bool is_any_of(const std::vector<std::string>& known, std::string_view name) { return std::ranges::find(known, name) != known.end(); }

/// The token of `Bearer TOKEN`; nothing where it is something else.
std::optional<std::string_view> bearer_of(std::string_view authorization) {
    constexpr std::string_view kScheme = "bearer ";
    if (authorization.size() <= kScheme.size()) return std::nullopt;
    const auto is_same = [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; };
    if (!std::ranges::equal(authorization.substr(0, kScheme.size()), kScheme, is_same)) return std::nullopt;
    return authorization.substr(kScheme.size());
}

Verdict refusal(int status, std::string what) { return {.status = status, .what = std::move(what)}; }

}  // namespace

bool is_same_secret(std::string_view given, std::string_view expected) {
    volatile unsigned char difference = given.size() == expected.size() ? 0 : 1;
    for (std::size_t i = 0; i < given.size(); ++i)
        difference = static_cast<unsigned char>(difference | (static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(expected.empty() ? '\0' : expected[i % expected.size()])));
    return difference == 0 && !expected.empty();
}

std::optional<std::string> host_name(std::string_view host) {
    const bool is_bracketed = host.starts_with('[');
    const std::size_t end = is_bracketed ? host.find(']') : std::min(host.find(':'), host.size());
    if (end == std::string_view::npos || end == 0) return std::nullopt;
    const std::string_view name = host.substr(0, end + (is_bracketed ? 1 : 0)), rest = host.substr(name.size());
    if (!rest.empty()) {
        const std::string_view port = rest.substr(1);
        std::uint16_t number = 0;
        const auto [past, error] = std::from_chars(port.data(), port.data() + port.size(), number);
        if (rest.front() != ':' || error != std::errc() || past != port.data() + port.size()) return std::nullopt;
    }
    const auto is_of_name = [&](unsigned char c) { return std::isalnum(c) || c == '.' || c == '-' || c == '_' || (is_bracketed && (c == ':' || c == '[' || c == ']')); };
    if (!std::ranges::all_of(name, is_of_name)) return std::nullopt;
    std::string lower(name);
    std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return lower;
}

std::string_view methods_of(Route route) {
    if (route == Route::Control) return "POST";
    return route == Route::Events ? "GET" : "GET, HEAD";
}

Verdict judge(const AccessRules& rules, const RequestHead& request) {
    // Whoever calls us by another name was led here by a page of that name.
    if (request.hosts.size() != 1) return refusal(400, "give one Host header");
    const auto host = host_name(request.hosts.front());
    if (!host) return refusal(400, "the Host header is malformed");
    if (!is_any_of(rules.hosts, *host)) return refusal(421, "this server is not called so; add the name to `hosts` to allow it");

    // Nothing is decoded or resolved.
    const auto known = route_of(request.target.substr(0, request.target.find('?')));
    if (!known) return refusal(404, "there is nothing here; see /, /events, /state, /runs, /curves, /metrics, /healthz and /schema");
    const auto is_offered = [&](std::string_view method) { return method == known->method || (method == "HEAD" && known->method == "GET" && known->route != Route::Events); };
    const bool is_preflight = request.method == "OPTIONS" && request.origins.size() == 1 && is_offered(request.requested_method);
    if (!is_offered(request.method) && !is_preflight) return refusal(405, fmt::format("{} is asked for by {}", known->path, known->method));
    if (request.asks_for_upgrade && known->route != Route::Events) return refusal(400, "a WebSocket is served at /events");

    // A page of another origin is refused whatever it asks for; no Origin is a program, or a page of ours that reads.
    if (request.origins.size() > 1) return refusal(400, "give one Origin header");
    if (!request.origins.empty() && request.origins.front() != "http://" + std::string(request.hosts.front()) && !is_any_of(rules.origins, request.origins.front()))
        return refusal(403, "a page of this origin may not ask; add it to `origins` to allow it");

    Verdict verdict{.what = {}, .route = known->route};
    if (request.authorizations.size() > 1) return refusal(400, "give one Authorization header");
    if (!request.authorizations.empty()) {
        const auto given = bearer_of(request.authorizations.front());
        verdict.is_authorized = given && is_same_secret(*given, rules.token);
        if (!verdict.is_authorized && !known->is_open) return refusal(401, "the token is not the server's; send `Authorization: Bearer TOKEN`");
    }
    if (known->route == Route::Control && !rules.allows_control) return refusal(403, "control is not allowed here; start the server with `control`");
    if (is_preflight) return {.status = 204, .what = {}, .route = known->route};  // it says nothing of the run, and a browser sends no token with it
    const bool needs_token = known->route == Route::Control || (rules.needs_token_to_read && !known->is_open);
    // A browser's WebSocket cannot send the header; it gives the token in its first message, before it gets anything.
    if (needs_token && !verdict.is_authorized && !request.asks_for_upgrade) return refusal(401, "a token is needed; send `Authorization: Bearer TOKEN`");
    return verdict;
}

}  // namespace torchbus
