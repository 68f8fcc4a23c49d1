// Cost of an emission by number of slots, accounting on. Prints nanoseconds: median and spread of many rounds.
// Run: build/release/test/bench/bus_bench
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include <torchbus/bus.hpp>

using namespace torchbus;

namespace {

double nanoseconds_per_emission(Bus& bus, int emissions) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < emissions; ++i) bus.emit([&] { return TrainEpochStart{bus.moment().position}; });
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() / emissions;
}

struct Spread {
    double low, median, high;
};
Spread spread_of(std::vector<double> values) {
    std::ranges::sort(values);
    return {values[values.size() / 10], values[values.size() / 2], values[values.size() * 9 / 10]};
}

}  // namespace

int main() {
    std::printf("%6s %12s %12s %14s %16s\n", "slots", "median ns", "10 % .. 90 %", "", "ns a slot more");
    double with_one = 0;
    for (const int slots : {0, 1, 4, 16, 64, 256}) {
        Bus bus;
        Subscriber subscriber = bus.subscribe("bench");
        std::vector<Connection> connections;
        std::int64_t calls = 0;
        for (int i = 0; i < slots; ++i)
            connections.push_back(subscriber.observe<TrainEpochStart>(Stage::Observe, [&](const TrainEpochStart&) { ++calls; }));
        const int emissions = std::max(2000, 2'000'000 / (1 + 8 * slots));
        std::vector<double> rounds;
        for (int round = 0; round < 41; ++round) rounds.push_back(nanoseconds_per_emission(bus, emissions));
        const Spread spread = spread_of(rounds);
        if (slots == 1) with_one = spread.median;
        std::printf("%6d %12.1f %12.1f .. %-10.1f", slots, spread.median, spread.low, spread.high);
        if (slots > 1) std::printf(" %16.1f", (spread.median - with_one) / (slots - 1));
        std::printf("\n");
    }
}
