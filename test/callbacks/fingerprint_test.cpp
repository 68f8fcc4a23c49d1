#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/fingerprint.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

struct FingerprintSetup {
    torch::nn::Sequential model = toy_model();
    std::shared_ptr<Callback> fingerprint;
    std::function<void(GradientsReady&)> change = [](GradientsReady&) {};
    Trainer trainer;
    explicit FingerprintSetup(FingerprintOptions options, std::uint64_t seed = 7, double rate = 0.1)
        : fingerprint(make_fingerprint(std::move(options))),
          trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = rate}), .callbacks = {ComposedCallback(fingerprint), callback_of("change", [this](Attachment& run, Connections& connections) {
                       connections += run.bus.intercept(Phase::Change, [this](GradientsReady& event) { change(event); });
                   })}, .seed = seed, .handle_signals = false}) {}
    RunResult train() { return trainer.train(toy_data(16), {.batch_size = 2}); }  // eight steps
};

std::vector<nlohmann::json> lines_of(const std::filesystem::path& path) {
    std::vector<nlohmann::json> lines;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
}

}  // namespace

TEST_CASE("the hash of a tensor is that of the documented rule", "[callbacks][fingerprint]") {
    // Computed by a Python transcript of the rule in fingerprint.hpp.
    CHECK(fingerprint_of(torch::tensor({1, 2}, torch::kLong)) == 0x22ce633e6c9aff60);
    CHECK(fingerprint_of(torch::tensor({1.0f, 2.0f, 3.0f})) == 0x88cb650cab913ac2);  // twelve bytes: the last word is filled up
    CHECK(fingerprint_of(torch::tensor(0.5f)) == 0x208581783b9cf845);
    CHECK(fingerprint_of(torch::empty({0}, torch::kByte)) == 0x860389c57a9c1205);
}

TEST_CASE("the hash tells type, shape and every bit, not how a tensor lies in memory", "[callbacks][fingerprint]") {
    const at::Tensor zeros = torch::zeros({6});
    CHECK(fingerprint_of(zeros) != fingerprint_of(zeros.view({2, 3})));
    CHECK(fingerprint_of(zeros) != fingerprint_of(torch::zeros({6}, torch::kInt)));
    CHECK(fingerprint_of(zeros) != fingerprint_of(-zeros));  // −0.0 has other bits
    const at::Tensor matrix = torch::arange(6.0).view({2, 3});
    CHECK(fingerprint_of(matrix.t()) == fingerprint_of(matrix.t().contiguous()));
    std::set<std::uint64_t> hashes;
    for (int bit = 0; bit < 64; ++bit) hashes.insert(fingerprint_of(torch::tensor({static_cast<std::int64_t>(std::uint64_t{1} << bit), std::int64_t{0}}, torch::kLong)));
    CHECK(hashes.size() == 64);
}

TEST_CASE("two equal runs have equal fingerprints, a line at every interval", "[callbacks][fingerprint]") {
    const TemporaryFolder folder("fingerprint");
    for (const char* name : {"a", "b"}) CHECK(FingerprintSetup({.every = "2step", .path = folder / name}).train().outcome == Outcome::Finished);
    CHECK(difference_of_fingerprints(folder / "a", folder / "b").empty());
    const auto lines = lines_of(folder / "a");
    REQUIRE(lines.size() == 4);
    CHECK(lines[3]["step"] == 8);
    CHECK(lines[0]["gradients"].size() == 4);
    CHECK(lines[0]["parameters"].size() == 4);
    CHECK(lines[0]["generators"].contains("cpu"));
    CHECK(lines[0]["loss"].get<std::string>().size() == 16);
    CHECK(lines[0]["parameters"] != lines[1]["parameters"]);
}

TEST_CASE("a comparison names the first step, and the tensor where it began", "[callbacks][fingerprint]") {
    const TemporaryFolder folder("fingerprint");
    FingerprintSetup({.every = "1step", .path = folder / "reference"}).train();
    FingerprintSetup touched({.every = "1step", .path = folder / "touched"});
    touched.change = [&](GradientsReady& event) { if (event.position.step == 4) touched.model[2]->as<torch::nn::Linear>()->bias.mutable_grad()[1] += 1e-6f; };
    touched.train();
    CHECK(difference_of_fingerprints(folder / "reference", folder / "touched") == "step 5, line 5: gradients differ: 2.bias");
    FingerprintSetup({.every = "1step", .path = folder / "other_seed"}, 8).train();
    CHECK(difference_of_fingerprints(folder / "reference", folder / "other_seed") == "step 1, line 1: the samples differ");
    FingerprintSetup({.every = "1step", .path = folder / "other_rate"}, 7, 0.2).train();
    CHECK(difference_of_fingerprints(folder / "reference", folder / "other_rate") == "step 1, line 1: parameters differ: 0.bias, 0.weight, 2.bias, 2.weight");
    FingerprintSetup draws({.every = "1step", .path = folder / "draws"});
    draws.change = [](GradientsReady& event) { if (event.position.step == 2) torch::rand({1}); };
    draws.train();
    CHECK(difference_of_fingerprints(folder / "reference", folder / "draws") == "step 3, line 3: generators differ: cpu");
    FingerprintSetup skips({.every = "1attempt", .path = folder / "skips"});
    skips.change = [](GradientsReady& event) { if (event.position.step == 1) event.skip("change", "a test"); };
    skips.train();
    CHECK_THAT(difference_of_fingerprints(folder / "reference", folder / "skips"), Catch::Matchers::StartsWith("step 2, line 2: the step is 2 in one and 1 in the other"));
}

TEST_CASE("a new run begins the file anew, a resumed one adds to it", "[callbacks][fingerprint]") {
    const TemporaryFolder folder("fingerprint");
    FingerprintSetup setup({.every = "4step", .path = folder / "f"});
    for (int run = 0; run < 2; ++run) {
        setup.train();
        CHECK(lines_of(folder / "f").size() == 2);
    }
    FingerprintSetup resumed({.every = "4step", .path = folder / "f"});
    resumed.fingerprint->load_state(setup.fingerprint->state());
    resumed.train();
    CHECK(lines_of(folder / "f").size() == 4);
    CHECK(difference_of_fingerprints(folder / "f", folder / "f").empty());
    std::filesystem::copy_file(folder / "f", folder / "short");
    std::filesystem::resize_file(folder / "short", std::filesystem::file_size(folder / "short") / 2);
    CHECK(difference_of_fingerprints(folder / "f", folder / "short") == "the first 2 lines are equal; then one has 4 lines, the other 2");
}

TEST_CASE("a function gets the records instead of a file", "[callbacks][fingerprint]") {
    std::vector<nlohmann::json> records;
    FingerprintSetup setup({.every = "1epoch", .path = {}, .write = [&](const nlohmann::json& record) { records.push_back(record); }});
    setup.train();
    REQUIRE(records.size() == 1);
    CHECK(records[0]["step"] == 8);
}

TEST_CASE("a full disk and files of another kind are told", "[callbacks][fingerprint]") {
    const TemporaryFolder folder("fingerprint");
    CHECK_THROWS_WITH(FingerprintSetup({.every = "1step", .path = "/dev/full"}).train(), containing("/dev/full: cannot write; make room, or give fingerprint another path"));
    CHECK_THROWS_WITH(FingerprintSetup({.path = "/proc/self/nowhere/f"}).train(), "'fingerprint' cannot write to '/proc/self/nowhere/f': No such file or directory; give another `path`");
    std::ofstream(folder / "text") << "no JSON\n";
    CHECK_THROWS_WITH(difference_of_fingerprints(folder / "text", folder / "text"), Catch::Matchers::EndsWith("text: line 1 is no fingerprint; is it a file that `fingerprint` wrote?"));
    CHECK_THROWS_WITH(difference_of_fingerprints(folder / "none", folder / "none"), Catch::Matchers::EndsWith("none: cannot open the file: No such file or directory"));
    CHECK_THROWS_WITH(make_fingerprint({.every = 0}), "fingerprint: every: 0 is not positive; give an interval, e.g. \"100step\"");
    CHECK_THROWS_AS(make_fingerprint({.path = {}}), ConfigError);
}
