// A run that is watched and steered over a socket. How the server treats clients, good and bad ones, is in test/scripts.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <thread>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/event_server.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/free_port.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

constexpr const char* kToken = "0123456789abcdef";

/// A client of lines, over a Unix socket.
class Client {
public:
    explicit Client(const std::filesystem::path& path, const std::string& first) : socket_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path.string().copy(address.sun_path, sizeof address.sun_path - 1);
        for (int i = 0; ::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0; ++i) {
            if (i == 2000) throw std::runtime_error("nobody listens at " + path.string());
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        say(first);
    }
    ~Client() { ::close(socket_); }
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;
    void say(const std::string& line) { REQUIRE(::send(socket_, (line + "\n").data(), line.size() + 1, MSG_NOSIGNAL) == static_cast<ssize_t>(line.size() + 1)); }
    /// The next message; null once the server has gone.
    json next() {
        std::size_t end;
        while ((end = rest_.find('\n')) == std::string::npos) {
            char bytes[65536];
            const ssize_t count = ::recv(socket_, bytes, sizeof bytes, 0);
            if (count <= 0) return nullptr;
            rest_.append(bytes, static_cast<std::size_t>(count));
        }
        json message = json::parse(rest_.substr(0, end));
        rest_.erase(0, end + 1);
        return message;
    }
    /// Skips messages up to one of this name.
    json next(const std::string& name) {
        for (;;) {
            json message = next();
            if (message.is_null() || message["type"] == "torchbus." + name) return message;
        }
    }

private:
    int socket_;
    std::string rest_;
};

}  // namespace

TEST_CASE("a run is watched, paused, changed, resumed and stopped over a socket", "[callbacks][event-server][thread]") {
    const TemporaryFolder folder("event-server");
    std::ofstream(folder / "token") << kToken << '\n';
    auto model = toy_model();
    const CapturedStderr captured;
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                     .callbacks = {make_metrics({.accuracy = true}), ComposedCallback("clip", make_gradient_clipping({.max_norm = 1.0})),
                                   make_event_server({.unix_socket = folder / "socket", .token_file = folder / "token", .control = true})},
                     .handle_signals = false});
    json snapshot, paused, changed, refused, resumed, state, stopped, closed, foreign;
    std::int64_t steps_while_paused = 0;
    std::thread operating([&] {
        Client client(folder / "socket", R"({"every": "100step"})");
        snapshot = client.next("snapshot");
        client.say(R"({"command": "pause"})");
        foreign = client.next("answer");
        client.say(R"({"command": "pause", "by": "me", "reason": "a look", "token": ")" + std::string(kToken) + "\"}");
        paused = client.next("decision_taken");
        client.say(R"({"command": "change_option", "subscriber": "clip", "option": "max_norm", "value": 0.5, "by": "me"})");
        changed = client.next("option_changed");
        client.say(R"({"command": "change_option", "subscriber": "clip", "option": "max_norm", "value": -1})");
        refused = client.next("option_changed");
        steps_while_paused = refused["data"]["position"]["step"].get<std::int64_t>() - paused["data"]["position"]["step"].get<std::int64_t>();
        client.say(R"({"command": "resume"})");
        for (resumed = client.next("decision_taken"); resumed["data"]["decision"] == "change_option";) resumed = client.next("decision_taken");
        client.next("numbers");
        state = Client(folder / "socket", R"({"events": ["none"]})").next("snapshot");
        client.say(R"({"command": "stop", "by": "me", "reason": "enough"})");
        stopped = client.next("training_run_end");
        closed = client.next("run_closed");
    });
    const RunResult result = trainer.train(toy_data(64), toy_data(8), {.epochs = 1'000'000, .batch_size = 4});
    operating.join();
    CHECK(captured.text().find("torchbus: events at http://127.0.0.1:") != std::string::npos);

    CHECK(result.outcome == Outcome::Stopped);
    CHECK(result.requester == "event_server: me at this machine");
    CHECK(result.reason == "enough");
    CHECK(snapshot["data"].contains("last_sequence"));
    CHECK(state["data"]["state"] == "running");
    CHECK(foreign["data"]["accepted"] == false);
    CHECK(paused["data"]["decision"] == "pause");
    CHECK(paused["data"]["requester"] == "event_server: me at this machine");
    CHECK(changed["data"]["to"] == "0.5");
    CHECK(changed["data"]["error"] == "");
    CHECK(refused["data"]["error"].get<std::string>().find("max_norm") != std::string::npos);
    CHECK(steps_while_paused == 0);
    CHECK(resumed["data"]["decision"] == "resume");
    CHECK(state["data"]["numbers"]["numbers"].contains("train.loss"));
    CHECK(stopped["data"]["result"]["outcome"] == "stopped");
    CHECK(closed["data"]["result"]["requester"] == "event_server: me at this machine");
}

TEST_CASE("an event server that could not be used is refused before the run", "[callbacks][event-server]") {
    const TemporaryFolder folder("event-server");
    std::ofstream(folder / "short") << "secret\n";
    const auto refusal = [&](EventServerOptions options) {
        auto model = toy_model();
        try {
            Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}), .callbacks = {make_event_server(std::move(options))}, .handle_signals = false});
            trainer.train(toy_data(8), {.batch_size = 4});
        } catch (const ConfigError& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    const HeldPort held;
    CHECK(refusal({.port = held.number}).find("Address already in use; give another port, or 0 for any that is free") != std::string::npos);
    CHECK(refusal({.address = "0.0.0.0"}) == "event_server: 0.0.0.0 can be reached from other machines, and no token is set; give token_file, or listen on 127.0.0.1");
    CHECK(refusal({.address = "localhost"}).find("'localhost' is no IP address") != std::string::npos);
    CHECK(refusal({.control = true}) == "event_server: control needs a token; give token_file");
    CHECK(refusal({.token_file = folder / "none"}).find("cannot be read") != std::string::npos);
    CHECK(refusal({.token_file = folder / "short"}).find("has 6 characters, expected at least 16; make one with: openssl rand -hex 16") != std::string::npos);
    CHECK(refusal({.hosts = {"a b"}}).find("hosts: 'a b' is no host") != std::string::npos);
    CHECK(refusal({.port = 70000}) == "event_server: port: 70000 is out of range; give 0 to 65535, 0 for any that is free");
    CHECK(refusal({.stall = "5step"}).find("stall") != std::string::npos);
}
