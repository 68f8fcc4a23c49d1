#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>
#include <torchbus/interval.hpp>

namespace torchbus {

/// Serves the events of a run while it is under way, on one port, by a thread of its own (see stream/stream_server.hpp).
/// Listens: every event (stage Persist). Reads: blackboard. With `control` it asks for decisions in the name of who sent a command:
/// stop, save, evaluate, pause, resume, change_option. They are taken at the next decision point, on all ranks.
/// - `GET /events`: Server-Sent Events; with `Accept: application/x-ndjson` lines; with an upgrade a WebSocket.
///   `?events=train_step_end,eval_*&fields=position.step,loss&every=100step&from=now`. With `Last-Event-ID` it goes on from there.
/// - A connection that says nothing, or begins with a line such as `{"events": ["eval_*"], "every": "100step"}`, gets lines.
/// - `GET /`: the dashboard, where it was built in (README tells). A token goes behind the address: http://127.0.0.1:8080/#token=TOKEN
/// - `GET /state`, `/runs`, `/curves`, `/metrics` (Prometheus), `/healthz`, `/schema`; `POST /control`.
/// A client is given a snapshot first, then what is kept of the past, then what comes. Where it could not follow, a message
/// `torchbus.gap` says which messages it has missed; one that takes nothing for `stall` is cut off. No client can slow the run.
/// A request has 10 s from its first byte on, 8 KiB for its head and 64 KiB for a command, as a line and a WebSocket message have; a
/// connection may rest 75 s between two requests.
/// Where it cannot listen the run is refused. Its address is told on standard error. It serves on between two runs.
/// Rank: rank 0 serves, or with `all_ranks` each its own messages, at the port plus its rank.
struct EventServerOptions {
    std::string address = "127.0.0.1";   ///< IP address; another than the loopback's needs a token
    std::int64_t port = 0;               ///< 0: any that is free
    std::filesystem::path unix_socket = {};
    std::filesystem::path token_file = {};  ///< its only line, at least 16 characters; empty: no token
    std::vector<std::string> hosts = {};    ///< names by which it may be called, besides localhost and its address
    std::vector<std::string> origins = {};  ///< of pages served by others that may ask
    bool control = false;                   ///< takes commands, with the token
    std::vector<std::string> events = {"*"};             ///< patterns of names; no client gets others
    Interval every = Interval(1, Interval::Unit::Step);  ///< of what comes with every step or batch
    double history_mib = 16;                             ///< of all messages, for who connects late, and as many of what clients choose; > 0
    std::int64_t max_clients = 4096;
    Interval stall = Interval(30, Interval::Unit::Second);
    bool all_ranks = false;
    std::vector<std::filesystem::path> compare = {};     ///< recordings of event_file that the dashboard shows beside this run, as they grow
};
std::unique_ptr<Callback> make_event_server(EventServerOptions options = {});

}  // namespace torchbus
