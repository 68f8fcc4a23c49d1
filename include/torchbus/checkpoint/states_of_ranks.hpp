#pragma once
/// A training state of several ranks: what differs between them lies beside rank 0's parts, under the name of its rank.

#include <string>
#include <string_view>
#include <vector>

#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/consensus.hpp>

namespace torchbus {

/// Every part of a run as it is now, as capture() has it, on rank 0; nothing on the others. A part that ranks have another
/// of, such as generators, is there for each; an optimizer's state that ranks hold shards of is put together. The model is
/// taken to be the same on all. Rank: a collective. Throws: DistributedError where shards do not make one state.
TrainingState capture_over_ranks(const RunState& run, Consensus& consensus, bool copied);

/// Where `rank`'s own state of a part lies: rank.1.generators. Rank 0's is the part itself.
std::string part_of_rank(std::string_view part, int rank);
bool is_part_of_rank(std::string_view part);

/// Each rank's state of a part, of a run of `world_size` ranks; those whose own is not there had rank 0's.
std::vector<SavedState> states_of_ranks(const TrainingState& saved, const std::string& part, int world_size);

}  // namespace torchbus
