#include <fstream>

#include <torchbus/stream/line_file.hpp>

#include "support/catch.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;

TEST_CASE("a file that was cut anywhere in its last line is gone on with behind the line before", "[stream]") {
    const TemporaryFolder folder("line_file");
    const std::filesystem::path path = folder / "lines.jsonl";
    const std::string before = "{\"first\":1}\n\n{\"third\":3}\n";
    const auto length = GENERATE(values<std::size_t>({1, 30, 5000}));  // the file's end is looked through by blocks of 4096
    const std::string last = std::string(length, 'x') + '\n';
    for (const std::string& kept : {before, std::string()}) {
        for (std::size_t cut = 0; cut <= last.size(); ++cut) {
            std::ofstream(path, std::ios::binary | std::ios::trunc) << kept << last.substr(0, cut);
            {
                LineFile file({.path = path});
                file.open(/*to_add=*/true);
                file.write("next\n");
            }
            INFO("cut after " << cut << " bytes");
            REQUIRE(bytes_of(path) == kept + (cut == last.size() ? last : "") + "next\n");
        }
    }
}
