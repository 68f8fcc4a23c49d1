#pragma once
/// Which of how many processes this is, and where they meet.

#include <functional>
#include <optional>
#include <string>

namespace torchbus {

/// Ranks count from 0. Those of one machine (a node) have local ranks, one a device.
struct Ranks {
    int rank = 0;
    int world_size = 1;
    int local_rank = 0;
    int local_world_size = 1;
    int node = 0;
    int nodes = 1;
    std::string master_address = "127.0.0.1";  ///< where the store is, by which they meet
    int master_port = 29500;
    bool launcher_hosts_store = false;  ///< otherwise rank 0 does
    int restart = 0;                    ///< how often the launcher has started this group anew
    int max_restarts = 0;
    std::string run_id = "none";        ///< the launcher's name for the run

    bool is_main() const { return rank == 0; }
    bool is_local_main() const { return local_rank == 0; }
};

using ReadVariable = std::function<const char*(const char* name)>;

/// What `torchbus launch`, torchrun, or whoever sets these variables by hand says: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT,
/// all four or none; LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, GROUP_WORLD_SIZE (one machine where they are missing);
/// TORCHELASTIC_USE_AGENT_STORE, TORCHELASTIC_RESTART_COUNT, TORCHELASTIC_MAX_RESTARTS, TORCHELASTIC_RUN_ID.
/// Returns nothing where none of the four is set: this is one process.
/// Throws: ConfigError that names every variable that is missing, no number, or does not go with the others.
std::optional<Ranks> ranks_from_environment(const ReadVariable& read = {});

}  // namespace torchbus
