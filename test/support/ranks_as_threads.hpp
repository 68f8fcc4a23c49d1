#pragma once
/// Ranks as threads of one process, over the loopback interface.

#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <torchbus/distributed/world.hpp>

#include "free_port.hpp"

namespace torchbus::test {

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
