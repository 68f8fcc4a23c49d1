#pragma once
/// How a decision becomes the decision of all ranks. The identity by default; data parallel installs the real one.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

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
    /// Whether all take as many samples of a batch that cannot be divided evenly: those that are missing are samples from
    /// the beginning of the epoch, which train, and do not count as valid. Otherwise some take one sample less.
    bool even = false;
};

class Loader;

class Consensus {
public:
    virtual ~Consensus() = default;
    /// Called at every decision point, on all ranks alike. Gives this rank's requests and returns what all ranks
    /// have agreed on by now. Rank: a collective.
    virtual RequestSet exchange(RequestSet local, Agreement /*when*/) { return local; }
    /// Sums values over ranks, in place. Rank: a collective.
    virtual void sum(std::span<double> /*values*/) {}
    /// Every rank's bytes in the order of ranks, on rank 0; on the others only their own. Rank: a collective.
    virtual std::vector<std::string> gather(std::string own) { return {std::move(own)}; }
    /// Rank 0's bytes, on all. Rank: a collective.
    virtual std::string broadcast(std::string own) { return own; }
    virtual int rank() const { return 0; }
    virtual int world_size() const { return 1; }
    virtual Shard shard() const { return {}; }
    /// What delivers to each rank its part of what rank 0's loader reads; the other ranks give none.
    virtual std::unique_ptr<Loader> dispatch(std::unique_ptr<Loader> of_first);
};

}  // namespace torchbus
