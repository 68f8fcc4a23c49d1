#pragma once
/// How a decision becomes the decision of all ranks. The identity by default; data parallel installs the real one.

#include <span>

#include <torchbus/decision.hpp>

namespace torchbus {

class Consensus {
public:
    virtual ~Consensus() = default;
    /// Called at every decision point, on all ranks alike. Gives this rank's requests and returns what all ranks
    /// have agreed on by now; an implementation may agree one decision point later, so that the exchange overlaps
    /// with a step. Rank: a collective.
    virtual RequestSet exchange(RequestSet local) { return local; }
    /// Sums values over ranks, in place. Rank: a collective.
    virtual void sum(std::span<double> /*values*/) {}
    virtual int rank() const { return 0; }
    virtual int world_size() const { return 1; }
};

}  // namespace torchbus
