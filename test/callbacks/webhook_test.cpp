#include <chrono>
#include <fstream>
#include <thread>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/webhook.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/stream/courier.hpp>
#include <torchbus/stream/http_poster.hpp>
#include <torchbus/stream/message.hpp>

#include "support/callback_of.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/free_port.hpp"
#include "support/http_receiver.hpp"
#include "support/json_schema.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;
using Way = HttpReply::Way;

namespace {

struct PostedRun {
    RunResult result;
    double seconds = 0;
    std::string warnings;
};

struct WebhookLatecomer { int value = 0; };  // an event of the user's own
void to_json(json& out, const WebhookLatecomer& event) { out = {{"value", event.value}}; }

std::int64_t occurrences(const std::string& text, const std::string& part) {
    std::int64_t count = 0;
    for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
    return count;
}

/// Two epochs of four steps.
PostedRun train_and_post(WebhookOptions options) {
    const CapturedStderr captured;
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}), .callbacks = {make_metrics({.accuracy = true}), make_webhook(std::move(options))}, .handle_signals = false});
    const auto begin = std::chrono::steady_clock::now();
    RunResult result = trainer.train(toy_data(16), toy_data(6, 3), {.epochs = 2, .batch_size = 4});
    return {std::move(result), std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), captured.text()};
}

/// All events of its requests, in order.
std::vector<json> posted(const HttpReceiver& receiver) {
    std::vector<json> events;
    for (const HttpReceived& request : receiver.received()) {
        const json body = json::parse(request.body);
        if (body.is_array()) events.insert(events.end(), body.begin(), body.end());
        else events.push_back(body);
    }
    return events;
}

std::vector<std::string> names_posted(const HttpReceiver& receiver) {
    std::vector<std::string> names;
    for (const json& event : posted(receiver)) names.push_back(event.at("type").get<std::string>().substr(std::string("torchbus.").size()));
    return names;
}

}  // namespace

TEST_CASE("a webhook posts the events it is to, each once and in order, over one connection", "[callbacks][webhook]") {
    const TemporaryFolder folder("webhook");
    std::ofstream(folder / "token") << "abcdef\n";
    std::ofstream(folder / "headers") << "X-Team: vision\n\nX-Other:  two words\n";
    const HttpReceiver receiver([](const HttpReceived&) { return HttpReply{.status = 204, .body = ""}; });
    const PostedRun run = train_and_post({.url = receiver.url("/hooks/1?key=secret"), .events = {"training_run_*", "train_step_end", "run_closed"}, .every = "2step", .batch = 3, .token_file = folder / "token", .headers_file = folder / "headers"});
    CHECK(run.result.outcome == Outcome::Finished);
    CHECK(run.warnings == "");
    CHECK(names_posted(receiver) == std::vector<std::string>{"training_run_start", "train_step_end", "train_step_end", "train_step_end", "training_run_epoch_end", "train_step_end", "train_step_end", "training_run_epoch_end", "training_run_end", "run_closed"});
    CHECK(receiver.connections() == 1);
    const JsonSchema schema(stream_schema());
    for (const json& event : posted(receiver)) CHECK(schema.complaint(event) == "");
    for (const HttpReceived& request : receiver.received()) {
        CHECK(request.method == "POST");
        CHECK(request.target == "/hooks/1?key=secret");
        CHECK(json::parse(request.body).size() <= 3);
        CHECK(request.headers.at("content-type") == "application/cloudevents-batch+json; charset=utf-8");
        CHECK(request.headers.at("authorization") == "Bearer abcdef");
        CHECK(request.headers.at("x-team") == "vision");
        CHECK(request.headers.at("x-other") == "two words");
        CHECK(request.headers.at("host") == fmt::format("127.0.0.1:{}", receiver.port()));
    }
}

TEST_CASE("a webhook posts each event alone where a batch is one", "[callbacks][webhook]") {
    const HttpReceiver receiver([](const HttpReceived&) { return HttpReply{}; });
    train_and_post({.url = receiver.url(), .batch = 1});
    CHECK(names_posted(receiver) == std::vector<std::string>{"training_run_start", "run_closed"});
    for (const HttpReceived& request : receiver.received()) {
        CHECK(request.headers.at("content-type") == "application/cloudevents+json");
        CHECK(json::parse(request.body).is_object());
        CHECK(request.target == "/");
    }
}

TEST_CASE("a webhook tries again what was not received, and not before it is asked to", "[callbacks][webhook][thread]") {
    int requests = 0;
    std::vector<std::chrono::steady_clock::time_point> times;
    const HttpReceiver receiver([&](const HttpReceived&) -> HttpReply {
        times.push_back(std::chrono::steady_clock::now());
        switch (requests++) {
            case 0: return {};
            case 1: return {.way = Way::CloseInstead};
            case 2: return {.status = 503};
            case 3: return {.status = 429, .headers = "Retry-After: 1\r\n"};
            default: return {.status = 202};
        }
    });
    const PostedRun run = train_and_post({.url = receiver.url(), .events = {"training_run_start", "run_closed"}, .batch = 1});
    CHECK(run.result.outcome == Outcome::Finished);
    CHECK(names_posted(receiver) == std::vector<std::string>{"training_run_start", "run_closed", "run_closed", "run_closed", "run_closed"});
    const auto events = posted(receiver);
    for (std::size_t i = 2; i < events.size(); ++i) CHECK(events[i].at("id") == events[1].at("id"));
    REQUIRE(times.size() == 5);
    CHECK(times[4] - times[3] >= std::chrono::milliseconds(950));
    CHECK_THAT(run.warnings, containing("it is tried again"));
    CHECK_THAT(run.warnings, containing("answers again"));
}

TEST_CASE("a webhook takes a refusal or a redirect for final, tells of it, and goes on", "[callbacks][webhook]") {
    const int status = GENERATE(400, 404, 302);
    const HttpReceiver elsewhere([](const HttpReceived&) { return HttpReply{}; });
    const HttpReceiver receiver([&](const HttpReceived&) { return HttpReply{.status = status, .headers = "Location: " + elsewhere.url() + "\r\n"}; });
    const PostedRun run = train_and_post({.url = receiver.url("/secret"), .events = {"run_closed"}});
    CHECK(run.result.outcome == Outcome::Finished);
    CHECK(names_posted(receiver) == std::vector<std::string>{"run_closed"});
    CHECK(elsewhere.received().empty());
    CHECK_THAT(run.warnings, containing(fmt::format("webhook: {} answered {}; events that are not delivered to it: 1", receiver.url(), status)));
    CHECK(run.warnings.find("/secret") == std::string::npos);
}

TEST_CASE("a webhook tells of the first refusal and of how many there were, not of each", "[callbacks][webhook]") {
    const HttpReceiver receiver([](const HttpReceived&) { return HttpReply{.status = 400}; });
    const PostedRun run = train_and_post({.url = receiver.url(), .events = {"train_step_end", "run_closed"}, .every = "1step", .batch = 1});
    CHECK(receiver.received().size() == 9);
    CHECK(occurrences(run.warnings, "answered 400; events that are not delivered to it: 1") == 1);
    CHECK_THAT(run.warnings, containing(fmt::format("webhook: {} refused 9 events in all", receiver.url())));
}

TEST_CASE("a webhook lets an event go that comes when its run is closed, and goes on with the next run", "[callbacks][webhook]") {
    const HttpReceiver receiver([](const HttpReceived&) { return HttpReply{}; });
    Subscriber* bus = nullptr;
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                     .callbacks = {make_webhook({.url = receiver.url(), .events = {"run_closed", "*Latecomer*", "*latecomer*"}}), callback_of("keeper", [&](Attachment& run, Connections&) { bus = &run.bus; })}, .handle_signals = false});
    for (int i = 1; i <= 2; ++i) {
        trainer.train(toy_data(16), {.batch_size = 4});
        REQUIRE(bus != nullptr);
        bus->emit(WebhookLatecomer{7});
        std::this_thread::sleep_for(std::chrono::milliseconds(200));  // several paces of the feed's
        CHECK(names_posted(receiver) == std::vector<std::string>(static_cast<std::size_t>(i), "run_closed"));
    }
}

TEST_CASE("a webhook's receiver that is silent or dead holds the run up no longer than it may", "[callbacks][webhook][thread]") {
    SECTION("silent") {
        const HttpReceiver receiver([](const HttpReceived&) { return HttpReply{.way = Way::NoAnswer}; });
        const PostedRun run = train_and_post({.url = receiver.url(), .wait_at_end = "0.3s"});
        CHECK(run.result.outcome == Outcome::Finished);
        CHECK(run.seconds < 5);
        CHECK_THAT(run.warnings, containing("2 events were not delivered to " + receiver.url() + " when the run had ended"));
        CHECK_THAT(run.warnings, !containing("it is tried again"));
    }
    SECTION("silent, of a name, and not waited for") {
        const HttpReceiver receiver([](const HttpReceived&) { return HttpReply{.way = Way::NoAnswer}; });
        const PostedRun run = train_and_post({.url = fmt::format("http://localhost:{}", receiver.port()), .events = {"run_closed"}, .wait_at_end = "0s"});
        CHECK(run.seconds < 5);
        CHECK_THAT(run.warnings, containing("1 events were not delivered"));
    }
    SECTION("one that never answers a connection") {
        const HeldPort held;
        const PostedRun run = train_and_post({.url = fmt::format("http://127.0.0.1:{}", held.number), .wait_at_end = "0.3s"});
        CHECK(run.seconds < 5);
        CHECK_THAT(run.warnings, containing("2 events were not delivered"));
    }
    SECTION("dead") {
        const PostedRun run = train_and_post({.url = fmt::format("http://127.0.0.1:{}", free_port()), .wait_at_end = "60s"});
        CHECK(run.result.outcome == Outcome::Finished);
        CHECK(run.seconds < 5);
        CHECK_THAT(run.warnings, containing("Connection refused; it is tried again"));
        CHECK_THAT(run.warnings, containing("2 events were not delivered"));
    }
    SECTION("a name that there is not") {
        const PostedRun run = train_and_post({.url = "http://nobody.invalid:80", .wait_at_end = "1s"});
        CHECK(run.seconds < 10);
        CHECK_THAT(run.warnings, containing("2 events were not delivered"));
    }
}

TEST_CASE("a webhook gives up what is too old, and leaves out what there is no place for", "[callbacks][webhook]") {
    const HttpReceiver receiver([](const HttpReceived&) { return HttpReply{.status = 500}; });
    CHECK_THAT(train_and_post({.url = receiver.url(), .give_up_after = "0.0001s"}).warnings, containing("and are given up"));
    const std::string warnings = train_and_post({.url = receiver.url(), .give_up_after = "0.0001s", .wait_at_end = "0.6s"}).warnings;
    CHECK(occurrences(warnings, "and are given up") == 1);
    CHECK_THAT(train_and_post({.url = receiver.url(), .events = {"*"}, .every = "1step", .limit_mib = 0.01}).warnings, containing("were left out, as too many waited"));
}

TEST_CASE("a request gets the answer and nothing more, within its limits", "[stream][http-poster]") {
    HttpReply reply;
    const HttpReceiver receiver([&](const HttpReceived&) { return reply; });
    HttpPoster poster({.url = http_url(receiver.url(), "url"), .limit = std::chrono::milliseconds(300), .max_answer_bytes = 1000});
    reply = {.status = 201, .body = "made", .headers = "Retry-After: 7\r\n"};
    HttpAnswer answer = poster.post("/a?b", "text/plain", "said");
    CHECK(answer.status == 201);
    CHECK(answer.body == "made");
    CHECK(answer.retry_after == std::chrono::seconds(7));
    reply = {.headers = "Retry-After: Fri, 27 Nov 2026 23:41:07 GMT\r\nConnection: close\r\n"};
    CHECK(poster.get("/a").retry_after.has_value());
    reply = {.body = std::string(5000, 'x')};
    answer = poster.get("/b");
    CHECK(answer.status == 200);
    CHECK(answer.body == "");
    reply = {};
    CHECK(poster.get("/c").body == "{}");
    CHECK(receiver.connections() == 3);
    reply = {.way = Way::NoAnswer};
    answer = poster.get("/d");
    CHECK(answer.status == 0);
    CHECK(answer.error == "there was no answer in time");
    reply = {};
    CHECK(poster.get("/e").status == 200);
    reply = {.status = 202, .behind = "HTTP/1.1 500 Unasked\r\nContent-Length: 0\r\n\r\n"};
    CHECK(poster.get("/f").status == 202);
    reply = {};
    CHECK(poster.get("/g").status == 200);
    poster.cancel();
    CHECK(poster.get("/h").error == "the request was given up");
}

TEST_CASE("a request that is given up, or out of time, before it has a connection returns nevertheless", "[stream][http-poster]") {
    const HttpReceiver receiver([](const HttpReceived&) { return HttpReply{.way = Way::NoAnswer}; });
    for (const std::string& url : {receiver.url(), fmt::format("http://localhost:{}", receiver.port())}) {
        HttpPoster poster({.url = http_url(url, "url")});
        poster.cancel();
        const HttpAnswer answer = poster.get("/");
        CHECK(answer.status == 0);
        CHECK(answer.is_given_up);
        CHECK(answer.error == "the request was given up");
    }
    CHECK(receiver.connections() == 0);
    HttpPoster late({.url = http_url(receiver.url(), "url"), .connect_limit = std::chrono::milliseconds(0)});
    const HttpAnswer answer = late.get("/");
    CHECK(answer.error == "there was no answer in time");
    CHECK(!answer.is_given_up);
}

TEST_CASE("a courier says each time that an exception has ended it", "[stream][webhook][thread]") {
    Courier courier({}, []() -> DeliveryAttempt { throw std::runtime_error("a fault of ours"); }, [] {});
    CHECK(!courier.finish(std::chrono::seconds(10)));
    for (int i = 0; i < 3; ++i) CHECK_THROWS_WITH(courier.wake(), "a fault of ours");
}

TEST_CASE("addresses that cannot be used are refused with what to give instead", "[stream][http-poster]") {
    CHECK(http_url("http://[::1]:81/a?b", "url").host == "::1");
    CHECK(http_url("http://[::1]:81/a?b", "url").place == "http://[::1]:81");
    CHECK(http_url("http://host?b", "url").target == "/?b");
    CHECK(http_url("http://host", "url").place == "http://host:80");
    CHECK_THROWS_WITH(http_url("https://host/", "webhook: url"), "webhook: url: 'https://host' asks for TLS, which no library here speaks; give http:// and the address of a proxy nearby that does");
    CHECK_THROWS_WITH(http_url("http://me:password@host/", "webhook: url"), "webhook: url: an address with a name or a password in it would be seen by who reads the run file; give token_file or headers_file");
    for (const char* wrong : {"", "host", "ftp://host", "http://", "http://:80", "http://host:", "http://host:0", "http://host:65536", "http://host:8o", "http://[::1", "http://ho st", "http://host/a b", "http://host/a\r\nX: y", "http://host/#a"}) {
        INFO(wrong);
        CHECK_THROWS_AS(http_url(wrong, "url"), ConfigError);
    }
    for (const char* telling : {"https://host/secret", "https://me:secret@host/", "https://me:a/secret@host/", "ftp://host/secret", "host/secret", "host?http://secret", "http://host:x/secret", "http://host/secret a", "http://host?secret#a"}) {
        INFO(telling);
        CHECK_THROWS_WITH(http_url(telling, "url"), !containing("secret"));
    }
}

TEST_CASE("options of a webhook that make no sense are refused", "[callbacks][webhook]") {
    const TemporaryFolder folder("webhook");
    std::ofstream(folder / "empty");
    std::ofstream(folder / "headers") << "X-A: b\nno header\n";
    CHECK_THROWS_WITH(make_webhook({.batch = 0}), "webhook: batch: 0 is out of range; give a number of events, e.g. 100, or 1 for each alone");
    CHECK_THROWS_WITH(make_webhook({.timeout = "5step"}), "webhook: timeout: 5step is out of range; give a time, e.g. 10s");
    CHECK_THROWS_WITH(make_webhook({.token_file = folder / "empty"}), containing("empty cannot be read, or is empty; write the token into it, as its only line"));
    CHECK_THROWS_WITH(make_webhook({.headers_file = folder / "headers"}), containing("headers:2: this is no header; expected a line such as X-Team: vision"));
}
