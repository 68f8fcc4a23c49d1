// Ranks as threads of this process, over the loopback interface.
#include <algorithm>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include <torch/torch.h>

#include <torchbus/distributed/world.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"
#include "support/free_port.hpp"
#include "support/ranks_as_threads.hpp"

using namespace torchbus;
using namespace torchbus::test;
using Catch::Matchers::EndsWith;
using Catch::Matchers::StartsWith;
using std::chrono::milliseconds;

namespace {

Ranks rank_of(int rank, int size, int port) {
    Ranks ranks;
    ranks.rank = ranks.local_rank = rank;
    ranks.world_size = ranks.local_world_size = size;
    ranks.master_port = port;
    return ranks;
}

/// What each of these ranks throws, or nothing.
std::vector<std::string> run(const std::vector<Ranks>& all, const std::function<void(World&)>& work, WorldOptions options = {}) {
    std::vector<std::string> errors(all.size());
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < all.size(); ++i)
        threads.emplace_back([&, i] {
            try {
                work(*World::join(all[i], options));
            } catch (const Error& error) {
                errors[i] = error.what();
            }
        });
    for (std::thread& thread : threads) thread.join();
    return errors;
}
std::vector<std::string> run(int size, const std::function<void(World&)>& work, WorldOptions options = {}) {
    const int port = free_port();
    std::vector<Ranks> all;
    for (int rank = 0; rank < size; ++rank) all.push_back(rank_of(rank, size, port));
    return run(all, work, options);
}

RequestSet asking(Decision decision, Request request) {
    RequestSet requests;
    requests[static_cast<std::size_t>(decision)] = std::move(request);
    return requests;
}
const std::optional<Request>& of(const RequestSet& requests, Decision decision) { return requests[static_cast<std::size_t>(decision)]; }

}  // namespace

TEMPLATE_TEST_CASE("ranks sum, broadcast and gather", "[distributed][world]", OverGloo, OverNccl) {
    const int most = TestType::most_ranks(4);
    for (int size = 1; size <= most; ++size) {
        std::vector<std::vector<double>> sums(static_cast<std::size_t>(size));
        std::vector<std::vector<at::Tensor>> tensors(sums.size()), gathered(sums.size());
        std::vector<std::vector<std::string>> texts(sums.size());
        const auto errors = run(size, [&](World& world) {
            const auto place = static_cast<std::size_t>(world.rank());
            const c10::Device device(TestType::device(world.rank()));
            const CurrentDevice current(device);
            world.use_device(device);
            sums[place] = {0.1 * (world.rank() + 1), 1.0};
            world.sum(sums[place]);
            const auto filled = [&](std::vector<std::int64_t> shape, double value) { return torch::full(shape, value, torch::TensorOptions().device(device)); };
            at::Tensor summed = filled({3}, world.rank() + 0.1);
            world.sum(summed);
            at::Tensor sent = filled({2, 2}, world.rank()), turned = filled({2, 3}, world.rank()).t(), on_cpu = torch::full({2}, world.rank());
            world.broadcast({sent, turned, on_cpu}, size - 1);
            tensors[place] = {summed.cpu(), sent.cpu(), turned.cpu(), on_cpu};
            for (const at::Tensor& one : world.gather(filled({world.rank(), 2}, world.rank()))) gathered[place].push_back(one.cpu());
            texts[place] = world.gather(std::string(static_cast<std::size_t>(world.rank()), 'x'));
            world.barrier();
        });
        CHECK(errors == std::vector<std::string>(sums.size()));
        for (std::size_t rank = 0; rank < sums.size(); ++rank) {
            CHECK(sums[rank][0] == Approx(0.05 * size * (size + 1)));
            CHECK(sums[rank] == sums[0]);
            CHECK(tensors[rank][0].equal(tensors[0][0]));
            CHECK(tensors[rank][1].eq(size - 1).all().item<bool>());
            CHECK(tensors[rank][2].eq(size - 1).all().item<bool>());
            CHECK(tensors[rank][3].eq(size - 1).all().item<bool>());
            REQUIRE(gathered[rank].size() == sums.size());
            for (std::size_t other = 0; other < sums.size(); ++other) {
                CHECK(gathered[rank][other].equal(torch::full({static_cast<std::int64_t>(other), 2}, static_cast<double>(other))));
                CHECK(texts[rank][other] == std::string(other, 'x'));
            }
        }
    }
}

TEMPLATE_TEST_CASE("what any rank asks for is agreed on by all, by the next point or at once", "[distributed][world]", OverGloo, OverNccl) {
    constexpr int kSize = 3;
    if (!fits<TestType>(kSize)) return;
    std::vector<std::vector<RequestSet>> agreed(kSize);
    const auto errors = run(kSize, [&](World& world) {
        world.use_device(c10::Device(TestType::device(world.rank())));
        const auto consensus = world.consensus();
        CHECK_NOTHROW(consensus->rank() == world.rank());
        auto& mine = agreed[static_cast<std::size_t>(world.rank())];
        const auto asks = [&](int rank, RequestSet requests) { return world.rank() == rank ? std::move(requests) : RequestSet{}; };
        mine.push_back(consensus->exchange(asks(2, asking(Decision::StopRun, {"early_stopping", "no better", 0})), Agreement::ByNextPoint));
        std::vector<double> between = {1.0};
        consensus->sum(between);
        mine.push_back(consensus->exchange(asks(1, asking(Decision::RollBack, {"nan_policy", "NaN", 0, 0, false, {1, 7, 2}})), Agreement::ByNextPoint));
        mine.push_back(consensus->exchange(world.rank() == 0 ? asking(Decision::StopRun, {"time_limit", "enough", 0}) : asks(2, asking(Decision::StopRun, {"SIGTERM", "received", 0, 143, true})), Agreement::AtOnce));
        mine.push_back(consensus->exchange({}, Agreement::AtOnce));
    });
    CHECK(errors == std::vector<std::string>(kSize));
    for (const auto& mine : agreed) {
        REQUIRE(mine.size() == 4);
        CHECK_FALSE(of(mine[0], Decision::StopRun));
        REQUIRE(of(mine[1], Decision::StopRun));
        CHECK(of(mine[1], Decision::StopRun)->requester == "early_stopping");
        CHECK(of(mine[1], Decision::StopRun)->rank == 2);
        CHECK_FALSE(of(mine[1], Decision::RollBack));
        REQUIRE(of(mine[2], Decision::RollBack));
        CHECK(of(mine[2], Decision::RollBack)->leave_out == BatchRange{1, 7, 2});
        REQUIRE(of(mine[2], Decision::StopRun));
        CHECK(of(mine[2], Decision::StopRun)->requester == "SIGTERM");
        CHECK(of(mine[2], Decision::StopRun)->exit_code == 143);
        CHECK(of(mine[2], Decision::StopRun)->rank == 2);
        for (const auto& request : mine[3]) CHECK_FALSE(request);
    }
}

TEST_CASE("who is not there is named, after the time that was waited", "[distributed][world]") {
    const WorldOptions impatient{.join_timeout = milliseconds(400)};
    const int port = free_port();
    auto errors = run({rank_of(0, 4, port), rank_of(2, 4, port)}, [](World&) {}, impatient);
    CHECK(errors[0] == "rank 0 of 4: after 0.4 s ranks 1, 3 are not there");
    CHECK(errors[1] == "rank 2 of 4: after 0.4 s ranks 1, 3 are not there");
    errors = run({rank_of(1, 2, free_port())}, [](World&) {}, impatient);
    CHECK_THAT(errors[0], StartsWith("rank 1 of 2: nobody answers at the meeting point 127.0.0.1:") && EndsWith("; rank 0 opens it, is it running, and is the address right?"));
}

TEST_CASE("ranks that do not go together are refused on all of them", "[distributed][world]") {
    const WorldOptions impatient{.join_timeout = milliseconds(2000)};
    int port = free_port();
    auto errors = run({rank_of(0, 3, port), rank_of(1, 3, port), rank_of(1, 3, port)}, [](World&) {}, impatient);
    for (const std::string& error : errors) CHECK_THAT(error, containing("rank 1 came twice: as process ") && containing(" and as process "));
    port = free_port();
    errors = run({rank_of(0, 2, port), rank_of(1, 4, port)}, [](World&) {}, impatient);
    for (const std::string& error : errors) CHECK_THAT(error, containing("expects 4 ranks, rank 0 expects 2; give all of them the same WORLD_SIZE"));
    const HeldPort taken;
    errors = run({rank_of(0, 2, taken.number)}, [](World&) {}, impatient);
    CHECK_THAT(errors[0], StartsWith("rank 0 of 2: cannot open the meeting point 127.0.0.1:" + std::to_string(taken.number)) && EndsWith("give another MASTER_PORT"));
}

TEMPLATE_TEST_CASE("sections are for one rank, for one of a node, or for rank 0 before the others", "[distributed][world]", OverGloo, OverNccl) {
    constexpr int kSize = 3;
    if (!fits<TestType>(kSize)) return;
    std::vector<Ranks> all;
    for (int rank = 0, port = free_port(); rank < kSize; ++rank) {
        all.push_back(rank_of(rank, kSize, port));
        all.back().local_rank = rank % 2;  // the third is on a second node
        all.back().local_world_size = rank == 2 ? 1 : 2;
    }
    std::mutex mutex;
    std::vector<int> first, first_of_node, order;
    const auto put_down = [&](std::vector<int>& list, int rank) {
        const std::lock_guard lock(mutex);
        list.push_back(rank);
    };
    const auto errors = run(all, [&](World& world) {
        world.use_device(c10::Device(TestType::device(world.rank())));
        world.on_first([&] { put_down(first, world.rank()); });
        world.on_first_of_node([&] { put_down(first_of_node, world.rank()); });
        world.first_then_others([&] {
            if (world.rank() == 0) std::this_thread::sleep_for(milliseconds(200));
            put_down(order, world.rank());
        });
        world.barrier();
        world.first_then_others([&] {
            if (world.rank() == 0) throw DataError("the cat sat on the keyboard");
            put_down(order, 100 + world.rank());
        });
    });
    CHECK(first == std::vector{0});
    std::ranges::sort(first_of_node);
    CHECK(first_of_node == std::vector{0, 2});
    REQUIRE(order.size() == kSize);
    CHECK(order.front() == 0);
    CHECK(errors[0] == "the cat sat on the keyboard");
    for (std::size_t rank = 1; rank < kSize; ++rank) CHECK_THAT(errors[rank], EndsWith("rank 0, whose turn it was first, failed: the cat sat on the keyboard"));
}

TEMPLATE_TEST_CASE("a collective that not all ranks call ends within the timeout", "[distributed][world]", OverGloo, OverNccl) {
    if (!fits<TestType>(2)) return;
    const auto errors = run(2, [](World& world) {
        world.use_device(c10::Device(TestType::device(world.rank())));
        std::vector<double> values = {1.0};
        if (world.rank() == 0) world.sum(values);
        else std::this_thread::sleep_for(milliseconds(1500));
    }, {.timeout = milliseconds(500)});
    CHECK_THAT(errors[0], StartsWith("rank 0 of 2: a sum of 1 number with the other ranks did not come to its end: rank 1 has not come to it: it is at its start, since "));
    CHECK(errors[1] == "");
}

TEST_CASE("ranks are told of what devices they can exchange tensors on", "[distributed][world]") {
    auto errors = run(2, [](World& world) { world.use_device(world.rank() == 0 ? c10::kCPU : c10::kMeta); });
    for (const std::string& error : errors) CHECK(error == "rank 1 is on meta, and rank 0 on cpu; give device_placement the same device on all ranks");
    errors = run(2, [](World& world) { world.use_device(c10::kMeta); });
    for (const std::string& error : errors) CHECK(error == "ranks exchange tensors on the CPU and on CUDA devices, and these are on meta; give cpu or cuda to device_placement");
    errors = run(2, [](World& world) {
        at::Tensor nowhere = torch::zeros({2}, torch::TensorOptions().device(torch::kMeta));
        world.sum(nowhere);
    });
    for (const std::string& error : errors)
        CHECK(error == "ranks are to exchange a tensor on meta, and were told of no device but the CPU; keep what is exchanged on the device of device_placement, or on the CPU");
}

TEST_CASE("a library for NCCL that cannot be loaded is named with the reason", "[distributed][nccl]") {
    if (cuda_status().devices > 0) return;
    const std::string against = against_nccl();
    CHECK_THAT(against, StartsWith("the library for NCCL cannot be loaded: lib") || containing("was built without it ("));
}
