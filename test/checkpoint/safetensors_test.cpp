#include <filesystem>
#include <fstream>

#include <torch/torch.h>
#include <unistd.h>

#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/checkpoint/weights.hpp>
#include <torchbus/error.hpp>
#include <torchbus/models/registry.hpp>

#include "support/catch.hpp"

using namespace torchbus;
namespace fs = std::filesystem;

namespace {

struct Folder {
    fs::path path = fs::temp_directory_path() / ("torchbus-safetensors-" + std::to_string(::getpid()));
    Folder() { fs::create_directories(path); }
    ~Folder() { fs::remove_all(path); }
};

}  // namespace

TEST_CASE("tensors of every type come back as they went", "[checkpoint][safetensors]") {
    const Folder folder;
    const fs::path file = folder.path / "all.safetensors";
    std::vector<NamedTensor> tensors = {{"scalar", torch::tensor(3.5)}, {"empty", torch::empty({0, 4})}, {"transposed", torch::arange(6).view({2, 3}).t()}};
    for (const auto type : {torch::kFloat, torch::kDouble, torch::kHalf, torch::kBFloat16, torch::kLong, torch::kInt, torch::kShort, torch::kChar, torch::kByte, torch::kBool})
        tensors.emplace_back(std::string("t") + std::to_string(static_cast<int>(type)), torch::arange(5).to(type));
    save_safetensors(file, tensors);
    const auto loaded = load_safetensors(file);
    REQUIRE(loaded.size() == tensors.size());
    for (const auto& [name, tensor] : tensors) {
        const auto found = std::ranges::find(loaded, name, &NamedTensor::first);
        REQUIRE(found != loaded.end());
        CHECK(found->second.scalar_type() == tensor.scalar_type());
        CHECK(found->second.equal(tensor));
    }
    CHECK(std::distance(fs::directory_iterator(folder.path), {}) == 1);  // no temporary is left
}

TEST_CASE("a truncated or damaged file is refused, with the tensor named where there is one", "[checkpoint][safetensors]") {
    const Folder folder;
    const fs::path file = folder.path / "t.safetensors";
    save_safetensors(file, {{"weight", torch::ones({4})}});
    const auto size = fs::file_size(file);
    for (std::uintmax_t length = 0; length < size; ++length) {
        save_safetensors(file, {{"weight", torch::ones({4})}});
        fs::resize_file(file, length);
        CHECK_THROWS_AS(load_safetensors(file), CheckpointError);
    }
    CHECK_THROWS_WITH(load_safetensors(file), containing("tensor 'weight' lies at bytes 0 to 16 of 15, expected 16 bytes; the file is damaged or truncated"));
    CHECK_THROWS_WITH(load_safetensors(folder.path / "nowhere"), Catch::Matchers::EndsWith("nowhere: cannot open the file: No such file or directory"));
}

TEST_CASE("weights that do not fit the model are listed, and none is loaded", "[checkpoint][safetensors]") {
    const Folder folder;
    const fs::path file = folder.path / "w.safetensors";
    Model small = make_mlp({.inputs = 4, .hidden = {3}, .classes = 2}), large = make_mlp({.inputs = 4, .hidden = {5}, .classes = 2});
    save_safetensors(file, weights_of(small));
    Model other = make_mlp({.inputs = 4, .hidden = {3}, .classes = 2});
    load_weights(file, other);
    for (std::size_t i = 0; i < 4; ++i) CHECK(weights_of(other)[i].second.equal(weights_of(small)[i].second));
    CHECK_THROWS_WITH(load_weights(file, large), containing("'1.weight' has shape [3, 4], the model's has [5, 4]") && Catch::Matchers::EndsWith("nothing was loaded"));
}

TEST_CASE("a disk that is full leaves the old file and says so", "[checkpoint][safetensors]") {
    CHECK_THROWS_WITH(save_safetensors("/proc/self/nowhere/x", {{"w", torch::ones(1)}}), containing("cannot create the file"));
    const Folder folder;
    const fs::path file = folder.path / "w.safetensors";
    save_safetensors(file, {{"w", torch::ones(1)}});
    fs::create_symlink("/dev/full", folder.path / "w.safetensors.part");
    CHECK_THROWS_WITH(save_safetensors(file, {{"w", torch::zeros(1)}}), containing("cannot write: No space left on device; nothing was changed"));
    CHECK(load_safetensors(file).front().second.equal(torch::ones(1)));
}
