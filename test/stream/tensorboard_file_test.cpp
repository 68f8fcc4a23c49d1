#include <fstream>

#include <torchbus/stream/tensorboard_file.hpp>

#include "support/catch.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

constexpr std::int64_t kStepOfRecords = 7;

std::string reopened(const std::filesystem::path& path, const std::string& content) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
    {
        TensorBoardFile file(path.parent_path(), kStepOfRecords);
        CHECK(file.path() == path);
    }
    return bytes_of(path);
}

}  // namespace

TEST_CASE("a TensorBoard file that was cut or damaged anywhere in its last record is gone on with behind the record before", "[stream][tensorboard]") {
    const TemporaryFolder folder("tensorboard_file");
    std::filesystem::path path;
    std::string before, all;
    {
        TensorBoardFile file(folder.path(), 0);
        path = file.path();
        file.add_scalar(1.5, kStepOfRecords, "train/loss", 0.25);
        file.add_text(1.5, kStepOfRecords, "run/plan", "a plan");
        file.flush();
        before = bytes_of(path);
        file.add_histogram(1.5, kStepOfRecords, "parameters/weight", {.min = -1, .max = 1, .count = 2, .sum = 0, .sum_squares = 2, .limits = {-1, 1}, .counts = {1, 1}});
        file.flush();
        all = bytes_of(path);
    }
    REQUIRE(whole_records(before).count == 3);  // the first one says which version it is
    REQUIRE(whole_records(all).count == 4);
    const std::string gone_on = reopened(path, all);
    REQUIRE(gone_on.starts_with(all));
    const std::size_t added = gone_on.size() - all.size();  // from which step on what was told counts no more
    REQUIRE(added > 0);
    const auto check = [&](const std::string& content, const std::string& kept) {
        const std::string found = reopened(path, content);
        CHECK(found.starts_with(kept));
        CHECK(found.size() == kept.size() + added);
        CHECK(whole_records(found).count == whole_records(kept).count + 1);
        CHECK(whole_records(found).bytes == static_cast<std::int64_t>(found.size()));
    };
    for (std::size_t cut = before.size(); cut < all.size(); ++cut) check(all.substr(0, cut), before);
    for (std::size_t place = before.size(); place < all.size(); ++place) {
        std::string damaged = all;
        damaged[place] = static_cast<char>(damaged[place] ^ 0x10);
        check(damaged, before);
    }
    check(all + std::string(4096, '\0'), all);
}
