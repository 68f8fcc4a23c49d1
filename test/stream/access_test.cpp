// Who may ask for what: every row is a request and the answer it gets. Rows of one block differ in what the block is named for.
#include <iostream>
#include <string>
#include <vector>

#include "../../src/stream/dashboard/page.hpp"
#include "../../src/stream/server/access.hpp"

#include "support/catch.hpp"

using namespace torchbus;

namespace {

constexpr const char* kToken = "0123456789abcdef0123456789abcdef";

struct Row {
    int status;
    const char* method;
    const char* target;
    std::vector<std::string_view> hosts = {"localhost:8080"};
    std::vector<std::string_view> origins = {};
    std::vector<std::string_view> authorizations = {};
    bool upgrade = false;
    std::string_view requested_method = {};
};

AccessRules loopback() { return {.hosts = {"localhost", "127.0.0.1", "[::1]", "board.example"}, .origins = {"https://pages.example"}, .token = kToken, .needs_token_to_read = false, .allows_control = true}; }

void check(const AccessRules& rules, const std::vector<Row>& rows) {
    for (const Row& row : rows) {
        const Verdict verdict = judge(rules, {row.method, row.target, row.hosts, row.origins, row.authorizations, row.upgrade, row.requested_method});
        INFO(row.method << ' ' << row.target << " Host: " << (row.hosts.empty() ? "" : row.hosts.front()) << " Origin: " << (row.origins.empty() ? "" : row.origins.front()) << " → " << verdict.what);
        CHECK(verdict.status == row.status);
        CHECK(verdict.route.has_value() == (row.status < 300));
        CHECK(verdict.what.empty() == (row.status < 300));
        CHECK((row.status == 200 || !verdict.is_authorized));
        CHECK(verdict.what.find(kToken) == std::string::npos);
    }
}

const std::string kBearer = std::string("Bearer ") + kToken;

}  // namespace

TEST_CASE("a server answers to its own names only, before it looks at what is asked for", "[stream][access]") {
    check(loopback(), {
        {200, "GET", "/events", {"localhost"}},
        {200, "GET", "/events", {"localhost:8080"}},
        {200, "GET", "/events", {"LOCALHOST:8080"}},
        {200, "GET", "/events", {"127.0.0.1:1"}},         // a tunnel has another port
        {200, "GET", "/events", {"[::1]:8080"}},
        {200, "GET", "/events", {"board.example"}},
        {421, "GET", "/events", {"evil.example"}},
        {421, "GET", "/nothing", {"evil.example"}},         // nor does it say what there is
        {421, "POST", "/control", {"evil.example"}, {}, {kBearer}},
        {421, "GET", "/events", {"localhost.evil.example"}},
        {421, "GET", "/events", {"evil.example.localhost"}},
        {421, "GET", "/events", {"localhost."}},            // the same host to DNS, another one to a browser's rules
        {421, "GET", "/events", {"127.0.0.1.:8080"}},
        {421, "GET", "/events", {"127.1"}},
        {421, "GET", "/events", {"2130706433"}},            // 127.0.0.1 as one number
        {421, "GET", "/events", {"0x7f.0.0.1"}},
        {421, "GET", "/events", {"0.0.0.0:8080"}},
        {421, "GET", "/events", {"[::ffff:127.0.0.1]"}},
        {421, "GET", "/events", {"[0:0:0:0:0:0:0:1]"}},
        {421, "GET", "/events", {"[::ffff:7f00:1]"}},
        {421, "GET", "/events", {"0177.0.0.1"}},
        {421, "GET", "/events", {"127.000.000.001"}},
        {400, "GET", "/events", {"[::1%25lo]"}},
        {400, "GET", "/events", {"localhost,localhost"}},
        {400, "GET", "/events", {"[::1"}},
        {400, "GET", "/events", {"[::1]x"}},
        {400, "GET", "/events", {"[::1%eth0]"}},
        {400, "GET", "/events", {"localhost:"}},
        {400, "GET", "/events", {"localhost:80:80"}},
        {400, "GET", "/events", {"localhost:http"}},
        {400, "GET", "/events", {"localhost:123456"}},
        {400, "GET", "/events", {"localhost:-1"}},
        {400, "GET", "/events", {"user@localhost"}},
        {400, "GET", "/events", {"localhost/"}},
        {400, "GET", "/events", {"local host"}},
        {400, "GET", "/events", {"localhost\t"}},
        {400, "GET", "/events", {""}},
        {400, "GET", "/events", {":8080"}},
        {400, "GET", "/events", {}},
        {400, "GET", "/events", {"localhost", "evil.example"}},
        {400, "GET", "/events", {"localhost", "localhost"}},
    });
}

TEST_CASE("a path is one of the table, letter by letter", "[stream][access]") {
    check(loopback(), {
        {200, "GET", "/healthz"}, {200, "GET", "/metrics"}, {200, "GET", "/state"}, {200, "GET", "/schema"}, {200, "HEAD", "/healthz"},
        {200, "GET", "/runs"}, {200, "GET", "/curves?names=train.loss"}, {404, "GET", "/curves/"}, {405, "POST", "/curves"}, {405, "PUT", "/runs"}, {404, "GET", "/runs/../runs"},
        {200, "GET", "/events?events=eval_*&every=100step"},
        {200, "GET", "/metrics?"},
        {404, "GET", ""}, {404, "GET", "*"}, {404, "GET", "//events"}, {404, "GET", "/events/"}, {404, "GET", "/Events"},
        {404, "GET", "/./events"}, {404, "GET", "/x/../events"}, {404, "GET", "/../events"}, {404, "GET", "/..%2fevents"},
        {404, "GET", "/%65vents"}, {404, "GET", "/events%00"}, {404, "GET", "/events%2f"}, {404, "GET", "/%2e/events"},
        {404, "GET", "/events;x=1"}, {404, "GET", "/events#x"}, {404, "GET", "\\events"}, {404, "GET", "/events\\"},
        {404, "GET", "http://localhost:8080/events"}, {404, "GET", "http://evil.example/events"}, {404, "GET", "localhost:8080"},
        {404, "POST", "/%63ontrol", {"localhost"}, {}, {kBearer}}, {404, "POST", "//control", {"localhost"}, {}, {kBearer}},
        {404, "POST", "/control/", {"localhost"}, {}, {kBearer}}, {404, "POST", "/healthz/../control", {"localhost"}, {}, {kBearer}},
        {405, "POST", "/events"}, {405, "HEAD", "/events"}, {405, "PUT", "/metrics"}, {405, "get", "/metrics"}, {405, "OPTIONS", "/control"},
        {405, "GET", "/control", {"localhost"}, {}, {kBearer}}, {405, "CONNECT", "/events"}, {405, "TRACE", "/events"}, {405, "DELETE", "/state"},
        {400, "GET", "/metrics", {"localhost"}, {}, {}, /*upgrade=*/true},
    });
}

TEST_CASE("a page of another origin may not ask, whatever it asks for", "[stream][access]") {
    for (const bool upgrade : {false, true})
        check(loopback(), {
            {200, "GET", "/events", {"localhost:8080"}, {"http://localhost:8080"}, {}, upgrade},
            {200, "GET", "/events", {"localhost:8080"}, {"https://pages.example"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"http://localhost"}, {}, upgrade},       // another server of this machine
            {403, "GET", "/events", {"localhost:8080"}, {"http://localhost:9090"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"https://localhost:8080"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"http://127.0.0.1:8080"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"http://evil.example"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"http://localhost:8080.evil.example"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"http://localhost:8080/"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"http://localhost.:8080"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"http://LOCALHOST:8080"}, {}, upgrade},         // a browser writes it in lower case
            {403, "GET", "/events", {"localhost:8080"}, {"http://[::1]:8080"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"http://localhost:8080@evil.example"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"http://localhost:8080, http://evil.example"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"https://pages.example."}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"https://pages.example:443"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"https://pages.example.evil.example"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {"null"}, {}, upgrade},
            {403, "GET", "/events", {"localhost:8080"}, {""}, {}, upgrade},
            {400, "GET", "/events", {"localhost:8080"}, {"http://localhost:8080", "http://evil.example"}, {}, upgrade},
        });
    check(loopback(), {
        {403, "GET", "/healthz", {"localhost"}, {"http://evil.example"}},
        {403, "POST", "/control", {"localhost"}, {"http://evil.example"}, {kBearer}},
        {200, "POST", "/control", {"localhost"}, {"http://localhost"}, {kBearer}},
    });
}

TEST_CASE("a browser is told beforehand what a page of an allowed origin may send, and no other page's", "[stream][access]") {
    const char* const page = "https://pages.example";
    AccessRules far = loopback();
    far.needs_token_to_read = true;
    for (const AccessRules& rules : {loopback(), far})
        check(rules, {
            {204, "OPTIONS", "/control", {"localhost"}, {page}, {}, false, "POST"},
            {204, "OPTIONS", "/events?from=now", {"localhost:8080"}, {page}, {}, false, "GET"},
            {204, "OPTIONS", "/state", {"localhost"}, {page}, {}, false, "HEAD"},
            {204, "OPTIONS", "/state", {"localhost"}, {"http://localhost"}, {}, false, "GET"},  // its own
            {403, "OPTIONS", "/control", {"localhost"}, {"https://evil.example"}, {}, false, "POST"},
            {403, "OPTIONS", "/control", {"localhost"}, {"https://pages.example.evil.example"}, {}, false, "POST"},
            {403, "OPTIONS", "/control", {"localhost"}, {"http://pages.example"}, {}, false, "POST"},
            {403, "OPTIONS", "/control", {"localhost"}, {"null"}, {}, false, "POST"},
            {403, "OPTIONS", "/state", {"localhost"}, {""}, {}, false, "GET"},
            {405, "OPTIONS", "/control", {"localhost"}, {}, {}, false, "POST"},                // no page asks
            {405, "OPTIONS", "/control", {"localhost"}, {page, page}, {}, false, "POST"},
            {405, "OPTIONS", "/control", {"localhost"}, {page}},                               // and for nothing
            {405, "OPTIONS", "/control", {"localhost"}, {page}, {}, false, "GET"},
            {405, "OPTIONS", "/control", {"localhost"}, {page}, {}, false, "post"},
            {405, "OPTIONS", "/control", {"localhost"}, {page}, {}, false, "OPTIONS"},
            {405, "OPTIONS", "/events", {"localhost"}, {page}, {}, false, "HEAD"},
            {405, "OPTIONS", "/state", {"localhost"}, {page}, {}, false, "DELETE"},
            {405, "PUT", "/state", {"localhost"}, {page}, {}, false, "GET"},
            {404, "OPTIONS", "/nothing", {"localhost"}, {page}, {}, false, "GET"},
            {404, "OPTIONS", "*", {"localhost"}, {page}, {}, false, "GET"},
            {421, "OPTIONS", "/control", {"evil.example"}, {page}, {}, false, "POST"},
            {400, "OPTIONS", "/control", {}, {page}, {}, false, "POST"},
            {200, "GET", "/healthz", {"localhost"}, {page}, {}, false, "DELETE"},              // means nothing elsewhere
        });
    AccessRules quiet = loopback();
    quiet.allows_control = false;
    check(quiet, {{403, "OPTIONS", "/control", {"localhost"}, {page}, {}, false, "POST"}});
}

TEST_CASE("control asks for the token, and reading does where the server can be reached from elsewhere", "[stream][access]") {
    const std::string shorter = kBearer.substr(0, kBearer.size() - 1), longer = kBearer + "0", other = "Bearer 1123456789abcdef0123456789abcdef", lower = std::string("bearer ") + kToken, bare = kToken,
                      twice = kBearer + " " + kToken, basic = std::string("Basic ") + kToken, repeated = kBearer + kToken;
    check(loopback(), {
        {200, "POST", "/control", {"localhost"}, {}, {kBearer}},
        {200, "POST", "/control", {"localhost"}, {}, {lower}},
        {401, "POST", "/control"},
        {401, "POST", "/control?token=0123456789abcdef0123456789abcdef"},  // not in an address, which is kept and shown
        {401, "POST", "/control", {"localhost"}, {}, {shorter}},
        {401, "POST", "/control", {"localhost"}, {}, {longer}},
        {401, "POST", "/control", {"localhost"}, {}, {repeated}},
        {401, "POST", "/control", {"localhost"}, {}, {other}},
        {401, "POST", "/control", {"localhost"}, {}, {bare}},
        {401, "POST", "/control", {"localhost"}, {}, {twice}},
        {401, "POST", "/control", {"localhost"}, {}, {basic}},
        {401, "POST", "/control", {"localhost"}, {}, {"Bearer "}},
        {401, "POST", "/control", {"localhost"}, {}, {""}},
        {400, "POST", "/control", {"localhost"}, {}, {kBearer, kBearer}},
        {200, "GET", "/events"},
        {401, "GET", "/events", {"localhost"}, {}, {other}},  // a wrong one is said, though none is needed
        {200, "GET", "/healthz", {"localhost"}, {}, {other}},
    });
    AccessRules far = loopback();
    far.needs_token_to_read = true;
    check(far, {
        {401, "GET", "/events"}, {401, "GET", "/state"}, {401, "GET", "/metrics"}, {401, "GET", "/schema"}, {401, "GET", "/runs"}, {401, "GET", "/curves?names=a"}, {401, "GET", "/events?token=0123456789abcdef0123456789abcdef"},
        {200, "GET", "/events", {"localhost"}, {}, {kBearer}}, {200, "GET", "/metrics", {"localhost"}, {}, {kBearer}},
        {200, "GET", "/healthz"},
        {200, "GET", "/events", {"localhost"}, {}, {}, /*upgrade=*/true},  // it gives the token before it gets anything
    });
    AccessRules quiet = loopback();
    quiet.allows_control = false;
    check(quiet, {{403, "POST", "/control", {"localhost"}, {}, {kBearer}}, {403, "POST", "/control"}});
    AccessRules open = loopback();
    open.token.clear();
    check(open, {{401, "POST", "/control"}, {401, "POST", "/control", {"localhost"}, {}, {"Bearer "}}, {401, "POST", "/control", {"localhost"}, {}, {"Bearer x"}}});
}

TEST_CASE("the dashboard's files are open, and hold nothing of the run", "[stream][access]") {
    if (page_files().empty()) {
        std::cout << "SKIPPED: this build has no dashboard, as uPlot was not found\n";
        return;
    }
    AccessRules far = loopback();
    far.needs_token_to_read = true;
    for (const AccessRules& rules : {loopback(), far})
        check(rules, {
            {200, "GET", "/"}, {200, "GET", "/?x=1"}, {200, "HEAD", "/"}, {200, "GET", "/dashboard.js"}, {200, "GET", "/dashboard.css"}, {200, "GET", "/uplot.js"}, {200, "GET", "/uplot.css"},
            {405, "POST", "/"}, {405, "PUT", "/dashboard.js"}, {400, "GET", "/", {"localhost"}, {}, {}, /*upgrade=*/true},
            {404, "GET", "/index.html"}, {404, "GET", "/dashboard.html"}, {404, "GET", "//"}, {404, "GET", "/."}, {404, "GET", "/%2f"}, {404, "GET", "/dashboard.js/"}, {404, "GET", "/uplot.js%00"},
            {404, "GET", "/../dashboard.js"}, {404, "GET", "/dashboard.js/../control"}, {404, "GET", "/DASHBOARD.JS"}, {404, "GET", "/page.hpp"}, {404, "GET", "/embed.py"}, {404, "GET", "/etc/passwd"},
            {421, "GET", "/", {"evil.example"}}, {421, "GET", "/uplot.js", {"localhost."}}, {403, "GET", "/", {"localhost"}, {"http://evil.example"}},
            {200, "GET", "/", {"localhost"}, {}, {"Bearer of something else"}},
        });
    for (const PageFile& file : page_files()) {
        INFO(file.path);
        CHECK(!file.content.empty());
        CHECK(file.content.find("http-equiv") == std::string_view::npos);
    }
}

TEST_CASE("a secret is the same only where all of it is", "[stream][access]") {
    CHECK(is_same_secret("abc", "abc"));
    for (const std::string_view given : {"abd", "bbc", "ab", "abcd", "abcabc", "", "abc "}) CHECK_FALSE(is_same_secret(given, "abc"));
    CHECK_FALSE(is_same_secret("", ""));
}
