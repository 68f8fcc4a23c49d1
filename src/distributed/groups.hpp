#pragma once
/// The c10d side of a World. Only this room includes c10d.

#include <array>
#include <atomic>
#include <string>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <torchbus/distributed/world.hpp>
#include <torchbus/error.hpp>

#include "nccl_library.hpp"
#include "rank_watch.hpp"

namespace torchbus {

/// Whether somebody asks for decisions, as a sum of gradients carries it along: a message less a step.
struct Ballot {
    std::array<float, kDecisionCount> own{};  ///< what this rank asks for
    bool was_carried = false;                 ///< by a sum since it was last looked at
    bool is_anything_asked = false;           ///< on any rank, as that sum says
};

struct World::Groups {
    Ranks ranks;
    WorldOptions options;
    c10::intrusive_ptr<c10d::Store> store;           ///< of this start of this run only
    c10::intrusive_ptr<c10d::ProcessGroup> data;     ///< gradients, broadcasts, gathering
    c10::intrusive_ptr<c10d::Backend> data_backend;  ///< the same, without the dispatcher
    c10::intrusive_ptr<c10d::Backend> control;       ///< decisions and sums of numbers, which may overlap with the others
    c10::intrusive_ptr<c10d::Backend> device_backend;  ///< of tensors on this rank's device, where it has one beside the CPU
    c10::Device device = c10::kCPU;
    const NcclModule* nccl = nullptr;                  ///< where that device is CUDA's
    Ballot ballot;
    std::unique_ptr<RankWatch> watch;                ///< where there are others
    std::atomic<std::int64_t> messages{0}, bytes{0}; ///< of sums, since the world was joined
};

[[noreturn]] void fail_collective(World::Groups& world, std::string_view what, const std::exception& error);

/// Waits for what was begun, and turns what c10d throws into a DistributedError that says what was under way, and who is to blame.
template <class Call>
void awaited(World::Groups& world, std::string_view what, Call&& call) {
    try {
        call();
    } catch (const DistributedError&) {
        throw;
    } catch (const std::exception& error) {
        fail_collective(world, what, error);
    }
}

/// Begins a collective, and may wait for it.
template <class Call>
void collective(World::Groups& world, std::string_view what, Call&& call) {
    if (world.watch) world.watch->begin(what);
    awaited(world, what, std::forward<Call>(call));
}

/// Who exchanges a tensor: it depends on where that is. Throws: ConfigError for one on a device that this world was not told of.
c10d::Backend& backend_of(World::Groups& world, const at::Tensor& tensor);

/// Every rank's, of one shape; their numbers.
std::vector<at::Tensor> gather_equal(World::Groups& world, c10d::Backend& group, at::Tensor own);
std::vector<std::int64_t> gather_numbers(World::Groups& world, c10d::Backend& group, std::int64_t own);
/// For World::traffic().
void count_sum(World::Groups& world, const at::Tensor& values);
/// Sums over ranks, in place.
void sum_over(World::Groups& world, at::Tensor values);
void sum_over(World::Groups& world, c10d::Backend& group, std::span<double> values);
/// Every rank's bytes, in the order of ranks.
std::vector<std::string> gather_over(World::Groups& world, c10d::Backend& group, std::string_view text);
/// The same on rank 0; on the others only their own.
std::vector<std::string> gather_on_first(World::Groups& world, c10d::Backend& group, std::string text);
/// Rank 0's bytes, on all.
std::string broadcast_over(World::Groups& world, c10d::Backend& group, std::string text);
/// Of rank 0's texts, one a rank, this rank's. The others give none.
std::string scatter_over(World::Groups& world, c10d::Backend& group, std::vector<std::string> texts);
/// Rank `from`'s tensors, into those of the others: one message for each type and device.
void broadcast_over(World::Groups& world, std::vector<at::Tensor> tensors, int from);

std::shared_ptr<Consensus> make_consensus(std::shared_ptr<World> world);

/// Delivers to each rank its part of what `of_first` reads on rank 0; on the others that is none.
std::unique_ptr<Loader> make_dispatching_loader(std::shared_ptr<World> world, std::unique_ptr<Loader> of_first);

}  // namespace torchbus
