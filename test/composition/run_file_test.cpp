#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>
#include <torch/torch.h>

#include <torchbus/composition.hpp>
#include <torchbus/error.hpp>
#include <torchbus/trainer.hpp>

#include "support/catch.hpp"

using namespace torchbus;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// A run file in a temporary folder; the name that messages show is "run.json".
class RunFile {
public:
    explicit RunFile(const std::string& text) {
        former_ = fs::current_path();
        folder_ = fs::temp_directory_path() / ("torchbus-run-" + std::to_string(::getpid()));
        fs::create_directories(folder_);
        fs::current_path(folder_);
        std::ofstream("run.json") << text;
    }
    ~RunFile() {
        fs::current_path(former_);
        fs::remove_all(folder_);
    }
    json read(const std::vector<std::string>& overrides = {}) const { return read_run_file("run.json", overrides); }

private:
    fs::path former_, folder_;
};

json good() {
    return json::parse(R"({"seed": 3, "model": {"kind": "mlp", "inputs": 16, "hidden": [8], "classes": 4},
        "data": {"kind": "synthetic", "samples": 64}, "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        "schedule": {"kind": "cosine"}, "train": {"epochs": 2, "batch_size": 16},
        "callbacks": [{"kind": "metrics", "accuracy": true}, {"kind": "gradient_clipping", "max_norm": 1.0}]})");
}

std::string error_of(const json& run) {
    try {
        compose(run, "run.json");
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

/// `good()` with one value replaced.
std::string error_with(const char* pointer, json value) {
    json run = good();
    run[json::json_pointer(pointer)] = std::move(value);
    return error_of(run);
}

}  // namespace

TEST_CASE("a run file composes what it names, and trains", "[composition]") {
    Composition made = compose(good(), "run.json");
    CHECK(made.data == "synthetic: 64 training and 16 evaluation samples");
    REQUIRE(made.trainer.callbacks.size() == 3);
    CHECK(made.trainer.callbacks[2].id == "schedule");
    made.trainer.handle_signals = false;
    Trainer trainer(std::move(made.trainer));
    CHECK(trainer.train(made.train_dataset, made.eval_dataset, made.train).outcome == Outcome::Finished);
    CHECK(trainer.history().latest("eval.accuracy").value() > 0.2);
}

TEST_CASE("the same run file gives the same weights", "[composition][bits]") {
    std::vector<at::Tensor> weights[2];
    for (auto& copy : weights) {
        Composition made = compose(good(), "run.json");
        made.trainer.handle_signals = false;
        Model model = made.trainer.model;
        Trainer(std::move(made.trainer)).train(made.train_dataset, made.train);
        for (const auto& [name, tensor] : model->named_parameters()) copy.push_back(tensor);
    }
    for (std::size_t i = 0; i < weights[0].size(); ++i) CHECK(weights[0][i].equal(weights[1][i]));
}

TEST_CASE("every mistake in a run file is named with its path", "[composition][errors]") {
    CHECK(error_with("/callbacks/1/max_norm", -1) == "run.json: callbacks[1].max_norm: -1 is out of range; give a positive number");
    CHECK(error_with("/callbacks/1/max_norm", "big") == "run.json: callbacks[1].max_norm: \"big\" is a string; expected a number");
    CHECK(error_with("/callbacks/1/kind", "gradient_cliping") ==
          "run.json: callbacks[1]: unknown callback 'gradient_cliping'; did you mean 'gradient_clipping'? (torchbus callbacks lists them)");
    CHECK(error_with("/callbacks/0", json::object()) == "run.json: callbacks[0]: a callback needs its kind, e.g. {\"kind\": \"progress_bar\"}");
    CHECK(error_with("/callbacks/0", 3) == "run.json: callbacks[0]: 3 is a number; expected an object with options");
    CHECK(error_with("/callbacks", "none") == "run.json: callbacks: expected an array of callbacks, found a string");
    CHECK(error_with("/model/kind", "mlpp") == "run.json: model.kind: 'mlpp' is not known; did you mean 'mlp'? (expected one of mlp, lenet, resnet18)");
    CHECK(error_with("/model/hidden/0", 0) == "run.json: model.hidden[0]: 0 is out of range; give a number of at least 1");
    CHECK(error_with("/optimizer/kind", "sdg") == "run.json: optimizer.kind: 'sdg' is not known; did you mean 'sgd'? (expected one of sgd, adam, adamw, adagrad)");
    CHECK(error_with("/optimizer/learning_rate", -0.1) == "run.json: optimizer.learning_rate: -0.1 is out of range; give a number of at least 0");
    CHECK(error_with("/schedule/kind", "cosin") == "run.json: schedule.kind: 'cosin' is not known; did you mean 'cosine'? (expected one of constant, cosine, linear, step)");
    CHECK(error_with("/train/epochs", 0) == "run.json: train.epochs: 0 is out of range; give a number of at least 1");
    CHECK(error_with("/train/epochs", 1.5) == "run.json: train.epochs: 1.5 is a number; expected an integer");
    CHECK(error_with("/train/batch_size", 0) == "run.json: train.batch_size: 0 is out of range; give a number of at least 1");
    CHECK(error_with("/loss", "crossentropy") ==
          "run.json: loss: 'crossentropy' is not known; did you mean 'cross_entropy'? (expected one of cross_entropy, mse, l1, binary_cross_entropy)");
    CHECK(error_with("/data/kind", "mnis") == "run.json: data.kind: 'mnis' is not known; did you mean 'mnist'? (expected one of mnist, synthetic)");
    CHECK(error_with("/optimiser", json::object()).starts_with("run.json: optimiser: unknown key; did you mean 'optimizer'? (known: "));
    json run = good();
    run.erase("model");
    CHECK(error_of(run) == "run.json: 'model' is missing; a run file names model, data and optimizer");
}

TEST_CASE("a malformed run file is an error with line and column", "[composition][errors]") {
    const RunFile file("{\n  \"seed\": 1,\n  \"model\": {]\n}\n");
    CHECK_THROWS_WITH(file.read(), Catch::StartsWith("run.json: line 3, column 13: syntax error"));
}

TEST_CASE("a key that stands twice, a file that is no object or not there", "[composition][errors]") {
    CHECK_THROWS_WITH(RunFile("{\"seed\": 1, \"seed\": 2}").read(), "run.json: the key 'seed' stands twice in one object; remove one of them");
    CHECK_THROWS_WITH(RunFile("[1, 2]").read(), "run.json: a run file is a JSON object; found a array");
    CHECK_THROWS_WITH(read_run_file("nowhere.json"), "nowhere.json: cannot open the run file: No such file or directory");
}

TEST_CASE("--set overrides a value at any depth", "[composition][set]") {
    const RunFile file(good().dump());
    const json run = file.read({"optimizer.learning_rate=0.5", "callbacks[1].max_norm=2", "data.kind=mnist", "train.shuffle=false"});
    CHECK(run["optimizer"]["learning_rate"] == 0.5);
    CHECK(run["callbacks"][1]["max_norm"] == 2);
    CHECK(run["data"]["kind"] == "mnist");
    CHECK(run["train"]["shuffle"] == false);
    CHECK_THROWS_WITH(file.read({"callbacks[7].max_norm=2"}), "--set callbacks[7].max_norm=2: '7' is no index of an array of 2 entries");
    CHECK_THROWS_WITH(file.read({"seed.more=2"}), "--set seed.more=2: 'more' lies within 3, which is a number");
    CHECK_THROWS_WITH(file.read({"seed"}), "--set seed: expected path=value, e.g. --set optimizer.learning_rate=0.01");
}

TEST_CASE("an output folder that cannot be written is found before the run", "[composition][errors]") {
    CHECK_THROWS_WITH(require_writable_folder("/proc/torchbus", "run.json: output"),
                      Catch::StartsWith("run.json: output: cannot write to the folder '/proc/torchbus': "));
}
