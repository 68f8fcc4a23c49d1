// A program outside of torchbus's build: it subscribes to an event of its own, emits it, and makes a trainer fail.
#include <cstdio>

#include <torchbus/bus.hpp>
#include <torchbus/trainer.hpp>

struct Greeting {
    int value;
};

int main() {
    torchbus::Bus bus;
    torchbus::Subscriber subscriber = bus.subscribe("outside");
    const auto connection = subscriber.observe<Greeting>(
        torchbus::Stage::Observe, [](const Greeting& event) { std::printf("outside heard %d\n", event.value); });
    subscriber.emit(Greeting{42});
    try {
        torchbus::Trainer trainer({});
    } catch (const std::exception& error) {
        std::printf("outside caught: %s\n", error.what());
    }
}
