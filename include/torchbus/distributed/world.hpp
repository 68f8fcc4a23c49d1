#pragma once
/// The processes that train together: where they meet, and what they tell each other.

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include <torchbus/consensus.hpp>
#include <torchbus/distributed/ranks.hpp>

namespace torchbus {

struct WorldOptions {
    std::chrono::milliseconds join_timeout = std::chrono::minutes(5);  ///< how long the others are waited for at the start
    std::chrono::milliseconds timeout = std::chrono::minutes(10);      ///< and within every collective from then on
    std::filesystem::path record_folder = {};  ///< where each rank writes what it has done last, when it leaves the others: rank_<n>.json; empty: nowhere
};

/// What this rank has handed over to be summed over ranks. A ring sends and receives 2 (n - 1) / n of the bytes.
struct Traffic {
    std::int64_t messages = 0, bytes = 0;
};

/// Why ranks cannot exchange tensors on CUDA devices here, apart from the devices: NCCL was not built, or cannot be loaded. Empty where they can.
std::string against_nccl();

/// All ranks, joined. A collective is called on all of them alike, in the same order; it throws DistributedError where
/// another rank is gone, fails, or does not call it within the timeout: it names that rank, where it is and why, as far as
/// that is known.
/// Thread: one at a time; the consensus has connections of its own, for the training thread.
class World : public std::enable_shared_from_this<World> {
public:
    /// Waits until all ranks are there. From here on SIGPIPE is ignored, unless somebody handles it: a rank that is gone is an error.
    /// Throws: DistributedError naming the address and the time waited; the ranks that are missing, that came twice, or that
    /// expect a world of another size; a port that is taken.
    static std::shared_ptr<World> join(const Ranks& ranks, const WorldOptions& options = {});
    /// The one that the environment describes, joined by the first who asks in this process and shared with the next; null
    /// where it describes none. Throws: as join(); ConfigError for variables that make no sense.
    static std::shared_ptr<World> of_environment(const WorldOptions& options = {});
    /// Rank 0 of so many, over c10d's fake backend: every collective ends at once, as if the others had what this one has. As
    /// long as it lives it is that of the environment: to try a composition for a large world in one process.
    static std::shared_ptr<World> imagined(int world_size);
    ~World();
    World(const World&) = delete;
    World& operator=(const World&) = delete;

    const Ranks& ranks() const;
    int rank() const { return ranks().rank; }
    int size() const { return ranks().world_size; }

    /// From here on tensors on this rank's device are exchanged, too: over NCCL, where that is CUDA's. A collective; the device
    /// may be told again. Thread: the device is the current one. Throws: DistributedError where ranks are on devices of other
    /// kinds, or cannot be connected; ConfigError for a kind that ranks cannot exchange, and where NCCL is missing.
    void use_device(c10::Device device);
    /// In place, with the same bits on all ranks. On a CUDA device this and all that follows ends in the order of its stream, and
    /// not before the call returns.
    void sum(std::span<double> values);
    void sum(at::Tensor& tensor);
    /// Rank `from`'s tensors, into those of the others.
    void broadcast(std::vector<at::Tensor> tensors, int from = 0);
    /// Every rank's, in the order of ranks; their first dimensions may differ. Shapes: [N_r, …] each.
    std::vector<at::Tensor> gather(const at::Tensor& tensor);
    std::vector<std::string> gather(std::string_view text);
    void barrier();
    Traffic traffic() const;

    /// Sections of a program that not all ranks need: only on rank 0, or on one rank of each node. No collective.
    void on_first(const std::function<void()>& section) const;
    void on_first_of_node(const std::function<void()>& section) const;
    /// On rank 0, and when it is done on all the others: data that is to be fetched once. A collective.
    /// Throws: what the section throws; on the others a DistributedError where rank 0's has failed.
    void first_then_others(const std::function<void()>& section);

    /// The event that this rank emits, and where it is: for others to tell who they wait for.
    void note(std::string_view event, std::int64_t epoch, std::int64_t step);
    /// Tells the others why this rank leaves them, and closes its connections: they fail at once, with these words. No
    /// collective is possible after it.
    void leave(std::string_view why);

    /// Decisions of all ranks: those asked for at one step are taken by all before the next one but one, and the exchange
    /// overlaps with the step between; at the end of epochs and evaluations at once.
    std::shared_ptr<Consensus> consensus();

    /// What the rooms that know c10d reach through.
    struct Groups;
    Groups& groups() { return *groups_; }

private:
    explicit World(std::unique_ptr<Groups> groups);
    std::unique_ptr<Groups> groups_;
};

}  // namespace torchbus
