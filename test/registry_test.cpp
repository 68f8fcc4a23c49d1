#include <atomic>
#include <thread>

#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/registry.hpp>

#include "support/catch.hpp"

using namespace torchbus;

namespace {

struct Entry {
    std::string_view kind;
    std::string_view summary;
    std::int64_t (*from_json)(OptionReader&);
};

std::int64_t read_size(OptionReader& reader) {
    std::int64_t size = 3;
    reader.integer("size", size, "elements", Range::at_least(1));
    return size;
}

const std::vector<Entry> kOwn = {{"small", "A small one.", read_size}, {"large", "A large one.", read_size}};

/// Adds one entry, in the name of `owner`.
void add(Registry<Entry>& table, const std::string& kind, const std::string& owner) {
    const auto lock = lock_registries();
    const std::string summary = "Added.";
    const Entry entry{kind, summary, read_size};
    table.prepare({&entry, 1}, owner)();
}

}  // namespace

TEST_CASE("a table has its own entries, then those added, whose texts it keeps", "[registry]") {
    Registry<Entry> table("thing", kOwn);
    add(table, std::string("medium"), "a plug-in");
    CHECK(table.kinds() == std::vector<std::string>{"small", "large", "medium"});
    CHECK(table.find("medium")->summary == "Added.");
    CHECK(table.find("huge") == nullptr);
    CHECK(table.describe(*table.find("medium")).at(0).name == "size");
}

TEST_CASE("the first entry is chosen where no kind is named, an unknown one refused", "[registry]") {
    const Registry<Entry> table("thing", kOwn);
    const nlohmann::json nothing = nlohmann::json::object(), large = {{"kind", "large"}}, larg = {{"kind", "larg"}};
    OptionReader first(nothing, "run.json: thing"), second(large, "run.json: thing"), third(larg, "run.json: thing");
    CHECK(table.chosen(first, "which").kind == "small");
    CHECK(table.chosen(second, "which").kind == "large");
    CHECK_THROWS_WITH(table.chosen(third, "which"), "run.json: thing.kind: 'larg' is not known; did you mean 'large'? (expected one of small, large)");
}

TEST_CASE("a kind that is taken is refused by the name of its owner", "[registry]") {
    Registry<Entry> table("thing", kOwn);
    add(table, "medium", "the plug-in 'a'");
    CHECK_THROWS_WITH(add(table, "small", "the plug-in 'b'"), "the thing 'small' is one of torchbus's own; give yours another name");
    CHECK_THROWS_WITH(add(table, "medium", "the plug-in 'b'"), "the thing 'medium' is taken by the plug-in 'a'; give yours another name");
}

TEST_CASE("what was prepared and given up is not there, nor does its owner count", "[registry]") {
    Registry<Entry> table("thing", kOwn);
    {
        const auto lock = lock_registries();
        const Entry entry{"medium", "Added.", read_size};
        table.prepare({&entry, 1}, "the plug-in that failed");
    }
    CHECK(table.find("medium") == nullptr);
    add(table, "medium", "the plug-in 'b'");
    CHECK_THROWS_WITH(add(table, "medium", "the plug-in 'c'"), "the thing 'medium' is taken by the plug-in 'b'; give yours another name");
}

TEST_CASE("a table can go back to its own entries", "[registry]") {
    Registry<Entry> table("thing", kOwn);
    add(table, "medium", "the plug-in 'a'");
    const Entry& medium = *table.find("medium");
    {
        const auto lock = lock_registries();
        table.reset();
    }
    CHECK(table.kinds() == std::vector<std::string>{"small", "large"});
    CHECK(medium.kind == "medium");
    add(table, "medium", "the plug-in 'b'");
    CHECK_THROWS_WITH(add(table, "medium", "the plug-in 'c'"), "the thing 'medium' is taken by the plug-in 'b'; give yours another name");
}

TEST_CASE("a table may be read while entries are added", "[registry][thread]") {
    Registry<Entry> table("thing", kOwn);
    const auto before = table.entries();
    std::atomic<bool> reading = false, done = false;
    std::atomic<std::size_t> seen = 0;
    std::thread reader([&] {
        while (!done) {
            std::size_t whole = 0;
            for (const Entry& entry : table.entries()) whole += !entry.kind.empty() && entry.from_json == read_size;
            seen = whole;
            reading = true;
        }
    });
    while (!reading) std::this_thread::yield();
    for (int i = 0; i < 200; ++i) add(table, "added_" + std::to_string(i), "a plug-in");
    while (seen < 202) std::this_thread::yield();
    done = true;
    reader.join();
    CHECK(table.entries().size() == 202);
    CHECK(before.size() == 2);  // an old span stays good
    CHECK(before.front().kind == "small");
}
