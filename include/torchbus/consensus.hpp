#pragma once
/// How a decision becomes the decision of all ranks. The identity by default; data parallel installs the real one.

#include <cstdint>
#include <span>

#include <torchbus/decision.hpp>

namespace torchbus {

/// When what is asked for at a decision point is taken.
enum class Agreement : std::uint8_t {
    AtOnce,
    ByNextPoint,  ///< at the next decision point at the latest, so that the exchange may overlap with a step
};

/// Which part of every batch of the data this process takes: all of it, or that of its rank.
struct Shard {
    std::int64_t index = 0, count = 1;
};

class Consensus {
public:
    virtual ~Consensus() = default;
    /// Called at every decision point, on all ranks alike. Gives this rank's requests and returns what all ranks
    /// have agreed on by now. Rank: a collective.
    virtual RequestSet exchange(RequestSet local, Agreement /*when*/) { return local; }
    /// Sums values over ranks, in place. Rank: a collective.
    virtual void sum(std::span<double> /*values*/) {}
    virtual int rank() const { return 0; }
    virtual int world_size() const { return 1; }
    virtual Shard shard() const { return {}; }
};

}  // namespace torchbus
