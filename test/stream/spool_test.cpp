#include <fstream>

#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/stream/spool.hpp>

#include "support/catch.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;
using Texts = std::vector<std::string>;

namespace {

std::vector<std::filesystem::path> record_files(const std::filesystem::path& folder) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
        if (entry.path().extension() == ".records") files.push_back(entry.path());
    std::ranges::sort(files);
    return files;
}

}  // namespace

TEST_CASE("a spool gives back what was added, in order, until it is removed", "[stream][spool]") {
    const TemporaryFolder folder("spool");
    Spool spool({.folder = folder / "deep/spool"});
    CHECK(spool.oldest(10, 1000).empty());
    for (const char* record : {"one", "two", "", "four"}) CHECK(spool.append(record));
    CHECK(spool.oldest(2, 1000) == Texts{"one", "two"});
    CHECK(spool.oldest(10, 1000) == Texts{"one", "two", "", "four"});
    CHECK(spool.oldest(10, 4) == Texts{"one", "two"});
    spool.remove(1, "a note");
    CHECK(spool.oldest(10, 1000) == Texts{"two", "", "four"});
    spool.remove(3, "another");
    CHECK(spool.oldest(10, 1000).empty());
    CHECK(spool.waiting_bytes() == 0);
    CHECK(spool.append("five"));
    CHECK(spool.oldest(10, 1000) == Texts{"five"});
}

TEST_CASE("a spool hands over to the next process what was left, and the note", "[stream][spool]") {
    const TemporaryFolder folder("spool");
    {
        Spool spool({.folder = folder.path(), .file_bytes = 40});
        for (int i = 0; i < 10; ++i) CHECK(spool.append(fmt::format("record {}", i)));
        CHECK(spool.oldest(4, 1000).size() == 4);
        spool.remove(4, "four are sent");
    }
    {
        Spool spool({.folder = folder.path(), .file_bytes = 40});
        CHECK(spool.note() == "four are sent");
        CHECK(spool.append("record 10"));
        CHECK(spool.oldest(100, 1000) == Texts{"record 4", "record 5", "record 6", "record 7", "record 8", "record 9", "record 10"});
        spool.remove(7, "all are sent");
    }
    CHECK(record_files(folder.path()).empty());
    CHECK(Spool({.folder = folder.path()}).note() == "all are sent");
}

TEST_CASE("a spool leaves out what a power failure has torn or damaged, and goes on behind it", "[stream][spool]") {
    const TemporaryFolder folder("spool");
    {
        Spool spool({.folder = folder.path()});
        for (const char* record : {"one", "two", "three"}) spool.append(record);
    }
    const auto file = record_files(folder.path()).front();
    std::fstream(file, std::ios::in | std::ios::out | std::ios::binary).seekp(9 + 4 + 9) << 'x';  // "one\n" and the checksum of "two" are before it
    std::ofstream(file, std::ios::app) << "01234567 torn";
    {
        Spool spool({.folder = folder.path()});
        spool.append("four");
        for (int i = 0; i < 3; ++i) CHECK(spool.oldest(10, 1000) == Texts{"one", "three", "four"});  // as where it is tried again
        CHECK(spool.damaged() == 0);
        spool.remove(1, "");
        CHECK(spool.damaged() == 0);
        CHECK(spool.oldest(10, 1000) == Texts{"three", "four"});
        spool.remove(1, "");
        CHECK(spool.damaged() == 1);
        CHECK(spool.oldest(10, 1000) == Texts{"four"});
        spool.remove(1, "");
        CHECK(spool.damaged() == 2);
        CHECK(spool.waiting_bytes() == 0);
    }
    std::ofstream(folder / "place.json") << "{\"file\": 1, \"off";
    std::ofstream(folder / "000000000007.records") << "no record\n";
    Spool spool({.folder = folder.path()});
    CHECK(spool.oldest(10, 1000).empty());
    CHECK(spool.oldest(10, 1000).empty());
    CHECK(spool.damaged() == 1);
    spool.append("five");
    CHECK(spool.oldest(10, 1000) == Texts{"five"});
}

TEST_CASE("a spool says what its disk does not do, and goes on when it does", "[stream][spool]") {
    const TemporaryFolder folder("spool");
    Spool spool({.folder = folder.path()});
    std::filesystem::create_directory(folder / "000000000001.records");
    for (int i = 0; i < 2; ++i) CHECK_THROWS_WITH(spool.append("one"), containing("000000000001.records: cannot open it: Is a directory"));
    std::filesystem::remove(folder / "000000000001.records");
    for (const char* record : {"one", "two"}) CHECK(spool.append(record));
    CHECK(spool.oldest(1, 1000) == Texts{"one"});
    std::filesystem::create_directory(folder / "place.json.part");
    CHECK_THROWS_WITH(spool.remove(1, ""), containing("place.json.part: cannot open it: Is a directory"));
    CHECK(spool.oldest(10, 1000) == Texts{"two"});
    std::filesystem::remove(folder / "place.json.part");
    spool.remove(1, "two are sent");
    CHECK(spool.waiting_bytes() == 0);
    CHECK_THAT(bytes_of(folder / "place.json"), containing("two are sent"));
}

TEST_CASE("a spool takes no more than it may, and more again when something was removed", "[stream][spool]") {
    const TemporaryFolder folder("spool");
    Spool spool({.folder = folder.path(), .max_bytes = 1000, .file_bytes = 200});
    const std::string record(40, 'r');
    std::size_t taken = 0;
    while (spool.append(record)) ++taken;
    CHECK(taken == 20);  // of 50 bytes
    CHECK(spool.oldest(10, 10000).size() == 10);
    spool.remove(10, "");
    while (spool.append(record)) ++taken;
    CHECK(taken >= 28);
    CHECK(spool.oldest(100, 10000).size() == taken - 10);
}

TEST_CASE("a spool's folder is one run's", "[stream][spool]") {
    const TemporaryFolder folder("spool");
    const Spool spool({.folder = folder.path()});
    CHECK_THROWS_WITH(Spool({.folder = folder.path()}), containing("another run sends what is in this folder; give each run that is under way a folder of its own"));
}
