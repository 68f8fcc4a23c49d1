#include <thread>

#include <nlohmann/json.hpp>
#include <torchbus/bus.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"

using namespace torchbus;

namespace {

struct SampleDrawn {
    int value = 0;
};
void to_json(nlohmann::json& out, const SampleDrawn& event) { out = {{"value", event.value}}; }

TrainEpochStart epoch_start(Bus& bus) { return {bus.moment().position}; }

}  // namespace

TEST_CASE("slots run by stage, then by subscriber, then by connection", "[bus]") {
    Bus bus;
    std::string order;
    auto first = bus.subscribe("first"), second = bus.subscribe("second");
    const auto append = [&](char c) { return [&order, c](const TrainEpochStart&) { order += c; }; };
    const auto persist = first.observe<TrainEpochStart>(Stage::Persist, append('6'));
    const auto report = first.observe<TrainEpochStart>(Stage::Report, append('5'));
    const auto late = second.observe<TrainEpochStart>(Stage::Observe, append('4'));
    const auto early = first.observe<TrainEpochStart>(Stage::Observe, append('2'));
    const auto early_again = first.observe<TrainEpochStart>(Stage::Observe, append('3'));
    const auto change = second.intercept<TrainEpochStart>([&](TrainEpochStart&) { order += '1'; });
    bus.emit(epoch_start(bus));
    CHECK(order == "123456");
}

TEST_CASE("the phases of GradientsReady run in their order, whoever connected first", "[bus]") {
    Bus bus;
    std::string order;
    auto subscriber = bus.subscribe("s");
    const auto decide = subscriber.intercept(Phase::Decide, [&](GradientsReady&) { order += 'd'; });
    const auto change = subscriber.intercept(Phase::Change, [&](GradientsReady&) { order += 'c'; });
    const auto inspect = subscriber.intercept(Phase::Inspect, [&](GradientsReady&) { order += 'i'; });
    const auto finalize = subscriber.intercept(Phase::Finalize, [&](GradientsReady&) { order += 'f'; });
    const Update update;
    const Window window;
    const GradientsView gradients({});
    bus.emit(GradientsReady{{}, update, window, gradients});
    CHECK(order == "ficd");
}

TEST_CASE("an event nobody listens to is not even made", "[bus]") {
    Bus bus;
    int made = 0;
    const auto emit = [&] { bus.emit([&] { ++made; return epoch_start(bus); }); };
    emit();
    CHECK(made == 0);
    auto subscriber = bus.subscribe("s");
    {
        const auto connection = subscriber.observe<TrainEpochStart>(Stage::Observe, [](const TrainEpochStart&) {});
        emit();
        CHECK(made == 1);
        CHECK(bus.wants<TrainEpochStart>());
    }
    emit();
    CHECK(made == 1);
    CHECK_FALSE(bus.wants<TrainEpochStart>());
}

TEST_CASE("a critical observer that throws fails the emission after the others were served", "[bus][fault]") {
    Bus bus;
    int served = 0;
    auto bad = bus.subscribe("bad"), good = bus.subscribe("good");
    const auto throws = bad.observe<TrainEpochStart>(Stage::Observe, [](const TrainEpochStart&) { throw std::runtime_error("disk on fire"); });
    const auto serves = good.observe<TrainEpochStart>(Stage::Persist, [&](const TrainEpochStart&) { ++served; });
    bus.moment().position.step = 7;
    try {
        bus.emit(epoch_start(bus));
        FAIL("the emission must fail");
    } catch (const SubscriberError& error) {
        CHECK(std::string(error.what()) == "subscriber 'bad' failed at train_epoch_start (epoch 0, step 7): disk on fire");
        CHECK(error.subscriber == "bad");
        CHECK(error.event == "train_epoch_start");
        CHECK_THROWS_WITH(std::rethrow_if_nested(error), "disk on fire");
    }
    CHECK(served == 1);
}

TEST_CASE("an interceptor that throws ends the emission: nobody sees a half-changed event", "[bus][fault]") {
    Bus bus;
    int seen = 0;
    auto bad = bus.subscribe("bad"), good = bus.subscribe("good");
    const auto throws = bad.intercept<TrainEpochStart>([](TrainEpochStart&) { throw std::runtime_error("no"); });
    const auto sees = good.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) { ++seen; });
    CHECK_THROWS_AS(bus.emit(epoch_start(bus)), SubscriberError);
    CHECK(seen == 0);
}

TEST_CASE("an optional observer is told of, and detached after failures in a row", "[bus][fault]") {
    Bus bus;
    int calls = 0;
    std::vector<std::string> told;
    auto bad = bus.subscribe("bad", {Fault::Optional, 2}), ear = bus.subscribe("ear");
    const auto throws = bad.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) { ++calls; throw std::runtime_error("no"); });
    const auto hears = ear.observe<SubscriberFailed>(Stage::Observe, [&](const SubscriberFailed& event) {
        told.push_back(event.id + " " + event.event + " " + event.error + (event.detached ? " detached" : ""));
    });
    for (int i = 0; i < 4; ++i) bus.emit(epoch_start(bus));
    CHECK(calls == 2);
    CHECK(told == std::vector<std::string>{"bad train_epoch_start no", "bad train_epoch_start no detached"});
    CHECK_FALSE(bad.attached());
}

TEST_CASE("failures in a row are a slot's own: a healthy neighbour does not hide them", "[bus][fault]") {
    Bus bus;
    int calls = 0;
    auto subscriber = bus.subscribe("half", {Fault::Optional, 3});
    const auto bad = subscriber.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) { ++calls; throw std::runtime_error("no"); });
    const auto good = subscriber.observe<TrainEpochStart>(Stage::Report, [](const TrainEpochStart&) {});
    for (int i = 0; i < 9; ++i) bus.emit(epoch_start(bus));
    CHECK(calls == 3);
}

TEST_CASE("a wrapper that fails while leaving is named, and the others leave", "[bus][wrapper]") {
    Bus bus;
    bool left = false;
    auto subscriber = bus.subscribe("clumsy");
    const auto outer = subscriber.around<Backward>([](const Backward&) {}, [&] { left = true; });
    const auto inner = subscriber.around<Backward>([](const Backward&) {}, [] { throw std::runtime_error("stuck"); });
    SpanGuard guard;
    bus.enter(guard, Backward{});
    CHECK_THROWS_WITH(guard.close(), "subscriber 'clumsy' failed leaving backward: stuck");
    CHECK(left);
}

TEST_CASE("a detach from another thread waits until a wrapper has left", "[bus][wrapper][thread]") {
    Bus bus;
    auto subscriber = bus.subscribe("s");
    std::atomic<bool> left{false}, returned_too_early{false};
    const auto wrapper = subscriber.around<Backward>([](const Backward&) {}, [&] { left = true; });
    SpanGuard guard;
    bus.enter(guard, Backward{});
    std::thread detacher([&] {
        subscriber.detach();
        returned_too_early = !left;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    guard.close();
    detacher.join();
    CHECK_FALSE(returned_too_early);
}

TEST_CASE("a second detach waits like the first", "[bus][thread]") {
    Bus bus;
    auto subscriber = bus.subscribe("s");
    std::atomic<bool> detached{false}, left{false}, returned_too_early{false};
    auto connection = subscriber.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) {
        subscriber.detach();  // its own slot: does not wait
        detached = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        left = true;
    });
    std::thread other([&] {
        while (!detached) std::this_thread::yield();
        connection.disconnect();
        returned_too_early = !left;
    });
    bus.emit(epoch_start(bus));
    other.join();
    CHECK_FALSE(returned_too_early);
}

TEST_CASE("what a task queues waits for the next flush", "[bus]") {
    Bus bus;
    auto subscriber = bus.subscribe("heart");
    bus.flush();
    int beats = 0;
    const auto beat = subscriber.observe<SampleDrawn>(Stage::Observe, [&](const SampleDrawn&) { ++beats; subscriber.post(SampleDrawn{}); });
    subscriber.post(SampleDrawn{});
    for (int i = 1; i <= 3; ++i) {
        bus.flush();
        CHECK(beats == i);
    }
}

TEST_CASE("a filter connected from another thread starts at the next poll point", "[bus][filter][thread]") {
    Bus bus;
    bus.moment().position.step = 5;
    bus.emit(epoch_start(bus));
    auto subscriber = bus.subscribe("s");
    auto keep = subscriber.observe<TrainEpochStart>(Stage::Observe, [](const TrainEpochStart&) {});
    bus.emit(epoch_start(bus));
    int calls = 0;
    Connection connection;
    std::thread([&] { connection = subscriber.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) { ++calls; }, every(5)); }).join();
    bus.emit(epoch_start(bus));
    bus.flush();
    for (int step = 6; step <= 10; ++step) {
        bus.moment().position.step = step;
        bus.emit(epoch_start(bus));
    }
    CHECK(calls == 1);  // at 10, not at once
}

TEST_CASE("a detached subscriber cannot connect, and a tap is no interceptor", "[bus]") {
    Bus bus;
    auto subscriber = bus.subscribe("s");
    CHECK_THROWS_WITH(subscriber.observe_all(Stage::Transform, [](const AnyEvent&) {}), Catch::Matchers::StartsWith("subscriber 's': an observer of all events connects in stage"));
    subscriber.detach();
    CHECK_THROWS_WITH(subscriber.observe_all(Stage::Observe, [](const AnyEvent&) {}), "subscriber 's' is detached and cannot connect");
}

TEST_CASE("RunClosed is heard by everyone, whatever throws", "[bus][fault]") {
    Bus bus;
    int heard = 0;
    auto bad = bus.subscribe("bad"), good = bus.subscribe("good");
    const auto throws = bad.intercept<RunClosed>([](RunClosed&) { throw std::runtime_error("no"); });
    const auto hears = good.observe<RunClosed>(Stage::Observe, [&](const RunClosed&) { ++heard; });
    const RunResult result;
    bus.emit_to_everyone(RunClosed{{}, result});
    CHECK(heard == 1);
}

TEST_CASE("wrappers leave in reverse order, also when one throws on entering", "[bus][wrapper]") {
    Bus bus;
    std::string order;
    auto subscriber = bus.subscribe("s");
    const auto outer = subscriber.around<Backward>([&](const Backward&) { order += "A"; }, [&] { order += "a"; });
    const auto inner = subscriber.around<Backward>([&](const Backward&) { order += "B"; }, [&] { order += "b"; });
    {
        SpanGuard guard;
        bus.enter(guard, Backward{});
        order += "|";
    }
    CHECK(order == "AB|ba");
    order.clear();
    const auto broken = subscriber.around<Backward>([&](const Backward&) { throw std::runtime_error("no"); }, [&] { order += "c"; });
    {
        SpanGuard guard;
        CHECK_THROWS_AS(bus.enter(guard, Backward{}), SubscriberError);
    }
    CHECK(order == "ABba");  // what was entered is left; what failed to enter is not
}

TEST_CASE("a wrapper that is detached within its span still leaves", "[bus][wrapper]") {
    Bus bus;
    int left = 0;
    auto subscriber = bus.subscribe("s");
    auto connection = subscriber.around<Backward>([](const Backward&) {}, [&] { ++left; });
    {
        SpanGuard guard;
        bus.enter(guard, Backward{});
        connection.disconnect();
        subscriber.detach();
    }
    CHECK(left == 1);
}

TEST_CASE("a slot connected during an emission first runs at the next one", "[bus]") {
    Bus bus;
    int late_calls = 0;
    auto subscriber = bus.subscribe("s");
    Connections connections;
    bool connected = false;
    connections += subscriber.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) {
        if (std::exchange(connected, true)) return;
        connections += subscriber.observe<TrainEpochStart>(Stage::Persist, [&](const TrainEpochStart&) { ++late_calls; });
    });
    bus.emit(epoch_start(bus));
    CHECK(late_calls == 0);
    bus.emit(epoch_start(bus));
    CHECK(late_calls == 1);
}

TEST_CASE("a slot may disconnect itself, and one that comes later, during an emission", "[bus]") {
    Bus bus;
    int own = 0, later = 0;
    auto subscriber = bus.subscribe("s");
    Connection mine, other;
    mine = subscriber.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) { ++own; other.disconnect(); mine.disconnect(); });
    other = subscriber.observe<TrainEpochStart>(Stage::Report, [&](const TrainEpochStart&) { ++later; });
    bus.emit(epoch_start(bus));
    bus.emit(epoch_start(bus));
    CHECK(own == 1);
    CHECK(later == 0);
}

TEST_CASE("a tap may drop itself within its own slot", "[bus]") {
    Bus bus;
    auto subscriber = bus.subscribe("s");
    std::string seen;
    Connection tap;
    tap = subscriber.observe_all(Stage::Observe, [&, big = std::string(100, 'x')](const AnyEvent& event) {
        tap.disconnect();
        seen += event.name() + big.substr(0, 1);
    });
    bus.emit(epoch_start(bus));
    bus.emit(epoch_start(bus));
    CHECK(seen == "train_epoch_startx");
}

TEST_CASE("detaching from another thread waits for the slot that runs", "[bus][thread]") {
    Bus bus;
    auto subscriber = bus.subscribe("slow");
    std::atomic<bool> entered{false}, left{false}, left_before_detach_returned{false};
    const auto connection = subscriber.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) {
        entered = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        left = true;
    });
    std::thread detacher([&] {
        while (!entered) std::this_thread::yield();
        subscriber.detach();
        left_before_detach_returned = left.load();
    });
    bus.emit(epoch_start(bus));
    detacher.join();
    CHECK(left_before_detach_returned);
}

TEST_CASE("connecting, disconnecting and emitting on several threads lose nothing", "[bus][thread]") {
    Bus bus;
    std::atomic<bool> stop{false};
    std::int64_t steady_calls = 0;
    auto steady = bus.subscribe("steady");
    const auto connection = steady.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) { ++steady_calls; });
    std::vector<std::thread> threads;
    for (int t = 0; t < 2; ++t)
        threads.emplace_back([&, t] {
            for (int i = 0; !stop; ++i) {
                auto guest = bus.subscribe("guest " + std::to_string(t) + " " + std::to_string(i));
                auto calls = std::make_unique<int>(0);
                const auto slot = guest.observe<TrainEpochStart>(Stage::Report, [&calls](const TrainEpochStart&) { ++*calls; });
                std::this_thread::yield();
                guest.detach();
                calls.reset();  // no slot may run any more
            }
        });
    for (int i = 0; i < 3000; ++i) {
        bus.emit(epoch_start(bus));
        bus.flush();
    }
    stop = true;
    for (auto& thread : threads) thread.join();
    CHECK(steady_calls == 3000);
}

TEST_CASE("a user's own event needs no registration, and streams if it has a to_json", "[bus]") {
    Bus bus;
    auto sender = bus.subscribe("sender"), receiver = bus.subscribe("receiver");
    int sum = 0;
    nlohmann::json streamed;
    const auto typed = receiver.observe<SampleDrawn>(Stage::Observe, [&](const SampleDrawn& event) { sum += event.value; });
    const auto tap = receiver.observe_all(Stage::Persist, [&](const AnyEvent& event) {
        nlohmann::json data;
        if (event.has_json()) event.write_json(data);
        streamed = {{event.name(), data}};
    });
    sender.emit(SampleDrawn{5});
    CHECK(sum == 5);
    CHECK(streamed == nlohmann::json{{"sample_drawn", {{"value", 5}}}});
    sender.post(SampleDrawn{6});
    CHECK(sum == 5);
    bus.flush();
    CHECK(sum == 11);
}

TEST_CASE("every(n) of a user's own event counts its emissions", "[bus][filter]") {
    Bus bus;
    auto subscriber = bus.subscribe("s");
    std::vector<int> seen;
    const auto connection = subscriber.observe<SampleDrawn>(Stage::Observe, [&](const SampleDrawn& event) { seen.push_back(event.value); }, every(3));
    for (int i = 1; i <= 10; ++i) subscriber.emit(SampleDrawn{i});
    CHECK(seen == std::vector<int>{3, 6, 9});
}

TEST_CASE("two subscribers of one id are refused; an id is free again after a detach", "[bus]") {
    Bus bus;
    auto first = bus.subscribe("metrics");
    CHECK_THROWS_WITH(bus.subscribe("metrics"), "two subscribers have the id 'metrics'; give one of them an id of its own");
    first.detach();
    CHECK_NOTHROW(bus.subscribe("metrics"));
}

TEST_CASE("an observer cannot connect in stage Transform", "[bus]") {
    Bus bus;
    auto subscriber = bus.subscribe("s");
    CHECK_THROWS_WITH(subscriber.observe<TrainEpochStart>(Stage::Transform, [](const TrainEpochStart&) {}),
                      "subscriber 's': an observer of train_epoch_start connects in stage Observe, Report or Persist; "
                      "use intercept() to change an event");
}

TEST_CASE("accounting names every subscriber and event, detached ones included", "[bus][accounting]") {
    Bus bus;
    auto slow = bus.subscribe("slow"), fast = bus.subscribe("fast");
    const auto slow_slot = slow.observe<TrainEpochStart>(Stage::Observe, [](const TrainEpochStart&) { std::this_thread::sleep_for(std::chrono::milliseconds(5)); });
    const auto fast_slot = fast.observe<TrainEpochStart>(Stage::Observe, [](const TrainEpochStart&) {});
    for (int i = 0; i < 3; ++i) bus.emit(epoch_start(bus));
    slow.detach();
    const auto rows = bus.accounting();
    REQUIRE(rows.size() == 2);
    CHECK(rows[0].subscriber == "slow");
    CHECK(rows[0].event == "train_epoch_start");
    CHECK(rows[0].calls == 3);
    CHECK(rows[0].seconds > 0.015 * 0.9);
    CHECK(rows[1].seconds < rows[0].seconds);
}
