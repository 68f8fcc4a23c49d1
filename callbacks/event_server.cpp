#include <torchbus/callbacks/event_server.hpp>

#include <cmath>
#include <mutex>
#include <optional>

#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/stream/event_feed.hpp>
#include <torchbus/stream/followed_recordings.hpp>
#include <torchbus/stream/stream_server.hpp>

#include "entries.hpp"
#include "parts/progress_text.hpp"
#include "parts/sink.hpp"

namespace torchbus {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kWaitingBytes = 64U << 20;  // for the server's thread, which takes all there is every 50 ms

class EventServer final : public Callback {
public:
    explicit EventServer(EventServerOptions options)
        : options_(std::move(options)),
          feed_({.owner = "event_server", .events = options_.events, .every = options_.every, .limit_bytes = kWaitingBytes}, [this](const std::string& run, int rank, bool) { server_->begin(run, rank); },
                [this](std::string& lines) { server_->publish(std::move(lines)); }, [this] { server_->drain(1s); }) {}
    std::string kind() const override { return "event_server"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"*"}, .reads = {"blackboard"}, .subscriber = {.fault = Fault::Optional}};
        if (options_.control) declared.asks = {Decision::StopRun, Decision::SaveNow, Decision::Pause, Decision::Resume, Decision::ChangeOption};
        return declared;
    }
    void attach(Attachment& run) override {
        const int rank = run.consensus.rank();
        if (rank > 0 && !options_.all_ranks) return;
        {
            const std::lock_guard lock(mutex_);
            asker_.emplace(run.asker);
        }
        if (!server_) start(rank);
        feed_.attach(run);
    }
    void detach() override {
        feed_.detach();
        const std::lock_guard lock(mutex_);
        asker_.reset();
    }

private:
    void start(int rank) {
        auto unix_socket = options_.unix_socket;
        if (rank > 0 && !unix_socket.empty()) unix_socket += fmt::format(".rank{}", rank);
        const std::int64_t port = options_.port == 0 ? 0 : options_.port + rank;
        if (port > 65535) throw ConfigError(fmt::format("event_server: port: {} for rank {} is above 65535; give a lower one", port, rank));
        server_ = std::make_unique<StreamServer>(
            StreamServerOptions{.address = options_.address, .port = static_cast<std::uint16_t>(port), .unix_socket = unix_socket, .token = token_from_file(options_.token_file, "event_server: token_file"), .hosts = options_.hosts,
                                .origins = options_.origins, .allows_control = options_.control, .history_bytes = static_cast<std::size_t>(options_.history_mib * kBytesOfMib),
                                .max_clients = static_cast<std::size_t>(options_.max_clients), .stall = milliseconds_in(options_.stall)},
            [this](const StreamCommand& command) { obey(command); });
        write_to_stderr(fmt::format("torchbus: events at {}/events{}\n", server_->url(), StreamServer::has_dashboard() ? fmt::format(", the dashboard at {}/", server_->url()) : ""));
        if (options_.compare.empty()) return;
        followed_.emplace(options_.compare, [this](const std::filesystem::path& path, const std::string& run, int its_rank, std::string lines) { server_->show(path.string(), run, its_rank, std::move(lines)); });
    }
    /// By the server's thread.
    void obey(const StreamCommand& command) {
        const std::lock_guard lock(mutex_);
        if (!asker_) throw ConfigError("no run is under way");
        const Asker asker = asker_->for_somebody(command.requester);
        const std::string reason = command.reason.empty() ? "by command" : command.reason;
        if (command.command == "stop") asker.ask(Decision::StopRun, reason);
        else if (command.command == "save") asker.ask(Decision::SaveNow, reason);
        else if (command.command == "evaluate") asker.ask(Decision::EvaluateNow, reason);
        else if (command.command == "pause") asker.ask(Decision::Pause, reason);
        else if (command.command == "resume") asker.ask(Decision::Resume, reason);
        else asker.ask_to_change(command.subscriber, command.option, command.value.dump(), reason);
    }

    EventServerOptions options_;
    std::mutex mutex_;
    std::optional<Asker> asker_;            ///< while a run is under way; guarded by mutex_
    std::unique_ptr<StreamServer> server_;  ///< from the first run on
    std::optional<FollowedRecordings> followed_;
    EventFeed feed_;                        ///< before the server it goes
};

}  // namespace

std::unique_ptr<Callback> make_event_server(EventServerOptions options) {
    require_of_sink(options.port >= 0 && options.port <= 65535, "event_server", "port", fmt::format("{}", options.port), "0 to 65535, 0 for any that is free");
    require_of_sink(options.every.amount > 0, "event_server", "every", to_string(options.every), "an interval, e.g. 10step");
    require_of_sink(options.history_mib > 0, "event_server", "history_mib", fmt::format("{}", options.history_mib), "MiB, e.g. 16");
    require_of_sink(options.max_clients > 0, "event_server", "max_clients", fmt::format("{}", options.max_clients), "a number of clients, e.g. 1000");
    require_of_sink(options.stall.amount > 0 && options.stall.unit == Interval::Unit::Second, "event_server", "stall", to_string(options.stall), "a time, e.g. 30s");
    token_from_file(options.token_file, "event_server: token_file");
    return std::make_unique<EventServer>(std::move(options));
}

std::unique_ptr<Callback> event_server_from_json(OptionReader& reader) {
    EventServerOptions options;
    std::string unix_socket, token_file;
    std::vector<std::string> compare;
    reader.text("address", options.address, "IP address; another than the loopback's needs a token")
        .integer("port", options.port, "TCP port; 0: any that is free", Range::at_least(0))
        .text("unix_socket", unix_socket, "path of a socket beside it; empty: none")
        .text("token_file", token_file, "file whose only line is the token; empty: no token")
        .texts("hosts", options.hosts, "names by which it may be called, besides localhost and its address")
        .texts("origins", options.origins, "of pages served by others that may ask, e.g. https://board.example")
        .boolean("control", options.control, "takes commands (stop, save, evaluate, pause, resume, change_option), with the token")
        .texts("events", options.events, "patterns of names; no client gets others")
        .interval("every", options.every, "of what comes with every step or batch; all else is served always")
        .number("history_mib", options.history_mib, "messages for who connects late", Range::positive())
        .integer("max_clients", options.max_clients, "one more is turned away", Range::at_least(1))
        .interval("stall", options.stall, "a client that takes nothing for so long is cut off")
        .boolean("all_ranks", options.all_ranks, "every rank serves its own messages, at the port plus its rank")
        .texts("compare", compare, "recordings of event_file that the dashboard shows beside this run");
    options.compare.assign(compare.begin(), compare.end());
    options.unix_socket = unix_socket;
    options.token_file = token_file;
    return make_event_server(std::move(options));
}

}  // namespace torchbus
