// The targets of tools/fuzz on what it has found so far, and on neighbours of that: a short form for every run.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "fuzz/targets.hpp"
#include "support/catch.hpp"
#include "support/source_root.hpp"

namespace fs = std::filesystem;
using namespace torchbus;

namespace {

struct Target {
    const char* name;
    void (*run)(std::string_view bytes);
};

std::vector<std::string> corpus_of(const std::string& target) {
    std::vector<std::string> inputs;
    for (const auto& entry : fs::directory_iterator(fs::path(test::source_root()) / "test/fuzz/corpus" / target)) {
        std::ifstream stream(entry.path(), std::ios::binary);
        inputs.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    }
    std::ranges::sort(inputs);  // the order of a folder is not the same everywhere
    return inputs;
}

/// A few bytes changed, cut off or repeated.
std::string mutated(std::string bytes, std::mt19937& random) {
    const auto below = [&](std::size_t bound) { return std::uniform_int_distribution<std::size_t>(0, bound - 1)(random); };
    for (std::size_t changes = 1 + below(4); changes > 0 && !bytes.empty(); --changes) {
        const std::size_t at = below(bytes.size());
        switch (below(4)) {
            case 0: bytes[at] = static_cast<char>(below(256)); break;
            case 1: bytes.erase(at, 1 + below(8)); break;
            case 2: bytes.insert(at, bytes, below(bytes.size()), 1 + below(64)); break;
            default: bytes.resize(at);
        }
    }
    return bytes;
}

}  // namespace

TEST_CASE("readers of foreign bytes keep their promises on the corpora and near them", "[checkpoint][fuzz]") {
    for (const auto& [name, run] : {Target{"manifest", fuzz::manifest}, Target{"safetensors_header", fuzz::safetensors_header}, Target{"pickle", fuzz::pickle},
                                    Target{"request", fuzz::request}, Target{"subscription", fuzz::subscription}, Target{"websocket_message", fuzz::websocket_message}, Target{"command", fuzz::command}, Target{"recording", fuzz::recording}}) {
        const std::vector<std::string> corpus = corpus_of(name);
        REQUIRE(corpus.size() > 10);
        std::mt19937 random(11);
        for (const std::string& input : corpus) {
            CHECK_NOTHROW(run(input));
            for (int i = 0; i < 20; ++i) CHECK_NOTHROW(run(mutated(input, random)));
        }
    }
}
