#include <filesystem>
#include <fstream>

#include <sys/stat.h>
#include <unistd.h>

#include <torchbus/data/idx.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"

using namespace torchbus;
namespace fs = std::filesystem;

namespace {

/// A file of these bytes, gone with the object.
struct ByteFile {
    explicit ByteFile(const std::vector<unsigned>& bytes, const std::string& name = "digits-idx") {
        std::string pattern = (fs::temp_directory_path() / "torchbus-idx-XXXXXX").string();
        REQUIRE(::mkdtemp(pattern.data()) != nullptr);
        path = fs::path(pattern) / name;
        std::ofstream file(path, std::ios::binary);
        for (const unsigned byte : bytes) file.put(static_cast<char>(byte));
    }
    ~ByteFile() { fs::remove_all(path.parent_path()); }
    /// The message with which the reader refuses it, without the path.
    std::string refusal() const {
        try {
            IdxFile file(path, "ask for another");
        } catch (const DataError& error) {
            const std::string text = error.what(), start = path.string() + ": ";
            return text.starts_with(start) ? text.substr(start.size()) : "another start: " + text;
        }
        return "taken";
    }
    fs::path path;
};

std::vector<unsigned> values_of(std::span<const std::byte> bytes) {
    std::vector<unsigned> values;
    for (const std::byte byte : bytes) values.push_back(std::to_integer<unsigned>(byte));
    return values;
}

std::vector<std::int64_t> sizes_of(const IdxFile& file) { return {file.dims().begin(), file.dims().end()}; }

}  // namespace

TEST_CASE("an IDX file gives its type, its sizes and its bytes", "[data][idx]") {
    const ByteFile bytes({0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255});
    const IdxFile file(bytes.path);
    CHECK(file.type() == IdxType::UInt8);
    CHECK(sizes_of(file) == std::vector<std::int64_t>{2, 3});
    CHECK(values_of(file.bytes()) == std::vector<unsigned>{1, 2, 3, 4, 5, 255});
    CHECK(file.path() == bytes.path);
}

TEST_CASE("the size of an element counts in the length of an IDX file", "[data][idx]") {
    const ByteFile bytes({0, 0, 0x0B, 1, 0, 0, 0, 2, 1, 2, 3, 4});
    const IdxFile file(bytes.path);
    CHECK(file.type() == IdxType::Int16);
    CHECK(file.bytes().size() == 4);
    CHECK(ByteFile({0, 0, 0x0E, 1, 0, 0, 0, 1, 1, 2, 3, 4}).refusal() == "12 bytes, expected 16; the file is truncated; ask for another");
}

TEST_CASE("an IDX file without elements is whole, however large its other sizes are", "[data][idx]") {
    const ByteFile bytes({0, 0, 8, 4, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0});
    const IdxFile file(bytes.path);
    CHECK(file.bytes().empty());
    CHECK(sizes_of(file) == std::vector<std::int64_t>{4294967295, 4294967295, 4294967295, 0});
}

TEST_CASE("an IDX file can be moved, and its bytes stay where they are", "[data][idx]") {
    const ByteFile left({0, 0, 8, 1, 0, 0, 0, 2, 7, 8}), right({0, 0, 8, 1, 0, 0, 0, 1, 9});
    IdxFile first(left.path);
    const std::byte* const before = first.bytes().data();
    IdxFile second(std::move(first));
    CHECK(second.bytes().data() == before);
    IdxFile third(right.path);
    third = std::move(second);
    CHECK(third.path() == left.path);
    CHECK(values_of(third.bytes()) == std::vector<unsigned>{7, 8});
}

TEST_CASE("a missing IDX file is told with the system's reason", "[data][idx]") {
    CHECK_THROWS_WITH(IdxFile("/nowhere/train-images-idx3-ubyte"),
                      "/nowhere/train-images-idx3-ubyte: cannot be opened (No such file or directory), expected an IDX file; "
                      "get it again from where it came");
}

TEST_CASE("a folder or a pipe is no IDX file, and nobody waits for it", "[data][idx]") {
    CHECK_THROWS_WITH(IdxFile("/tmp"), "/tmp: not a regular file, expected an IDX file; give the path of the file itself");
    const ByteFile pipe({});
    fs::remove(pipe.path);
    REQUIRE(::mkfifo(pipe.path.c_str(), 0600) == 0);
    CHECK(pipe.refusal() == "not a regular file, expected an IDX file; give the path of the file itself");
}

TEST_CASE("an IDX file that is shorter than its header says so", "[data][idx]") {
    CHECK(ByteFile({}).refusal() == "0 bytes, expected at least the 4 of an IDX header; the file is truncated; ask for another");
    CHECK(ByteFile({0, 0, 8}).refusal() == "3 bytes, expected at least the 4 of an IDX header; the file is truncated; ask for another");
    CHECK(ByteFile({0, 0, 8, 3, 0, 0, 0, 1}).refusal() ==
          "8 bytes, expected at least the 16 of a header with 3 dimensions; the file is truncated; ask for another");
}

TEST_CASE("an IDX file whose length does not fit its sizes tells both", "[data][idx]") {
    CHECK(ByteFile({0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2}).refusal() == "14 bytes, expected 18; the file is truncated; ask for another");
    CHECK(ByteFile({0, 0, 8, 1, 0, 0, 0, 1, 1, 2}).refusal() == "10 bytes, expected 9; the file has trailing bytes; ask for another");
}

TEST_CASE("a wrong magic number is shown beside what it should be", "[data][idx]") {
    const std::string expected =
        ", expected 00 00, a type code out of 08 09 0b 0c 0d 0e and a dimension count of at least 1; this is not an IDX file; ask for another";
    CHECK(ByteFile({'<', 'h', 't', 'm', 'l'}).refusal() == "starts with 3c 68 74 6d" + expected);
    CHECK(ByteFile({0, 0, 7, 1, 0, 0, 0, 0}).refusal() == "starts with 00 00 07 01" + expected);
    CHECK(ByteFile({0, 0, 0x0A, 1, 0, 0, 0, 0}).refusal() == "starts with 00 00 0a 01" + expected);
    CHECK(ByteFile({0, 0, 0x0F, 1, 0, 0, 0, 0}).refusal() == "starts with 00 00 0f 01" + expected);
    CHECK(ByteFile({0, 0, 8, 0, 1}).refusal() == "starts with 00 00 08 00" + expected);
}

TEST_CASE("sizes whose product overflows are refused, not wrapped around", "[data][idx]") {
    // 2^31 * 2^31 * 4 = 2^64, which is 0 in 64 bits: the file would look whole.
    CHECK(ByteFile({0, 0, 8, 3, 0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 4}).refusal() ==
          "sizes of 2147483648 x 2147483648 x 4, whose product no file can hold, expected sizes that fit its 16 bytes; the header is damaged; "
          "ask for another");
}

TEST_CASE("a file that is still compressed says how to unpack it", "[data][idx]") {
    const ByteFile packed({0x1F, 0x8B, 8, 0, 1, 2, 3}, "digits-idx.gz"), misnamed({0x1F, 0x8B, 8, 0});
    const std::string found = "starts with the gzip magic 1f 8b, expected an IDX file; it is still compressed; unpack it with 'gunzip ";
    CHECK(packed.refusal() == found + packed.path.string() + "'");
    CHECK(misnamed.refusal() == found + misnamed.path.string() + ".gz'");
}
