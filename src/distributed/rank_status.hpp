#pragma once
/// What a rank puts down of itself, and what follows from the words of all.

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace torchbus {

/// A collective that was begun, in which step, and how many steps after the one before.
struct BegunCollective {
    std::int64_t number = 0;  ///< since the world was joined
    std::string name;
    std::int64_t step = 0, steps_since = 0;
};

/// What a rank has put down of itself.
struct RankStatus {
    int rank = 0;
    std::int64_t beat = 0;  ///< grows while its process runs
    bool is_silent = false;
    std::string event;      ///< the last one that was emitted
    std::int64_t epoch = 0, step = 0;
    double since_s = 0;     ///< how long ago that was, when it was put down
    std::deque<BegunCollective> collectives = {};  ///< the newest last
};

/// In words, who is to blame and where it is; empty where the ranks' words tell nothing. `statuses`: in the order of ranks.
/// - Who has begun other collectives than the rest: what was due is what followed the same one before.
/// - Who has stopped to answer.
/// - Who has begun fewer.
std::string blamed(const std::vector<RankStatus>& statuses);

/// "epoch 1, step 7, event train_step_end"
std::string place_of(const RankStatus& status);

nlohmann::json to_values(const RankStatus& status);
RankStatus status_from(const nlohmann::json& values);

}  // namespace torchbus
