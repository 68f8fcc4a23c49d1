// Observers that work on a thread of their own.
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include <torchbus/bus.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"

using namespace torchbus;
using namespace std::chrono_literals;

namespace {

struct Tick {
    int number = 0;
};

int number_of(const Tick& tick) { return tick.number; }

/// A gate that a slot waits at until it is opened.
class Gate {
public:
    void open() { open_ = true; }
    void wait() const {
        while (!open_) std::this_thread::sleep_for(100us);
    }

private:
    std::atomic<bool> open_{false};
};

std::uint64_t dropped(const Bus& bus, const std::string& subscriber) {
    std::uint64_t sum = 0;
    for (const AccountingRow& row : bus.accounting())
        if (row.subscriber == subscriber) sum += row.dropped;
    return sum;
}

}  // namespace

TEST_CASE("an observer on a thread gets every snapshot in order, off the training thread", "[bus][delivery][thread]") {
    Bus bus;
    Subscriber writer = bus.subscribe("writer");
    std::vector<int> seen;
    std::atomic<bool> elsewhere{true};
    const auto here = std::this_thread::get_id();
    const Connection connection = writer.observe_on_thread<Tick>(Stage::Report, number_of, [&](int number) {
        if (std::this_thread::get_id() == here) elsewhere = false;
        seen.push_back(number);
    });
    for (int i = 0; i < 1000; ++i) bus.emit(Tick{i});
    bus.drain();
    REQUIRE(seen.size() == 1000);
    for (int i = 0; i < 1000; ++i) CHECK(seen[static_cast<std::size_t>(i)] == i);
    CHECK(elsewhere);
    CHECK(dropped(bus, "writer") == 0);
}

TEST_CASE("a snapshot is taken at the emission: what changes later is not seen", "[bus][delivery][thread]") {
    Bus bus;
    Subscriber reader = bus.subscribe("reader");
    Gate gate;
    std::vector<std::string> seen;
    std::string text = "first";
    const Connection connection = reader.observe_on_thread<Tick>(Stage::Observe, [&](const Tick&) { return text; }, [&](const std::string& taken) {
        gate.wait();
        seen.push_back(taken);
    });
    bus.emit(Tick{});
    text = "second";
    bus.emit(Tick{});
    gate.open();
    bus.drain();
    CHECK(seen == std::vector<std::string>{"first", "second"});
}

TEST_CASE("a full queue blocks the training thread until there is a place", "[bus][delivery][thread]") {
    Bus bus;
    Subscriber slow = bus.subscribe("slow", {.queue_capacity = 2, .overflow = Overflow::Block});
    Gate gate;
    std::vector<int> seen;
    const Connection connection = slow.observe_on_thread<Tick>(Stage::Observe, number_of, [&](int number) {
        gate.wait();
        seen.push_back(number);
    });
    std::thread opener([&] {
        std::this_thread::sleep_for(20ms);
        gate.open();
    });
    for (int i = 0; i < 10; ++i) bus.emit(Tick{i});  // more than fit: waits for the gate
    bus.drain();
    opener.join();
    CHECK(seen == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
    CHECK(dropped(bus, "slow") == 0);
}

TEST_CASE("a full queue drops the oldest, and counts it", "[bus][delivery][thread]") {
    Bus bus;
    Subscriber slow = bus.subscribe("slow", {.queue_capacity = 2, .overflow = Overflow::DropOldest});
    Gate gate, started;
    std::vector<int> seen;
    const Connection connection = slow.observe_on_thread<Tick>(Stage::Observe, number_of, [&](int number) {
        started.open();
        gate.wait();
        seen.push_back(number);
    });
    bus.emit(Tick{0});
    started.wait();  // 0 is being worked on, the queue is empty
    for (int i = 1; i < 6; ++i) bus.emit(Tick{i});
    gate.open();
    bus.drain();
    CHECK(seen == std::vector<int>{0, 4, 5});
    CHECK(dropped(bus, "slow") == 3);
}

TEST_CASE("coalescing keeps the newest snapshot of each connection", "[bus][delivery][thread]") {
    Bus bus;
    Subscriber slow = bus.subscribe("slow", {.overflow = Overflow::Coalesce});
    Gate gate, started;
    std::vector<int> seen, tens;
    const Connection ones = slow.observe_on_thread<Tick>(Stage::Observe, number_of, [&](int number) {
        started.open();
        gate.wait();
        seen.push_back(number);
    });
    const Connection others = slow.observe_on_thread<Tick>(Stage::Observe, [](const Tick& tick) { return tick.number * 10; },
                                                           [&](int number) { tens.push_back(number); });
    bus.emit(Tick{0});
    started.wait();
    for (int i = 1; i < 6; ++i) bus.emit(Tick{i});
    gate.open();
    bus.drain();
    CHECK(seen == std::vector<int>{0, 5});
    CHECK(tens == std::vector<int>{50});
    CHECK(dropped(bus, "slow") == 4 + 5);
}

TEST_CASE("a critical observer that throws on its thread fails the next poll point", "[bus][delivery][fault][thread]") {
    Bus bus;
    Subscriber writer = bus.subscribe("writer");
    const Connection connection = writer.observe_on_thread<Tick>(Stage::Persist, number_of, [](int) { throw std::runtime_error("the disk is full"); });
    bus.flush();
    bus.emit(Tick{});
    CHECK_THROWS_WITH(bus.drain(), "subscriber 'writer' failed on its thread at tick: the disk is full");
}

TEST_CASE("an optional observer that throws on its thread is told of, and detached after failures in a row", "[bus][delivery][fault][thread]") {
    Bus bus;
    Subscriber flaky = bus.subscribe("flaky", {.fault = Fault::Optional, .max_failures = 2});
    Subscriber listener = bus.subscribe("listener");
    std::vector<bool> failures;
    const Connection told = listener.observe<SubscriberFailed>(Stage::Observe, [&](const SubscriberFailed& event) { failures.push_back(event.detached); });
    const Connection connection = flaky.observe_on_thread<Tick>(Stage::Observe, number_of, [](int number) {
        if (number != 1) throw std::runtime_error("no");
    });
    for (int i = 0; i < 4; ++i) bus.emit(Tick{i});  // fails, works, fails, fails
    bus.drain();
    CHECK_FALSE(flaky.attached());
    CHECK(std::ranges::count(failures, true) == 1);
}

TEST_CASE("a detach works off what waits, and nothing comes after it", "[bus][delivery][thread]") {
    Bus bus;
    Subscriber writer = bus.subscribe("writer");
    std::atomic<int> seen{0};
    const Connection connection = writer.observe_on_thread<Tick>(Stage::Observe, number_of, [&](int) {
        std::this_thread::sleep_for(1ms);
        ++seen;
    });
    for (int i = 0; i < 20; ++i) bus.emit(Tick{i});
    writer.detach();
    CHECK(seen == 20);
    bus.emit(Tick{});
    bus.drain();
    CHECK(seen == 20);
}

TEST_CASE("a subscriber may detach itself from its own thread", "[bus][delivery][thread]") {
    Bus bus;
    auto subscriber = std::make_unique<Subscriber>(bus.subscribe("once"));
    std::atomic<int> seen{0};
    std::atomic<bool> left{false};
    Connections connections;
    connections += subscriber->observe_on_thread<Tick>(Stage::Observe, number_of, [&](int) {
        ++seen;
        subscriber->detach();
        std::this_thread::sleep_for(20ms);
        left = true;
    });
    bus.emit(Tick{});
    while (subscriber->attached()) std::this_thread::sleep_for(100us);
    bus.emit(Tick{});
    bus.drain();
    CHECK(seen == 1);
    subscriber.reset();
    CHECK(left);  // its end waits for the slot, though that has detached it already
}

TEST_CASE("ten thousand operations at random on several threads", "[bus][delivery][thread]") {
    Bus bus;
    std::atomic<std::int64_t> delivered{0};
    std::atomic<bool> done{false};
    const auto churn = [&](unsigned seed) {
        std::mt19937 random(seed);
        for (int i = 0; i < 2500; ++i) {
            Subscriber guest = bus.subscribe("guest-" + std::to_string(seed) + "-" + std::to_string(i),
                                             {.queue_capacity = 4, .overflow = static_cast<Overflow>(random() % 3)});
            Connections connections;
            connections += guest.observe<Tick>(Stage::Observe, [&](const Tick&) { ++delivered; });
            if (random() % 2) connections += guest.observe_on_thread<Tick>(Stage::Report, number_of, [&](int) { ++delivered; });
            if (random() % 3 == 0) guest.post(Tick{-1});
            if (random() % 4 == 0) std::this_thread::yield();
            if (random() % 2) guest.detach();
        }
    };
    std::vector<std::thread> guests;
    for (unsigned seed = 1; seed <= 4; ++seed) guests.emplace_back(churn, seed);
    std::thread waiter([&] {
        for (auto& guest : guests) guest.join();
        done = true;
    });
    std::int64_t emitted = 0;
    while (!done || emitted < 1000) {
        bus.emit(Tick{static_cast<int>(emitted++)});
        bus.flush();
    }
    waiter.join();
    bus.drain();
    CHECK(delivered > 0);
    CHECK(bus.slots().empty());
}

TEST_CASE("a subscriber may stand before another, however late it comes", "[bus]") {
    Bus bus;
    Subscriber first = bus.subscribe("first"), last = bus.subscribe("last");
    Subscriber between = bus.subscribe("between", {}, "last");
    std::vector<std::string> order;
    Connections connections;
    for (Subscriber* subscriber : {&last, &between, &first})
        connections += subscriber->observe<Tick>(Stage::Observe, [&order, id = subscriber->id()](const Tick&) { order.push_back(id); });
    bus.emit(Tick{});
    CHECK(order == std::vector<std::string>{"first", "between", "last"});
}

TEST_CASE("slots are listed in the order of their running", "[bus]") {
    Bus bus;
    Subscriber subscriber = bus.subscribe("all");
    Connections connections;
    connections += subscriber.observe<TrainStepEnd>(Stage::Report, [](const TrainStepEnd&) {});
    connections += subscriber.intercept<TrainStepStart>([](TrainStepStart&) {});
    connections += subscriber.intercept(Phase::Change, [](GradientsReady&) {});
    connections += subscriber.observe_all(Stage::Persist, [](const AnyEvent&) {});
    std::vector<std::string> listed;
    for (const ConnectedSlot& slot : bus.slots())
        listed.push_back(slot.event + " " + std::string(name_of(slot.stage)) + " " + std::string(name_of(slot.phase)) + (slot.changes ? " changes" : ""));
    CHECK(listed == std::vector<std::string>{"train_step_start transform finalize changes", "gradients_ready transform change changes",
                                             "train_step_end report finalize", "every event persist finalize"});
}

TEST_CASE("a filter goes on from what it had seen, not from where the position is", "[bus][filter]") {
    // Saved after the last step of an epoch: the position is at one epoch, and the event that is due there is still to come.
    std::map<std::string, ConnectionProgress> saved;
    for (const bool resumed : {false, true}) {
        Bus bus;
        Subscriber subscriber = bus.subscribe("saver");
        int fired = 0;
        const Connection connection = subscriber.observe<EpochCheckpoint>(Stage::Persist, [&](const EpochCheckpoint&) { ++fired; }, every("1epoch"));
        bus.moment().length = {3, 11, {}};
        if (!resumed) bus.rebase_filters();
        bus.moment().position.in_epoch.micro_batch = 11;
        if (resumed) {
            bus.rebase_filters();
            bus.restore_connection_progress(saved);
        }
        saved = bus.connection_progress();
        bus.moment().position.in_epoch = {};
        bus.moment().position.epoch = 1;
        bus.emit(EpochCheckpoint{bus.moment().position});
        CHECK(fired == 1);
    }
}

TEST_CASE("emissions counted for a filter are saved and restored", "[bus][filter]") {
    const auto fires = [](std::int64_t seen_before) {
        Bus bus;
        Subscriber subscriber = bus.subscribe("counter");
        std::vector<int> fired;
        const Connection connection = subscriber.observe<Tick>(Stage::Observe, [&](const Tick& tick) { fired.push_back(tick.number); }, every(3));
        bus.restore_connection_progress({{"counter/tick/0", {seen_before}}, {"gone/tick/0", {5}}});
        for (int i = 1; i <= 4; ++i) bus.emit(Tick{i});
        CHECK(bus.connection_progress().at("counter/tick/0").emissions == seen_before + 4);
        return fired;
    };
    CHECK(fires(0) == std::vector<int>{3});
    CHECK(fires(1) == std::vector<int>{2});
    CHECK(fires(2) == std::vector<int>{1, 4});
}
