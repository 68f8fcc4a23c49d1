// Shows the bus alone: a subscriber, an observer with a filter, an event of one's own, and the accounting.
// Run: build/release/examples/01_hello_bus
// Last line: greeter spent its time in 4 calls
#include <iostream>

#include <torchbus/bus.hpp>

struct Greeting {  // an event is a plain struct; nothing need be registered
    std::string text;
};

int main() {
    torchbus::Bus bus;
    auto greeter = bus.subscribe("greeter");
    auto speaker = bus.subscribe("speaker");

    const auto every_greeting = greeter.observe<Greeting>(torchbus::Stage::Observe, [](const Greeting& greeting) {
        std::cout << "heard: " << greeting.text << '\n';
    });
    const auto every_third = greeter.observe<Greeting>(torchbus::Stage::Report, [](const Greeting& greeting) {
        std::cout << "every third one: " << greeting.text << '\n';
    }, torchbus::every(3));

    for (const char* text : {"good morning", "good day", "good evening"}) speaker.emit(Greeting{text});

    std::uint64_t calls = 0;
    for (const auto& row : bus.accounting()) calls += row.calls;
    std::cout << "greeter spent its time in " << calls << " calls\n";
}
