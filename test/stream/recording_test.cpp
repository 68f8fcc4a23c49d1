// Recorded runs, read back: whole ones, rotated, resumed, torn and damaged.
#include <atomic>
#include <fstream>
#include <thread>

#include <fmt/format.h>

#include "../../src/stream/recording.hpp"

#include <torchbus/error.hpp>
#include <torchbus/stream/fingerprint_records.hpp>
#include <torchbus/stream/line_file.hpp>

#include "support/catch.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;
using Catch::Matchers::EndsWith;

namespace {

std::string recorded_line(const std::string& run, int sequence, const std::string& name = "told", const std::string& data = "{}") {
    return fmt::format(R"({{"specversion":"1.0","source":"/torchbus/{0}/ranks/0","run":"{0}","rank":0,"dataschema":"torchbus:events:1","type":"torchbus.{2}","id":"{1}","sequence":"{1:016}","time":"2026-11-27T23:41:07.250113Z","data":{3}}})" "\n",
                       run, sequence, name, data);
}
std::string recorded_start(const std::string& run, bool resumed) { return recorded_line(run, 1, "stream_start", fmt::format(R"({{"events":["*"],"every":"1step","resumed":{},"torchbus":"0.1.0"}})", resumed)); }

/// The line of a message with these members in its data, without its line break.
std::string recorded_with(const std::string& run, const std::string& members) {
    std::string line = recorded_line(run, 2, "told", "{" + members + "}");
    line.pop_back();
    return line;
}

void write_file(const std::filesystem::path& path, const std::string& text, std::ios::openmode how = std::ios::trunc) { std::ofstream(path, std::ios::binary | how) << text; }

/// "A1 A2 B1": runs and numbers of all that is there.
std::string all_of(Recording& recording) {
    std::string all;
    while (const RecordedMessage* message = recording.next()) all += fmt::format("{}{}{}", all.empty() ? "" : " ", message->run(), message->sequence());
    return all;
}
std::string all_of(const std::filesystem::path& path) {
    Recording recording(path);
    return all_of(recording);
}

}  // namespace

TEST_CASE("a recording is read from its file, or from the folder that holds it", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    CHECK_THROWS_WITH(Recording(folder / "none"), EndsWith("none: there is no such file or folder; give the file that event_file wrote, e.g. events.jsonl"));
    CHECK_THROWS_WITH(Recording(folder.path()), containing("there is no recorded run in this folder"));
    write_file(folder / "other.jsonl", recorded_start("A", false) + recorded_line("A", 2));
    write_file(folder / "fingerprint.jsonl", R"({"samples":"0"})" "\n");
    CHECK(all_of(folder.path()) == "A1 A2");
    write_file(folder / "more.jsonl", recorded_start("B", false));
    CHECK_THROWS_WITH(Recording(folder.path()), containing("there are 2 recorded runs in this folder; give one of "));
    write_file(folder / "events.jsonl", recorded_start("C", false));
    CHECK(all_of(folder.path()) == "C1");
    CHECK(Recording(folder.path()).path() == folder / "events.jsonl");
    write_file(folder / "empty.jsonl", "");
    CHECK(all_of(folder / "empty.jsonl").empty());
}

TEST_CASE("files that were moved aside come first, and those of other runs are left", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    write_file(folder / "events.4.jsonl", recorded_start("OLD", false) + recorded_line("OLD", 2));
    write_file(folder / "events.3.jsonl", recorded_start("A", false) + recorded_line("A", 2));
    write_file(folder / "events.2.jsonl", recorded_line("A", 3) + recorded_line("A", 4));
    write_file(folder / "events.1.jsonl", recorded_line("A", 5) + recorded_start("B", true));
    write_file(folder / "events.jsonl", recorded_line("B", 2));
    CHECK(all_of(folder / "events.jsonl") == "A1 A2 A3 A4 A5 B1 B2");
    CHECK(all_of(folder / "events.2.jsonl") == "A1 A2 A3 A4");
    CHECK(all_of(folder / "events.4.jsonl") == "OLD1 OLD2");
    std::filesystem::remove(folder / "events.3.jsonl");
    CHECK(all_of(folder / "events.jsonl") == "A3 A4 A5 B1 B2");
    write_file(folder / "events.rank1.jsonl", recorded_start("A", false));
    write_file(folder / "events.rank10.jsonl", recorded_start("A", false));
    write_file(folder / "events.rank1.1.jsonl", recorded_start("A", false));
    CHECK(ranks_beside(folder / "events.jsonl") == std::vector{folder / "events.rank1.jsonl", folder / "events.rank10.jsonl"});
}

TEST_CASE("a recording is followed while it grows, is moved aside, and another run begins", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    write_file(folder / "events.jsonl", recorded_start("A", false));
    Recording recording(folder / "events.jsonl");
    CHECK(all_of(recording) == "A1");
    const std::string second = recorded_line("A", 2);
    write_file(folder / "events.jsonl", second.substr(0, 50), std::ios::app);
    CHECK(all_of(recording).empty());
    CHECK(recording.torn_bytes() == 50);
    write_file(folder / "events.jsonl", second.substr(50), std::ios::app);
    CHECK(all_of(recording) == "A2");
    CHECK(recording.torn_bytes() == 0);

    SECTION("its torn line is cut off by who goes on") {
        const auto size = std::filesystem::file_size(folder / "events.jsonl");
        write_file(folder / "events.jsonl", R"({"specversion":"1.0","source":"/torchbus/A/ra)", std::ios::app);
        CHECK(all_of(recording).empty());
        std::filesystem::resize_file(folder / "events.jsonl", size);
        write_file(folder / "events.jsonl", recorded_start("B", true), std::ios::app);
        CHECK(all_of(recording) == "B1");
    }
    SECTION("it is moved aside twice") {
        write_file(folder / "events.jsonl", recorded_line("A", 3), std::ios::app);
        std::filesystem::rename(folder / "events.jsonl", folder / "events.2.jsonl");
        write_file(folder / "events.1.jsonl", recorded_line("A", 4));
        write_file(folder / "events.jsonl", recorded_line("A", 5));
        CHECK(all_of(recording) == "A3 A4 A5");
        CHECK(recording.files() == 3);
    }
    SECTION("another run begins in its place") {
        std::filesystem::rename(folder / "events.jsonl", folder / "events.1.jsonl");
        write_file(folder / "events.jsonl", recorded_start("B", false));
        CHECK(all_of(recording).empty());
        CHECK(recording.is_over());
    }
}

TEST_CASE("a recording is found and followed while its files are moved aside all the time", "[stream][recording]") {
    constexpr int kLines = 1500;
    const TemporaryFolder folder("recording");
    const std::filesystem::path path = folder / "events.jsonl";
    LineFile file({.path = path, .max_bytes = 1000, .keep = kLines, .sync = std::chrono::minutes(1)});  // about three lines a file
    file.open(/*to_add=*/true);
    file.write(recorded_start("A", false));
    std::atomic<bool> is_written = false;
    std::jthread writer([&] {
        for (int sequence = 2; sequence <= kLines; ++sequence) file.write(recorded_line("A", sequence));
        is_written = true;
    });
    Recording followed(folder.path());
    std::int64_t last = 0;
    for (bool has_more = true; has_more;) {
        has_more = !is_written;
        while (const RecordedMessage* message = followed.next()) {
            if (message->sequence() != last + 1) FAIL("after " << last << " comes " << message->sequence());
            ++last;
        }
        if (last % 7 == 0) Recording(folder.path());
    }
    CHECK(last == kLines);
}

TEST_CASE("a newer file is read on when its first line is whole, and not where a run begins anew", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    const std::filesystem::path events = folder / "events.jsonl", moved = folder / "events.1.jsonl";
    const auto torn = GENERATE(values<std::string>({"", R"({"specversion":"1.0","sou)", "no message\n"}));
    write_file(events, recorded_start("A", false) + torn);
    Recording recording(events);
    CHECK(all_of(recording) == "A1");
    std::filesystem::rename(events, moved);
    const std::string anew = recorded_start("B", false), more = recorded_line("A", 2);
    for (const std::string& first : {anew, more}) {
        write_file(events, first.substr(0, first.size() - 9));
        CHECK(all_of(recording).empty());
        CHECK_FALSE(recording.is_over());
    }
    SECTION("another run begins, and what is torn stays torn") {
        write_file(events, anew);
        CHECK(all_of(recording).empty());
        CHECK(recording.is_over());
    }
    SECTION("it goes on") {
        write_file(events, more);
        if (torn.empty()) CHECK(all_of(recording) == "A2");
        else CHECK_THROWS_WITH(all_of(recording), containing("events.jsonl:2: ") && containing("; delete the line to read"));
    }
}

TEST_CASE("a damaged line that ends a file that was moved aside is told", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    write_file(folder / "events.1.jsonl", recorded_start("A", false) + recorded_line("A", 2) + recorded_line("A", 3).substr(30));
    write_file(folder / "events.jsonl", recorded_line("A", 4));
    CHECK(all_of(folder / "events.1.jsonl") == "A1 A2");
    write_file(folder / "events.1.jsonl", recorded_start("A", false) + recorded_line("A", 2) + recorded_line("A", 3).substr(0, 90) + "\n");
    CHECK_THROWS_WITH(all_of(folder / "events.1.jsonl") + all_of(folder / "events.jsonl"), containing("events.1.jsonl:3: the line is damaged"));
}

TEST_CASE("a follower whose file was deleted goes on with the oldest that is there", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    write_file(folder / "events.jsonl", recorded_start("A", false));
    Recording recording(folder / "events.jsonl");
    CHECK(all_of(recording) == "A1");
    std::filesystem::remove(folder / "events.jsonl");
    write_file(folder / "events.2.jsonl", recorded_line("A", 10));
    write_file(folder / "events.1.jsonl", recorded_line("A", 11));
    write_file(folder / "events.jsonl", recorded_line("A", 12));
    CHECK(all_of(recording) == "A10 A11 A12");
}

TEST_CASE("a resumed run goes on with the file before it, whatever its id", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    write_file(folder / "events.1.jsonl", recorded_start("A", false) + recorded_line("A", 2));
    write_file(folder / "events.jsonl", recorded_start("B", true) + recorded_line("B", 2));
    CHECK(all_of(folder / "events.jsonl") == "A1 A2 B1 B2");
    write_file(folder / "events.jsonl", recorded_start("B", false) + recorded_line("B", 2));
    CHECK(all_of(folder / "events.jsonl") == "B1 B2");
}

TEST_CASE("a number in a file's own name makes it no file that was moved aside", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    write_file(folder / "exp.2026.1.jsonl", recorded_start("A", false) + recorded_line("A", 2));
    write_file(folder / "exp.2026.jsonl", recorded_line("A", 3));
    CHECK(all_of(folder / "exp.2026.jsonl") == "A1 A2 A3");
    CHECK(all_of(folder.path()) == "A1 A2 A3");
}

TEST_CASE("a huge file without lines before a recording is no part of it", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    write_file(folder / "events.jsonl", recorded_line("A", 4));
    write_file(folder / "events.1.jsonl", "");
    std::filesystem::resize_file(folder / "events.1.jsonl", std::uintmax_t{3} << 30);
    CHECK(all_of(folder / "events.jsonl") == "A4");
}

TEST_CASE("a damaged line is named by its file and number, and one at the end is torn", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    const std::string first = recorded_start("A", false), last = recorded_line("A", 3);
    const auto [damage, why] = GENERATE(table<std::string, std::string>({
        {"", "the line is empty"},
        {"no JSON", "the line is damaged: it is not one JSON object from its beginning to its end (7 bytes)"},
        {R"({"specversion":"1.0","source":"/torch)" + recorded_line("A", 2).substr(0, 100), "the line is damaged"},
        {std::string(64, '\0'), "the line is damaged"},
        {R"({"type":"torchbus.told"})", "this is no message as event_file writes them"},
        {R"({"run":"A","type":"torchbus.told","sequence":"2","time":"now","data":[]})", "this is no message as event_file writes them"},
        {"{" + std::string(100'000, '[') + std::string(100'000, ']') + "}", "the line is nested deeper than 64 levels"},
        {recorded_with("A", R"("loss":1.0,"loss":2.0)"), "the line is damaged: the key 'loss' stands twice in one object"},
        {recorded_with("A", R"("list":[{"a":1},{"b":1,"a":{},"b":2}])"), "the line is damaged: the key 'b' stands twice in one object"},
        {recorded_with("A", R"("loss" :1.0,"loss":2.0)"), "the line is damaged: the key 'loss' stands twice in one object"},
        {recorded_with("A", R"("loss":1.0,"l\u006fss":2.0)"), "the line is damaged: it is no JSON, or a key stands twice in one object"},
        {recorded_with(R"(A","run":"B)", R"("loss":1.0)"), "the line is damaged: the key 'run' stands twice in one object"},
        {recorded_with("A", "\"loss\":\"\xff\""), "the line is damaged: it is no JSON, or a key stands twice in one object"},
        {recorded_with("A", "\"loss\":\"\x01\""), "the line is damaged: it is not one JSON object from its beginning to its end"},
        {recorded_with("A", "\"loss\":\"open"), "the line is damaged: it is not one JSON object from its beginning to its end"},
    }));
    write_file(folder / "events.jsonl", first + damage + "\n" + last);
    Recording recording(folder / "events.jsonl");
    REQUIRE(recording.next());
    CHECK_THROWS_WITH(recording.next(), containing("events.jsonl:2: " + why) && containing("; delete the line to read the others"));
    for (const std::string& rest : {std::string("\n"), std::string(), std::string("\n\0\0\0", 4)}) {
        write_file(folder / "torn.jsonl", first + damage + rest);
        Recording torn(folder / "torn.jsonl");
        CHECK(all_of(torn) == "A1");
        CHECK(torn.torn_bytes() == static_cast<std::int64_t>(damage.size()));
    }
}

TEST_CASE("the data of a message is parsed when it is asked for, and says where it is none", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    const std::string position = R"("position":{"epoch":1,"step":7,"attempts":8,"micro_batch":9,"samples":0,"tokens":0,"in_epoch":{"step":1,"attempts":1,"micro_batch":1,"samples":0,"tokens":0}})";
    write_file(folder / "events.jsonl", recorded_start("A", false) + recorded_line("A", 2, "told", "{" + position + R"(,"text":"a } [ \" \\"})") + recorded_line("A", 3, "told", R"({"n":1e99999})") +
                                            recorded_line("A", 4, "told", R"({"word":nul})") + recorded_line("A", 5, "numbers", "{" + position + R"(,"numbers":{"loss":1e999},"older":{},"after":"train_step_end"})"));
    Recording recording(folder / "events.jsonl");
    CHECK(recording.next()->is_start());
    const RecordedMessage* message = recording.next();
    CHECK(message->name() == "told");
    CHECK(message->view().position("step") == 7);
    CHECK(message->data()["text"] == "a } [ \" \\");
    CHECK(message->time() == "2026-11-27T23:41:07.250113Z");
    CHECK(message->seconds() == Approx(1795822867.250113));
    CHECK_THAT(message->where(), EndsWith("events.jsonl:2"));
    for (int line = 3; line <= 4; ++line) {
        message = recording.next();
        REQUIRE(message);
        CHECK_THROWS_WITH(message->data(), containing(fmt::format("events.jsonl:{}: the line is damaged: its data is no JSON", line)));
        CHECK_FALSE(message->numbers());
    }
    CHECK_THROWS_WITH(recording.next()->numbers(), containing("events.jsonl:5: the line is damaged: its numbers cannot be read"));
    CHECK_FALSE(recording.next());
}

TEST_CASE("a torn last line of fingerprints is left out", "[stream][recording]") {
    const TemporaryFolder folder("recording");
    const std::string record = R"({"samples":"0","step":1,"gradients":{"w":"1"}})" "\n", other = R"({"samples":"0","step":1,"gradients":{"w":"2"}})" "\n";
    write_file(folder / "a", record + record.substr(0, 20));
    write_file(folder / "b", record);
    CHECK_FALSE(first_fingerprint_difference(folder / "a", folder / "b"));
    write_file(folder / "b", other);
    CHECK(first_fingerprint_difference(folder / "a", folder / "b")->what == "gradients differ: w");
}

TEST_CASE("fingerprints at other intervals are compared where both have one", "[stream][fingerprint]") {
    const TemporaryFolder folder("recording");
    const auto write = [&](const char* name, int first, int last, int every, int other = 0, int skipped = 0) {
        std::string text;
        for (int at = first; at <= last; at += every) text += fmt::format(R"({{"samples":"{}","step":{},"attempts":{}}})" "\n", at == other, at - skipped, at);
        write_file(folder / name, text);
        return folder / name;
    };
    const auto every = write("every", 1, 12, 1);
    CHECK_FALSE(first_fingerprint_difference(every, write("second", 2, 12, 2)));
    CHECK_FALSE(first_fingerprint_difference(write("fifth", 5, 10, 5), every));
    CHECK_FALSE(first_fingerprint_difference(write("third", 3, 12, 3), write("second", 2, 12, 2)));
    CHECK(first_fingerprint_difference(every, write("second", 2, 12, 2, 8))->step == 8);
    const auto shorter = first_fingerprint_difference(every, write("second", 2, 8, 2));
    REQUIRE(shorter);
    CHECK(shorter->is_shorter);
    CHECK(shorter->what == "what both have is equal; then one has 12 lines, the other 4");
    CHECK(first_fingerprint_difference(write("fifth", 5, 10, 5), write("skipped", 6, 11, 5, 0, 1))->what == "the attempts is 5 in one and 6 in the other");
}
