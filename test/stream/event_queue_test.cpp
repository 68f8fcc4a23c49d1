// What waits for a sink, with writers and sinks that are slow, fail, and take a part.
#include <atomic>
#include <stdexcept>
#include <string>

#include "../../src/stream/event_queue.hpp"

#include "support/catch.hpp"

using namespace torchbus;

namespace {

constexpr std::chrono::milliseconds kPace{1};

/// A record is one letter; its text is as many of them as `length`.
EventQueue::Write letters(std::size_t length) {
    return [length](std::string_view records, std::string& text) {
        text.append(length, records.front());
        return std::size_t{1};
    };
}
bool add(EventQueue& queue, const std::string& records) {
    return queue.add([&](std::string& waiting) { waiting += records; });
}

}  // namespace

TEST_CASE("much text is taken away in pieces, in order", "[stream][event_queue]") {
    std::string taken;
    std::size_t pieces = 0, largest = 0;
    EventQueue queue(1 << 20, kPace, letters(1 << 20), [&](std::string& text) {
        ++pieces;
        largest = std::max(largest, text.size());
        taken += text;
    });
    std::string expected;
    for (const char letter : std::string("abcdefghij")) expected.append(1 << 20, letter);
    add(queue, "abcdefghij");
    queue.drain();
    CHECK(taken == expected);
    CHECK(pieces >= 3);
    CHECK(largest <= 5U << 20);
}

TEST_CASE("what a sink has taken before it fails it is not given again, and all else it is", "[stream][event_queue]") {
    std::string taken;
    int calls = 0;
    EventQueue queue(1 << 20, kPace, letters(1 << 20), [&](std::string& text) {
        if (++calls == 2) {  // in the middle of a batch
            taken += text.substr(0, 100);
            text.erase(0, 100);
            throw std::runtime_error("a full disk");
        }
        taken += text;
    });
    std::string expected;
    for (const char letter : std::string("abcdefghij")) expected.append(1 << 20, letter);
    add(queue, "abcdefghij");
    CHECK_THROWS_WITH(queue.drain(), "a full disk");
    queue.drain();
    CHECK(taken == expected);
}

TEST_CASE("a writer that throws leaves no half of a text", "[stream][event_queue]") {
    std::string taken;
    std::atomic<int> calls{0};
    EventQueue queue(1 << 20, kPace, [&](std::string_view records, std::string& text) {
        text += records.front();
        if (++calls == 2) throw std::runtime_error("no memory");
        text += ';';
        return std::size_t{1};
    }, [&](std::string& text) { taken += text; });
    add(queue, "abc");
    CHECK_THROWS_WITH(queue.drain(), "no memory");
    queue.drain();
    CHECK(taken == "a;b;c;");
}

TEST_CASE("no more than twice its limit waits for a sink that fails again and again", "[stream][event_queue]") {
    std::atomic<bool> is_well{false};
    std::string taken;
    EventQueue queue(1000, kPace, letters(1), [&](std::string& text) {
        if (!is_well) {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
            throw std::runtime_error("nobody is there");
        }
        taken += text;
    });
    std::size_t added = 0;
    for (int i = 0; i < 200; ++i) {
        for (int k = 0; k < 20; ++k) added += add(queue, std::string(100, 'a')) ? 100 : 0;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK(added >= 1000);
    CHECK(added <= 2200);
    is_well = true;
    while (true) {
        try {
            queue.drain();
            break;
        } catch (const std::runtime_error&) {}  // of the attempt before
    }
    CHECK(taken.size() == added);
}

TEST_CASE("what is dropped is not worked on, and what comes then is", "[stream][event_queue]") {
    std::atomic<bool> is_well{false}, is_working{false};
    std::string taken;
    EventQueue queue(1000, kPace, letters(1), [&](std::string& text) {
        is_working = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        is_working = false;
        if (!is_well) throw std::runtime_error("nobody is there");
        taken += text;
    });
    add(queue, "old");
    while (!is_working) std::this_thread::sleep_for(kPace);
    queue.drop();
    CHECK_FALSE(is_working);
    is_well = true;
    add(queue, "new");
    try {
        queue.drain();
    } catch (const std::runtime_error&) {  // of what was dropped
        queue.drain();
    }
    CHECK(taken == "new");
}
