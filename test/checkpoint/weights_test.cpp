// Weights of files that Python wrote, of safetensors and of training states. See test/references/python_files.py.
#include <fstream>
#include <iterator>

#include <nlohmann/json.hpp>
#include <torch/torch.h>

#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/checkpoint/weights.hpp>
#include <torchbus/error.hpp>
#include <torchbus/models/registry.hpp>

#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/source_root.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;
namespace fs = std::filesystem;

namespace {

using Names = std::vector<std::string>;

fs::path python_file(const std::string& name) { return fs::path(source_root()) / "test/references/python_files" / name; }

void put_bytes(const fs::path& file, const std::string& bytes) { std::ofstream(file, std::ios::binary) << bytes; }

Names names_of(const std::vector<NamedTensor>& tensors) {
    Names names;
    for (const auto& [name, tensor] : tensors) names.push_back(name);
    return names;
}

nlohmann::json expected() { return nlohmann::json::parse(bytes_of(python_file("expected.json"))); }

void check_equal(const std::vector<NamedTensor>& tensors, const nlohmann::json& described) {
    REQUIRE(tensors.size() == described.size());
    for (const auto& [name, tensor] : tensors) {
        INFO(name);
        REQUIRE(described.contains(name));
        CHECK(tensor.sizes().vec() == described[name]["shape"].get<std::vector<std::int64_t>>());
        const auto values = described[name]["values"].get<std::vector<double>>();
        CHECK(tensor.to(torch::kDouble).flatten().equal(torch::tensor(values, torch::kDouble)));
    }
}

bool equal(const std::vector<NamedTensor>& one, const std::vector<NamedTensor>& other) {
    return std::ranges::equal(one, other, [](const NamedTensor& a, const NamedTensor& b) { return a.first == b.first && a.second.scalar_type() == b.second.scalar_type() && a.second.equal(b.second); });
}

/// 4 inputs, 3 hidden, 2 classes: 1.weight, 1.bias, 3.weight and 3.bias.
Model small_model(std::int64_t classes = 2) { return make_mlp({.inputs = 4, .hidden = {3}, .classes = classes}); }

}  // namespace

TEST_CASE("what Python's torch.save wrote is read, every type and view of it", "[checkpoint][weights]") {
    check_equal(read_weights(python_file("state_dict.pt")), expected()["state_dict"]);
    const auto types = read_weights(python_file("types.pt"));
    check_equal(types, expected()["types"]);
    const std::map<std::string, at::Tensor> by_name(types.begin(), types.end());
    for (const auto& [name, type] : std::map<std::string, at::ScalarType>{{"float", at::kFloat}, {"half", at::kHalf}, {"bfloat16", at::kBFloat16}, {"double", at::kDouble}, {"long", at::kLong},
                                                                          {"int", at::kInt}, {"short", at::kShort}, {"char", at::kChar}, {"byte", at::kByte}, {"bool", at::kBool}})
        CHECK(by_name.at(name).scalar_type() == type);
    CHECK(names_of(types).front() == "float");  // in the file's order
}

TEST_CASE("of a Python file with several dictionaries one is chosen", "[checkpoint][weights]") {
    const WeightsSelection selection{.rename = {{"module.*", "*"}}};
    check_equal(read_weights(python_file("nested.pt"), selection), expected()["state_dict"]);  // its only one
    CHECK_THROWS_WITH(read_weights(python_file("two.pt")), Catch::Matchers::EndsWith("two.pt: tensors are in 'model', 'optimizer'; choose one of them as key"));
    check_equal(read_weights(python_file("two.pt"), {.key = "model"}), expected()["state_dict"]);
    CHECK(names_of(read_weights(python_file("two.pt"), {.key = "optimizer.state.0"})) == Names{"step", "exp_avg", "exp_avg_sq"});
    CHECK_THROWS_WITH(read_weights(python_file("two.pt"), {.key = "ema"}), containing("there are none in 'ema'; tensors are in 'model', 'optimizer'"));
    CHECK_THROWS_WITH(read_weights(python_file("list.pt")), containing("it holds no dictionary of tensors"));
}

TEST_CASE("nothing of a Python file is executed, and what would be is named", "[checkpoint][weights]") {
    const TemporaryFolder folder("weights");
    const fs::path before = fs::current_path();
    fs::current_path(folder.path());
    CHECK_THROWS_WITH(read_weights(python_file("command.pt")), containing("it names posix.system, which is not on the list of what a state_dict needs; it was not called"));
    CHECK_THROWS_WITH(read_weights(python_file("module.pt")), containing("it names torch.nn.modules.container.Sequential") && containing("torch.save(model.state_dict(), ...)"));
    CHECK_THROWS_WITH(read_weights(python_file("script.pt")), containing("it is a TorchScript module, not a state_dict"));
    CHECK_THROWS_WITH(read_weights(python_file("before_1_6.pt")), containing("it is of the format of PyTorch before 1.6"));
    CHECK(names_in(folder.path()).empty());
    fs::current_path(before);
}

TEST_CASE("every bit of a Python file, and every length, is read as it was or refused", "[checkpoint][weights]") {
    const TemporaryFolder folder("weights");
    const std::string whole = bytes_of(python_file("state_dict.pt"));
    const auto original = read_weights(python_file("state_dict.pt"));
    int refused = 0;
    const auto try_to_read = [&](const std::string& bytes) {
        put_bytes(folder / "damaged.pt", bytes);
        try {
            const bool same = equal(read_weights(folder / "damaged.pt"), original);
            CHECK(same);
        } catch (const CheckpointError& error) {
            ++refused;
            CHECK_THAT(error.what(), containing("damaged.pt"));
        }
    };
    for (std::size_t i = 0; i < 8 * whole.size(); ++i) {
        std::string bytes = whole;
        bytes[i / 8] = static_cast<char>(bytes[i / 8] ^ (1 << i % 8));
        INFO("bit " << i);
        try_to_read(bytes);
    }
    CHECK(refused > static_cast<int>(whole.size()));  // much of the archive is padding
    for (std::size_t length = 0; length < whole.size(); ++length) {
        INFO("length " << length);
        put_bytes(folder / "short.pt", whole.substr(0, length));
        CHECK_THROWS_AS(read_weights(folder / "short.pt"), CheckpointError);
    }
}

TEST_CASE("weights are written for Python, to the byte that Python was seen to read, and as safetensors", "[checkpoint][weights]") {
    const TemporaryFolder folder("weights");
    const auto types = read_weights(python_file("types.pt"));
    save_weights(folder / "out.pt", types);
    CHECK(bytes_of(folder / "out.pt") == bytes_of(python_file("exported.pt")));
    save_weights(folder / "out.safetensors", types);
    const auto back = read_weights(folder / "out.safetensors");
    CHECK(back.size() == types.size());
    check_equal(back, expected()["types"]);
    CHECK_THROWS_WITH(save_weights(folder / "out.zip", types), Catch::Matchers::EndsWith("out.zip: expected a name that ends in .safetensors, or in .pt, .pth or .bin for Python's torch.load"));
    CHECK_THROWS_WITH(save_weights(folder / "complex.pt", {{"z", torch::zeros(1, torch::kComplexFloat)}}), containing("tensor 'z' is of type ComplexFloat, which safetensors does not know"));
    CHECK_THROWS_WITH(save_weights("/proc/self/nowhere/x.pt", types), containing("cannot create the file"));
    fs::create_symlink("/dev/full", folder / "out.pt.part");
    CHECK_THROWS_WITH(save_weights(folder / "out.pt", {{"w", torch::zeros(1)}}), containing("cannot write: No space left on device; nothing was changed"));
    CHECK(bytes_of(folder / "out.pt") == bytes_of(python_file("exported.pt")));
    CHECK(names_in(folder.path()) == Names{"out.pt", "out.safetensors"});
}

TEST_CASE("weights are chosen and renamed on their way into a model", "[checkpoint][weights]") {
    const TemporaryFolder folder("weights");
    Model source = small_model(), model = small_model();
    std::vector<NamedTensor> renamed;
    for (const auto& [name, tensor] : weights_of(source)) renamed.emplace_back("module." + name, tensor);
    save_weights(folder / "w.pt", renamed);
    const auto own = [&](const char* name) {
        for (const auto& [candidate, tensor] : weights_of(model))
            if (candidate == name) return tensor.detach().clone();
        return at::Tensor();
    };
    const at::Tensor head = own("3.weight");
    const WeightsSelection prefix{.rename = {{"module.*", "*"}}};

    SECTION("all, under other names") {
        const LoadedWeights loaded = load_weights(folder / "w.pt", model, {prefix});
        CHECK(loaded.loaded.size() == 4);
        CHECK(equal(weights_of(model), weights_of(source)));
    }
    SECTION("some, by pattern: the others are not missed") {
        WeightsSelection selection = prefix;
        selection.skip = {"3.*"};
        const LoadedWeights loaded = load_weights(folder / "w.pt", model, {selection});
        CHECK(loaded.loaded == Names{"1.weight", "1.bias"});
        CHECK(own("3.weight").equal(head));
        CHECK_FALSE(own("1.weight").equal(head));
        CHECK(load_weights(folder / "w.pt", model, {{.include = {"3.b*"}, .rename = prefix.rename}}).loaded == Names{"3.bias"});
    }
    SECTION("the first rule that fits counts, and may swap") {
        const LoadedWeights loaded = load_weights(folder / "w.pt", model, {{.include = {"1.*"}, .rename = {{"module.1.weight", "1.weight"}, {"module.1.*", "1.*"}, {"module.3.*", "unused.*"}}}});
        CHECK(loaded.loaded == Names{"1.weight", "1.bias"});
    }
    SECTION("a head of another size is skipped by name, never by itself") {
        Model other = small_model(5);
        CHECK_THROWS_WITH(load_weights(folder / "w.pt", other, {prefix, false}), containing("'3.weight' has shape [2, 3], the model's has [5, 3]") && Catch::Matchers::EndsWith("nothing was loaded"));
        WeightsSelection selection = prefix;
        selection.skip = {"3.*"};
        CHECK(load_weights(folder / "w.pt", other, {selection}).loaded.size() == 2);
    }
    SECTION("strict or not") {
        CHECK_THROWS_WITH(load_weights(folder / "w.pt", model), containing("'1.weight' is missing") && containing("'module.1.weight' is not in the model"));
        CHECK_THROWS_WITH(load_weights(folder / "w.pt", model, {{}, false}), containing("none of its tensors ('module.1.weight', ...) has a name of the model's ('1.weight', ...); rename them"));
        const LoadedWeights loaded = load_weights(folder / "w.pt", model, {{.rename = {{"module.1.*", "1.*"}}}, false});
        CHECK(loaded.loaded == Names{"1.weight", "1.bias"});
        CHECK(loaded.missing == Names{"3.weight", "3.bias"});
        CHECK(loaded.left_over == Names{"module.3.weight", "module.3.bias"});
    }
    SECTION("rules that make no sense") {
        CHECK_THROWS_WITH(read_weights(folder / "w.pt", {.rename = {{"a.*.*", "*"}}}), containing("rename 'a.*.*' to '*': expected two names, or two with one * each"));
        CHECK_THROWS_WITH(read_weights(folder / "w.pt", {.rename = {{"module.1.*", "same"}}}), containing("expected two names"));
        CHECK_THROWS_WITH(read_weights(folder / "w.pt", {.rename = {{"module.1.weight", "x"}, {"module.1.bias", "x"}}}), containing("two tensors are called 'x' after renaming"));
        CHECK_THROWS_WITH(read_weights(folder / "w.pt", {.include = {"head.*"}}), containing("none of its 4 tensors is chosen by include and skip; the first is called 'module.1.weight'"));
    }
}

TEST_CASE("the model of a training state is read without its other parts", "[checkpoint][weights]") {
    const TemporaryFolder folder("weights");
    TrainingState state;
    state.parts["model"].tensors = {{"w", torch::ones(2)}};
    state.parts["update"].tensors = {{"w.momentum", torch::ones(2)}};
    write_training_state(folder / "step_3", state);
    CHECK(names_of(read_weights(folder / "step_3")) == Names{"w"});
    put_bytes(folder / "step_3/update.safetensors", "damaged");
    CHECK(names_of(read_weights(folder / "step_3")) == Names{"w"});
    put_bytes(folder / "step_3/model.safetensors", "damaged");
    CHECK_THROWS_AS(read_weights(folder / "step_3"), CheckpointError);
}

TEST_CASE("weights are averaged in double, counters taken from the last", "[checkpoint][weights]") {
    const TemporaryFolder folder("weights");
    const auto save = [&](const char* name, float value, std::int64_t count) { save_weights(folder / name, {{"w", torch::full({2}, value)}, {"h", torch::full({1}, value, torch::kHalf)}, {"count", torch::tensor(count)}}); };
    save("a.safetensors", 1.0f, 1);
    save("b.pt", 2.0f, 2);
    save("c.safetensors", 6.0f, 3);
    const auto mean = average_weights({folder / "a.safetensors", folder / "b.pt", folder / "c.safetensors"});
    const std::map<std::string, at::Tensor> by_name(mean.begin(), mean.end());
    CHECK(by_name.at("w").equal(torch::full({2}, 3.0f)));
    CHECK(by_name.at("h").equal(torch::full({1}, 3.0, torch::kHalf)));
    CHECK(by_name.at("count").item<std::int64_t>() == 3);
    CHECK(equal(average_weights({folder / "a.safetensors"}), read_weights(folder / "a.safetensors")));
    save_weights(folder / "d.pt", {{"w", torch::ones(3)}});
    CHECK_THROWS_WITH(average_weights({folder / "a.safetensors", folder / "d.pt"}), containing("d.pt: it does not fit") && containing("'w' has shape [3], the model's has [2]"));
    CHECK_THROWS_WITH(average_weights({}), containing("there are no weights to average"));
}
