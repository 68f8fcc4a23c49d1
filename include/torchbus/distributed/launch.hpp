#pragma once
/// Starts the processes that train together, and looks after them: what `torchbus launch` does.

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

namespace torchbus {

struct LaunchOptions {
    std::vector<std::string> command;               ///< program and arguments, the same for every rank
    int processes = 1;                              ///< on this node
    int nodes = 1;
    int node = 0;                                   ///< which one this is
    std::string master_address = "127.0.0.1";       ///< of node 0, whose launcher opens the meeting point
    int master_port = 0;                            ///< 0: a free one, on one node
    int max_restarts = 0;                           ///< of all ranks, where one has failed
    std::filesystem::path log_folder = {};          ///< gets <restart>/rank_<n>.out and .err; empty: none
    std::chrono::milliseconds grace = std::chrono::seconds(30);        ///< between a signal to stop and the kill
    std::chrono::milliseconds join_timeout = std::chrono::minutes(5);  ///< how long node 0 is tried for, >= 1 s
    std::string run_id = "none";
    std::string visible_devices = {};               ///< CUDA_VISIBLE_DEVICES of the ranks, e.g. "0,1"; empty: as it is here
};

/// Runs the command once a rank, with the variables that torchrun sets, and prints what each says with `[rank 1/4] ` before it.
/// Where one fails all are stopped, and started again as often as max_restarts allows; what the first one said last is printed
/// last. SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 are passed on, SIGHUP and SIGQUIT as SIGTERM; no process is left when this
/// returns, or when it is killed, but one that has left the process group of its rank.
/// Returns the exit code: that of the rank that failed first, 128 + n after a signal n that ends the run, else 0.
/// Throws: ConfigError for a command that cannot be run, or numbers that do not go together; DistributedError where the
/// launchers of several nodes do not find each other, or one is missing when a rank has failed.
/// Thread: the main thread.
int launch(const LaunchOptions& options);

}  // namespace torchbus
