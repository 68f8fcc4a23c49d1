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

/// One that takes and gives nothing any more, as TCPStore does whose host is stopped and whose socket is full.
class StoppedStore final : public c10d::HashStore {
public:
    void stop() { is_stopped_ = true; }
    void go_on() { is_stopped_ = false; }
    void set(const std::string& key, const std::vector<std::uint8_t>& data) override {
        wait_for_ever();
        c10d::HashStore::set(key, data);
    }
    std::vector<std::uint8_t> get(const std::string& key) override {
        wait_for_ever();
        return c10d::HashStore::get(key);
    }
    bool check(const std::vector<std::string>& keys) override {
        wait_for_ever();
        return c10d::HashStore::check(keys);
    }
    c10::intrusive_ptr<c10d::Store> clone() override { return c10::intrusive_ptr<StoppedStore>::unsafe_reclaim_from_nonowning(this); }

private:
    void wait_for_ever() const {
        while (is_stopped_) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    std::atomic<bool> is_stopped_ = false;
};

}  // namespace

TEST_CASE("a store that has stopped keeps nobody who tells or asks it", "[distributed][rank_watch]") {
    const auto store = c10::make_intrusive<StoppedStore>();
    const auto began = std::chrono::steady_clock::now();
    {
        RankWatch own(rank_of_two(1), {}, *store);
        own.at("train_step_end", 1, 7);
        store->stop();
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        CHECK_THAT(own.diagnosis(), containing("does not answer: rank 0, which hosts it, is stopped or cannot be reached"));
        own.last_words();
    }
    CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(15));
    store->go_on();  // for the threads that were left alone
}

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
