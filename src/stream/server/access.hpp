#pragma once
/// Who may ask for what. Nothing here knows a socket.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace torchbus {

struct AccessRules {
    std::vector<std::string> hosts;    ///< names by which the server may be called, in lower case, without a port; IPv6 in brackets
    std::vector<std::string> origins;  ///< of pages served by others that may ask, e.g. "https://board.example"
    std::string token;                 ///< empty: none
    bool needs_token_to_read = false;
    bool allows_control = false;
};

enum class Route { Page, Events, State, Runs, Curves, Metrics, Health, Schema, Control };

/// What a request says of itself before its body.
struct RequestHead {
    std::string_view method;
    std::string_view target;
    std::vector<std::string_view> hosts;    ///< every Host header
    std::vector<std::string_view> origins;  ///< every Origin header
    std::vector<std::string_view> authorizations;
    bool asks_for_upgrade = false;
    std::string_view requested_method = {};  ///< the only Access-Control-Request-Method header: what a browser asks for before it lets a page send it
};

/// 200, or 204 for a browser that asks what a page may send, or the status to refuse it with and the sentence to say.
struct Verdict {
    int status = 200;
    std::string what;
    std::optional<Route> route = {};
    bool is_authorized = false;  ///< the token was given
};

Verdict judge(const AccessRules& rules, const RequestHead& request);

/// By which it may be asked for: "GET, HEAD".
std::string_view methods_of(Route route);

/// Takes as long wherever they differ.
bool is_same_secret(std::string_view given, std::string_view expected);

/// The name of a Host header in lower case and without its port; nothing where it is malformed.
std::optional<std::string> host_name(std::string_view host);

}  // namespace torchbus
