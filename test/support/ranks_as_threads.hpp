#pragma once
/// Ranks as threads of one process, over the loopback interface: with their tensors on the CPU, or each with a CUDA device.

#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <thread>
#include <vector>

#include <torchbus/device.hpp>
#include <torchbus/distributed/world.hpp>

#include "free_port.hpp"

namespace torchbus::test {

/// What ranks exchange tensors over, as the type of a TEMPLATE_TEST_CASE: tests that exchange tensors over ranks run over both.
struct OverGloo {
    static std::string device(int /*rank*/) { return "cpu"; }
    static int most_ranks(int wanted) { return wanted; }
};
struct OverNccl {
    static std::string device(int rank) { return "cuda:" + std::to_string(rank); }
    /// A rank takes a device. Says why, where there are fewer.
    static int most_ranks(int wanted) {
        static const CudaStatus kCuda = cuda_status();
        static const std::string kAgainst = kCuda.devices > 0 ? against_nccl() : "";
        const int most = kAgainst.empty() ? std::min(wanted, kCuda.devices) : 0;
        if (most < wanted)
            std::cout << "SKIPPED: over NCCL up to " << wanted << " ranks want as many CUDA devices; " << (most > 0 ? "there are " + std::to_string(most) : kAgainst.empty() ? kCuda.against : kAgainst) << '\n';
        return most;
    }
};
/// Whether a test of so many ranks can run. Says why it cannot.
template <class Over>
bool fits(int ranks) {
    return Over::most_ranks(ranks) == ranks;
}

/// What `work` returns on each of `size` ranks. Throws: what one of them throws.
template <class Result>
std::vector<Result> on_ranks(int size, const std::function<Result(const std::shared_ptr<World>&)>& work) {
    std::vector<Result> results(static_cast<std::size_t>(size));
    std::vector<std::exception_ptr> failures(results.size());
    std::vector<std::thread> threads;
    const int port = free_port();
    for (int rank = 0; rank < size; ++rank)
        threads.emplace_back([&, rank] {
            const auto place = static_cast<std::size_t>(rank);
            try {
                Ranks ranks;
                ranks.rank = ranks.local_rank = rank;
                ranks.world_size = ranks.local_world_size = size;
                ranks.master_port = port;
                results[place] = work(World::join(ranks, {.timeout = std::chrono::seconds(20)}));
            } catch (...) {
                failures[place] = std::current_exception();
            }
        });
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& failure : failures)
        if (failure) std::rethrow_exception(failure);
    return results;
}

}  // namespace torchbus::test
