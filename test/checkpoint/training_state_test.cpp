#include <fstream>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <torch/torch.h>

#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;
namespace fs = std::filesystem;

namespace {

/// Parts that a test has written down.
class FakeRun final : public RunState {
public:
    std::vector<std::pair<std::string, SavedState>> own;
    std::map<std::string, SavedState> loaded;
    std::string broken_part;  ///< save throws there
    std::vector<std::string> parts() const override {
        std::vector<std::string> names;
        for (const auto& [name, state] : own) names.push_back(name);
        return names;
    }
    bool is_resumable() const override { return true; }
    SavedState save(std::string_view part) const override {
        if (part == broken_part) throw StateError("this part cannot be saved");
        for (const auto& [name, state] : own)
            if (name == part) return state;
        throw StateError("there is no such part");
    }
    void load(std::string_view part, const SavedState& state) override {
        if (part == "position") throw StateError("not while a run is under way");
        if (part == "callback.picky") throw std::out_of_range("key 'best' not found");
        loaded[std::string(part)] = state;
    }
};

FakeRun fake_run(double value = 1) {
    FakeRun run;
    run.own = {{"model", {{}, {{"weight", torch::full({2, 3}, value)}, {"bias", torch::full({2}, value)}}}},
               {"update", {{}, {{"archive", torch::arange(7).to(torch::kByte)}}}},
               {"generators", {{}, {{"cpu", torch::arange(9).to(torch::kByte)}}}},
               {"position", {{{"step", 5}}, {}}},
               {"callback.stop/ping", {{{"best", value}, {"note", "two\nlines"}}, {{"kept", torch::ones({0, 2})}}}},
               {"callback.stop_ping", {{{"waited", 2}}, {{"kept", torch::zeros({1})}}}}};
    return run;
}

void overwrite(const fs::path& file, const std::string& text) { std::ofstream(file, std::ios::trunc) << text; }

}  // namespace

TEST_CASE("a training state comes back as it was saved, part by part", "[checkpoint][training-state]") {
    const TemporaryFolder folder("training-state");
    FakeRun run = fake_run();
    write_training_state(folder / "step_5", run);
    CHECK(names_in(folder.path()) == std::vector<std::string>{"step_5"});
    CHECK(names_in(folder / "step_5") == std::vector<std::string>{"callback.stop_ping.safetensors", "callback.stop_ping_.safetensors", "generators.safetensors",
                                                                  "manifest.json", "model.safetensors", "state.json", "update.safetensors"});
    const RestoredState restored = load_training_state(folder / "step_5", run);
    CHECK(restored.put_back == std::vector<std::string>{"update", "model", "callback.stop/ping", "callback.stop_ping", "generators"});
    CHECK(restored.left_out == std::vector<std::string>{"position"});
    CHECK(restored.not_saved.empty());
    for (const auto& [part, state] : run.own) {
        if (part == "position") continue;
        CHECK(run.loaded.at(part).values == state.values);
        CHECK(run.loaded.at(part).tensors.size() == state.tensors.size());
        for (const auto& [name, tensor] : state.tensors) CHECK(run.loaded.at(part).tensors.at(name).equal(tensor));
    }
}

TEST_CASE("numbers that JSON does not know come back too", "[checkpoint][training-state]") {
    const TemporaryFolder folder("training-state");
    FakeRun run = fake_run();
    const double infinity = std::numeric_limits<double>::infinity();
    run.own.back().second.values = {{"list", {infinity, -infinity, std::nan(""), 0.1}}, {"deep", {{"best", infinity}}}, {"text", "inf"}};
    write_training_state(folder / "step_1", run);
    load_training_state(folder / "step_1", run);
    const auto& values = run.loaded.at("callback.stop_ping").values;
    CHECK(values["list"][0] == infinity);
    CHECK(values["list"][1] == -infinity);
    CHECK(std::isnan(values["list"][2].get<double>()));
    CHECK(values["list"][3] == 0.1);
    CHECK(values["deep"]["best"] == infinity);
    CHECK(values["text"] == "inf");
}

TEST_CASE("a save that fails leaves the former one and nothing else", "[checkpoint][training-state]") {
    const TemporaryFolder folder("training-state");
    FakeRun run = fake_run(1);
    write_training_state(folder / "step_5", run);
    FakeRun broken = fake_run(2);
    broken.broken_part = "generators";
    CHECK_THROWS_WITH(write_training_state(folder / "step_5", broken), "this part cannot be saved");
    CHECK(names_in(folder.path()) == std::vector<std::string>{"step_5"});
    load_training_state(folder / "step_5", run);
    CHECK(run.loaded.at("model").tensors.at("bias").equal(torch::ones({2})));
    overwrite(folder / "occupied", "a file");
    CHECK_THROWS_WITH(write_training_state(folder / "occupied/step_1", run), containing("occupied: cannot make the folder: Not a directory; nothing was changed"));
}

TEST_CASE("a save replaces one of the same name, and what a dead process left half done", "[checkpoint][training-state]") {
    const TemporaryFolder folder("training-state");
    write_training_state(folder / "step_5", fake_run(1));
    overwrite(folder / "step_5/left_over", "of the first");
    fs::create_directories(folder / ".step_5.part");
    overwrite(folder / ".step_5.part/model.safetensors", "half");
    FakeRun run = fake_run(2);
    write_training_state(folder / "step_5", run);
    CHECK(names_in(folder.path()) == std::vector<std::string>{"step_5"});
    CHECK_FALSE(fs::exists(folder / "step_5/left_over"));
    load_training_state(folder / "step_5", run);
    CHECK(run.loaded.at("model").tensors.at("bias").equal(torch::full({2}, 2.0)));
}

TEST_CASE("a process killed at any moment of its saves leaves a whole state", "[checkpoint][training-state]") {
    const TemporaryFolder folder("training-state");
    for (int attempt = 0; attempt < 12; ++attempt) {
        write_training_state(folder / "step_5", fake_run(0));
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            for (double value = 1;; ++value) write_training_state(folder / "step_5", fake_run(value));
        }
        ::usleep(static_cast<useconds_t>(500 + attempt * 1700));
        ::kill(child, SIGKILL);
        int status = 0;
        ::waitpid(child, &status, 0);
        REQUIRE(WIFSIGNALED(status));
        FakeRun run = fake_run();
        load_training_state(folder / "step_5", run);
        const at::Tensor bias = run.loaded.at("model").tensors.at("bias");
        CHECK(run.loaded.at("model").tensors.at("weight").equal(bias[0].expand({2, 3})));              // of one save, not of two
        CHECK(run.loaded.at("callback.stop/ping").values.at("best").get<double>() == bias[0].item<double>());
        for (const std::string& name : names_in(folder.path())) CHECK((name == "step_5" || name == ".step_5.part"));
    }
}

TEST_CASE("what is missing, truncated or damaged is refused with the way out, and nothing is loaded", "[checkpoint][training-state]") {
    const TemporaryFolder folder("training-state");
    FakeRun run = fake_run();
    for (const char* name : {"step_5", "step_10", "step_9"}) write_training_state(folder / name, run);
    const std::string earlier = "; resume from " + (folder / "step_9").string();
    const fs::path weights = folder / "step_10/model.safetensors";
    const auto size = fs::file_size(weights);
    fs::resize_file(weights, 118);
    CHECK_THROWS_WITH(load_training_state(folder / "step_10", run),
                      (weights.string() + ": 118 bytes, expected " + std::to_string(size) + "; the file is truncated" + earlier));
    fs::remove(weights);
    CHECK_THROWS_WITH(load_training_state(folder / "step_10", run), weights.string() + ": cannot open the file: No such file or directory" + earlier);
    const fs::path manifest = folder / "step_10/manifest.json";
    overwrite(manifest, R"({"format": "torchbus checkpoint", "version": 2, "bo)");
    CHECK_THROWS_WITH(load_training_state(folder / "step_10", run), manifest.string() + ": the file is truncated, damaged or of another kind" + earlier);
    overwrite(manifest, R"({"format": "torchbus checkpoint", "version": 7, "body": {}})");
    CHECK_THROWS_WITH(load_training_state(folder / "step_10", run), manifest.string() + ": version 7 is not known, expected 2; it was written by another torchbus" + earlier);
    overwrite(manifest, R"({"format": "torchbus checkpoint", "version": 2, "checksum": "00", "body": {}})");
    CHECK_THROWS_WITH(load_training_state(folder / "step_10", run), manifest.string() + ": its checksum is not that of its content; the file is damaged" + earlier);
    fs::remove(manifest);
    CHECK_THROWS_WITH(load_training_state(folder / "step_10", run), (folder / "step_10").string() + ": it holds no manifest.json, so it is no training state, or not a whole one" + earlier);
    CHECK_THROWS_WITH(load_training_state(folder / "step_11", run), containing("step_11: there is no such folder") && Catch::Matchers::EndsWith(earlier));
    CHECK(run.loaded.empty());
    CHECK(newest_training_state(folder.path()) == folder / "step_9");  // step_10 is not whole, and numbers are not text
    CHECK(newest_training_state(folder.path(), 9) == folder / "step_5");
    CHECK_FALSE(newest_training_state(folder / "nowhere").has_value());
}

TEST_CASE("a state of another model or other updates is refused before anything is loaded", "[checkpoint][training-state]") {
    const TemporaryFolder folder("training-state");
    const FakeRun saved = fake_run();
    write_training_state(folder / "step_5", saved);
    FakeRun other = fake_run();
    other.own[0].second.tensors = {{"weight", torch::zeros({4, 3})}, {"scale", torch::ones({1})}};
    CHECK_THROWS_WITH(load_training_state(folder / "step_5", other), Catch::Matchers::EndsWith("step_5: it is of another model: 'scale' is missing; 'weight' has shape [2, 3], "
                                                                                     "the model's has [4, 3]; 'bias' is not in the model; nothing was loaded"));
    FakeRun gan = fake_run();
    gan.own[1].first = "update.generator";
    CHECK_THROWS_WITH(load_training_state(folder / "step_5", gan), Catch::Matchers::EndsWith("it has no part 'update.generator', which this run has; it is of another run; nothing was loaded"));
    CHECK(other.loaded.empty());
    CHECK(gan.loaded.empty());
}

TEST_CASE("callbacks that only one side knows are named, and one that refuses its state is too", "[checkpoint][training-state]") {
    const TemporaryFolder folder("training-state");
    write_training_state(folder / "step_5", fake_run());
    FakeRun run = fake_run();
    run.own[4].first = "callback.new";
    const RestoredState restored = load_training_state(folder / "step_5", run);
    CHECK(restored.left_out == std::vector<std::string>{"position", "callback.stop/ping"});
    CHECK(restored.not_saved == std::vector<std::string>{"callback.new"});
    run.own[5].first = "callback.picky";
    write_training_state(folder / "step_6", run);
    CHECK_THROWS_WITH(load_training_state(folder / "step_6", run), Catch::Matchers::EndsWith("step_6: the part 'callback.picky' does not fit this run: key 'best' not found"));
}
