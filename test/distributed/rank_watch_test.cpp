// What a rank on a device is told when another one leaves: there no connection closes.
#include <atomic>
#include <fstream>
#include <thread>

#include <nlohmann/json.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "../../src/distributed/rank_watch.hpp"
#include "support/catch.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

Ranks rank_of_two(int rank) {
    Ranks ranks;
    ranks.rank = rank;
    ranks.world_size = 2;
    return ranks;
}

bool comes_true(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!condition() && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return condition();
}

}  // namespace

TEST_CASE("what waits for a device is ended once, when another rank has left", "[distributed][rank_watch]") {
    const auto store = c10::make_intrusive<c10d::HashStore>();
    const TemporaryFolder folder("rank_watch");
    RankWatch own(rank_of_two(0), {.record_folder = folder.path()}, *store), other(rank_of_two(1), {}, *store);
    std::atomic<int> ended = 0;
    own.end_on_loss([&] { ++ended; }, [] { return std::string(R"({"entries":[1,2]})"); });
    other.at("train_step_end", 1, 7);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    CHECK(ended == 0);
    other.leave("the cat sat on the keyboard");
    CHECK(comes_true([&] { return ended > 0; }));
    CHECK_THAT(own.diagnosis(), containing("rank 1 failed at epoch 1, step 7, event train_step_end: the cat sat on the keyboard"));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    CHECK(ended == 1);
    own.write_record("the other has gone");
    const auto record = nlohmann::json::parse(std::ifstream(folder / "rank_0.json"));
    CHECK(record.at("flight_record_of_device").at("entries") == nlohmann::json{1, 2});
}
