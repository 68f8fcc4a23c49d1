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

TEST_CASE("what a run file says of model, data, loss and schedule is kept with the run, for who resumes it", "[composition]") {
    const Composition made = compose(good(), "run.json");
    CHECK(made.trainer.configuration == json{{"model", good()["model"]}, {"data", good()["data"]}});
    CHECK(made.trainer.callbacks.back().id == "schedule");
    CHECK(made.trainer.callbacks.back().options == good()["schedule"]);
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
    for (const int stage : {2, 3})
        CHECK(error_with("/callbacks/0", {{"kind", "zero_redundancy"}, {"stage", stage}}) ==
              "run.json: callbacks[0].stage: ZeRO stage " + std::to_string(stage) + " is not supported; give 1, which divides the optimizer's state: 2 would divide gradients and 3 parameters, too");
    CHECK(error_with("/model/kind", "mlpp") == "run.json: model.kind: 'mlpp' is not known; did you mean 'mlp'? (expected one of mlp, lenet, resnet18)");
    CHECK(error_with("/model/hidden/0", 0) == "run.json: model.hidden[0]: 0 is out of range; give a number of at least 1");
    CHECK(error_with("/optimizer/kind", "sdg") == "run.json: optimizer.kind: 'sdg' is not known; did you mean 'sgd'? (expected one of sgd, adam, adamw, adagrad)");
    CHECK(error_with("/optimizer/learning_rate", -0.1) == "run.json: optimizer.learning_rate: -0.1 is out of range; give a number of at least 0");
    CHECK(error_with("/schedule/kind", "cosin") == "run.json: schedule.kind: 'cosin' is not known; did you mean 'cosine'? (expected one of constant, cosine, deepspeed, exponential, linear, multi_step, one_cycle, polynomial, sequence, step, warmup_stable_decay)");
    CHECK(error_with("/train/epochs", 0) == "run.json: train.epochs: 0 is out of range; give a number of at least 1");
    CHECK(error_with("/train/epochs", 1.5) == "run.json: train.epochs: 1.5 is a number; expected an integer");
    CHECK(error_with("/train/batch_size", 0) == "run.json: train.batch_size: 0 is out of range; give a number of at least 1");
    CHECK(error_with("/loss", "crossentropy") ==
          "run.json: loss: 'crossentropy' is not known; did you mean 'cross_entropy'? (expected one of cross_entropy, mse, l1, binary_cross_entropy)");
    CHECK(error_with("/data/kind", "mnis") == "run.json: data.kind: 'mnis' is not known; did you mean 'mnist'? (expected one of mnist, synthetic)");
    CHECK(error_with("/loss", {{"kind", "mse"}, {"delta", 1}}) == "run.json: loss.delta: unknown key (known: kind)");
    CHECK(error_with("/optimiser", json::object()).starts_with("run.json: optimiser: unknown key; did you mean 'optimizer'? (known: "));
    json run = good();
    run.erase("model");
    CHECK(error_of(run) == "run.json: 'model' is missing; a run file names model, data and optimizer");
}

TEST_CASE("a malformed run file is an error with line and column", "[composition][errors]") {
    const RunFile file("{\n  \"seed\": 1,\n  \"model\": {]\n}\n");
    CHECK_THROWS_WITH(file.read(), Catch::Matchers::StartsWith("run.json: line 3, column 13: syntax error"));
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

namespace {

/// The text of a run file that also includes.
std::string with_include(json run, json include) {
    run["include"] = std::move(include);
    return run.dump();
}

void write_json(const fs::path& path, const json& content) {
    if (path.has_parent_path()) fs::create_directories(path.parent_path());
    std::ofstream(path) << content.dump();
}

/// An environment variable for the time of a test.
class Variable {
public:
    Variable(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
    ~Variable() { ::unsetenv(name_); }

private:
    const char* name_;
};

std::string error_reading(const std::vector<std::string>& overrides = {}) {
    try {
        compose(load_run_file("run.json", overrides));
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

}  // namespace

TEST_CASE("an included file comes first: objects merge, all else replaces", "[composition][include]") {
    const RunFile file(with_include({{"train", {{"epochs", 5}}}, {"model", {{"hidden", {4, 4}}}}, {"callbacks", {{{"kind", "progress_bar"}}}}}, "base.json"));
    write_json("base.json", good());
    const json run = file.read();
    CHECK_FALSE(run.contains("include"));
    CHECK(run["train"] == json({{"epochs", 5}, {"batch_size", 16}}));
    CHECK(run["model"] == json::parse(R"({"kind": "mlp", "inputs": 16, "hidden": [4, 4], "classes": 4})"));
    CHECK(run["callbacks"] == json::parse(R"([{"kind": "progress_bar"}])"));
    CHECK(run["seed"] == 3);
    CHECK(file.read({"seed=7"})["seed"] == 7);
    CHECK(compose(load_run_file("run.json")).train.epochs == 5);
}

TEST_CASE("of several included files the later one goes before the earlier", "[composition][include]") {
    const RunFile file(with_include({{"seed", 1}}, {"a.json", "b.json"}));
    write_json("a.json", {{"seed", 2}, {"output", "a"}, {"train", {{"epochs", 2}}}});
    write_json("b.json", {{"seed", 3}, {"output", "b"}, {"train", {{"batch_size", 8}}}});
    CHECK(file.read() == json::parse(R"({"seed": 1, "output": "b", "train": {"epochs": 2, "batch_size": 8}})"));
}

TEST_CASE("an object of another kind replaces the included one", "[composition][include]") {
    const RunFile file(with_include({{"optimizer", {{"kind", "adam"}}}}, "base.json"));
    write_json("base.json", {{"optimizer", {{"kind", "sgd"}, {"momentum", 0.9}}}});
    CHECK(file.read()["optimizer"] == json({{"kind", "adam"}}));
}

TEST_CASE("included files and plug-ins are looked for beside the file that names them", "[composition][include]") {
    const RunFile file(with_include({{"seed", 1}}, "parts/base.json"));
    write_json("parts/base.json", {{"include", "../common.json"}, {"plugins", {"mine.so", "/opt/other.so"}}});
    write_json("common.json", {{"output", "out"}});
    CHECK(file.read() == json::parse(R"({"seed": 1, "output": "out", "plugins": ["parts/mine.so", "/opt/other.so"]})"));
}

TEST_CASE("two files may include the same third, but no file itself", "[composition][include][errors]") {
    const RunFile file(with_include(json::object(), {"a.json", "b.json"}));
    write_json("a.json", {{"include", "c.json"}});
    write_json("b.json", {{"include", "./c.json"}});
    write_json("c.json", {{"seed", 4}});
    CHECK(file.read() == json({{"seed", 4}}));
    write_json("c.json", {{"include", "a.json"}});
    CHECK_THROWS_WITH(file.read(), "c.json: include: a.json includes itself: a.json -> c.json -> a.json; remove one of the includes");
    write_json("a.json", {{"include", "a.json"}});
    CHECK_THROWS_WITH(file.read(), "a.json: include: a.json includes itself: a.json -> a.json; remove one of the includes");
}

TEST_CASE("an include that cannot be read names both files", "[composition][include][errors]") {
    const RunFile file(with_include(json::object(), "base.json"));
    CHECK_THROWS_WITH(file.read(), "run.json: include: base.json: cannot open the run file: No such file or directory");
    std::ofstream("base.json") << "{\n\"seed\": }";
    CHECK_THROWS_WITH(file.read(), Catch::Matchers::StartsWith("base.json: line 2, column 9: syntax error"));
    write_json("base.json", json::array({1}));
    CHECK_THROWS_WITH(file.read(), "base.json: a run file is a JSON object; found a array");
    write_json("run.json", {{"include", 3}});
    CHECK_THROWS_WITH(file.read(), "run.json: include: 3 is a number; expected a file's name, or a list of them");
    write_json("run.json", {{"include", {""}}});
    CHECK_THROWS_WITH(file.read(), "run.json: include: \"\" is a string; expected a file's name, or a list of them");
}

TEST_CASE("a mistake is told with the file that it stands in", "[composition][include][errors]") {
    const RunFile file(with_include({{"train", {{"epochs", 2}}}}, "base.json"));
    json base = good();
    base["optimizer"]["learning_rate"] = -0.5;
    write_json("base.json", base);
    CHECK(error_reading() == "base.json: optimizer.learning_rate: -0.5 is out of range; give a number of at least 0");
    CHECK(error_reading({"optimizer.learning_rate=-2"}) == "run.json: optimizer.learning_rate: -2 is out of range; give a number of at least 0");
    base = good();
    base["callbacks"][1]["max_norm"] = -1;
    write_json("base.json", base);
    CHECK(error_reading() == "base.json: callbacks[1].max_norm: -1 is out of range; give a positive number");
    CHECK(error_reading({"callbacks[1].max_norm=-2"}) == "run.json: callbacks[1].max_norm: -2 is out of range; give a positive number");
    base = good();
    base["optimiser"] = 1;
    write_json("base.json", base);
    CHECK(error_reading().starts_with("base.json: optimiser: unknown key; did you mean 'optimizer'? (known: "));
    base = good();
    base["train"]["epochs"] = 0;
    write_json("base.json", base);
    CHECK(error_reading() == "no error");  // run.json has another
    write_json("run.json", {{"include", "base.json"}, {"train", {{"epochs", 0}}}});
    CHECK(error_reading() == "run.json: train.epochs: 0 is out of range; give a number of at least 1");
    write_json("run.json", {{"include", "base.json"}, {"data", {{"sampels", 3}}}});
    CHECK(error_reading().starts_with("base.json: train.epochs: 0 is out of range"));
}

TEST_CASE("environment variables are put into texts, once", "[composition][environment]") {
    const Variable home("TORCHBUS_TEST_HOME", "/data/${TORCHBUS_TEST_OTHER}"), empty("TORCHBUS_TEST_EMPTY", "");
    const RunFile file(json({{"output", "${TORCHBUS_TEST_HOME}/run-${TORCHBUS_TEST_UNSET:-1:-2}"},
                             {"data", {{"folder", "${TORCHBUS_TEST_EMPTY:-none}"}, {"list", {"[${TORCHBUS_TEST_EMPTY}]", "$${HOME} $5 ${TORCHBUS_TEST_UNSET:-}"}}}}}).dump());
    CHECK(file.read() == json::parse(R"({"output": "/data/${TORCHBUS_TEST_OTHER}/run-1:-2",
                                         "data": {"folder": "none", "list": ["[]", "${HOME} $5 "]}})"));
    CHECK(file.read({"output=${HOME}"})["output"] == "${HOME}");  // --set comes after: the shell has put in its own
}

TEST_CASE("a variable names the file to include", "[composition][environment][include]") {
    const Variable which("TORCHBUS_TEST_BASE", "small");
    const RunFile file(with_include(json::object(), "${TORCHBUS_TEST_BASE}.json"));
    write_json("small.json", {{"seed", 9}});
    CHECK(file.read() == json({{"seed", 9}}));
}

TEST_CASE("a variable that is not set or no variable is an error with its path", "[composition][environment][errors]") {
    const RunFile file(json({{"callbacks", {{{"kind", "x"}, {"path", "a ${TORCHBUS_TEST_UNSET}"}}}}}).dump());
    CHECK_THROWS_WITH(file.read(), "run.json: callbacks[0].path: the environment variable 'TORCHBUS_TEST_UNSET' is not set; set it, or give a default: "
                                   "${TORCHBUS_TEST_UNSET:-...}");
    write_json("run.json", {{"include", "base.json"}});
    write_json("base.json", {{"data", {{"folder", "${TORCHBUS_TEST_UNSET}"}}}});
    CHECK_THROWS_WITH(file.read(), Catch::Matchers::StartsWith("base.json: data.folder: the environment variable 'TORCHBUS_TEST_UNSET' is not set"));
    write_json("run.json", {{"output", "${1X}"}});
    CHECK_THROWS_WITH(file.read(), "run.json: output: '${1X}' names no environment variable; write ${NAME} or ${NAME:-default}, and $${ for the signs themselves");
    write_json("run.json", {{"output", "${HOME"}});
    CHECK_THROWS_WITH(file.read(), "run.json: output: '${HOME' has a ${ without its }; write $${ for the signs themselves");
}

TEST_CASE("a run that is looked at as one of several ranks has as many as an Accelerate file says", "[composition][accelerate][errors]") {
    json run = good();
    run["accelerate"] = "two.yaml";
    const RunFile file(run.dump());
    std::ofstream("two.yaml") << "distributed_type: MULTI_CPU\nnum_processes: 2\n";
    CHECK_NOTHROW(load_run_file("run.json", {}, Purpose::Look));
    const Variable rank("RANK", "0"), size("WORLD_SIZE", "128"), address("MASTER_ADDR", "127.0.0.1"), port("MASTER_PORT", "1");
    for (const Purpose purpose : {Purpose::Train, Purpose::Look})
        CHECK_THROWS_WITH(load_run_file("run.json", {}, purpose),
                          "two.yaml: num_processes is 2, and this run has 128 ranks; start it by torchbus launch --config two.yaml, check it with --world-size 2, or change the number");
}

TEST_CASE("an output folder that cannot be written is found before the run", "[composition][errors]") {
    CHECK_THROWS_WITH(require_writable_folder("/proc/torchbus", "run.json: output"),
                      Catch::Matchers::StartsWith("run.json: output: cannot write to the folder '/proc/torchbus': "));
}
