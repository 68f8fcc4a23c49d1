#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/composition.hpp>
#include <torchbus/composition_schema.hpp>
#include <torchbus/error.hpp>
#include <torchbus/plugin.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/plugin_folder.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

std::string plugin(const std::string& name) { return (plugin_folder() / (name + ".so")).string(); }

std::string error_loading(const fs::path& path) {
    try {
        load_plugin(path);
    } catch (const ConfigError& error) {
        return error.what();
    }
    return "no error";
}

/// The kinds of all tables.
std::vector<std::vector<std::string>> all_kinds() {
    return {callback_table().kinds(), model_table().kinds(), data_table().kinds(), loss_table().kinds(), optimizer_table().kinds(), schedule_table().kinds()};
}

/// Says to refused.so why it shall be refused.
std::string error_when_refused(const char* why) {
    ::setenv("TORCHBUS_TEST_PLUGIN", why, 1);
    const auto before = all_kinds();
    const std::string error = error_loading(plugin("refused"));
    CHECK(all_kinds() == before);
    const std::string path = plugin("refused") + ": the plug-in 'refused' cannot register: ", end = "; nothing of it was taken";
    REQUIRE(error.starts_with(path));
    REQUIRE(error.ends_with(end));
    return error.substr(path.size(), error.size() - path.size() - end.size());
}

std::shared_ptr<Callback> probe(const char* throws_in) {
    load_plugin(plugin("good"));
    OptionReader reader(json{{"throws_in", throws_in}}, "probe");
    return find_callback("plugin_probe").from_json(reader);
}

/// Leaves the tables as other tests expect them.
struct Loading {
    ~Loading() { unregister_plugins(); }
};

struct Toy {
    torch::nn::Sequential model = toy_model();
    Trainer trainer;
    explicit Toy(std::vector<ComposedCallback> callbacks = {})
        : trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                   .callbacks = std::move(callbacks), .seed = 3, .handle_signals = false}) {}
    RunResult train() { return trainer.train(toy_data(16), toy_data(8), {.epochs = 2, .batch_size = 4}); }
};

/// Whether training goes as it does without a plug-in, to the bit.
bool trains_as_ever(Toy& toy) {
    Toy plain;
    plain.train();
    const RunResult result = toy.train();
    return result.outcome == Outcome::Finished && equal_bits(toy.model->parameters(), plain.model->parameters());
}

json run_with_plugin() {
    return {{"plugins", {plugin("good")}},
            {"model", {{"kind", "line"}}},
            {"data", {{"kind", "ramp"}, {"samples", 16}}},
            {"loss", {{"kind", "huber"}, {"delta", 2.0}}},
            {"optimizer", {{"kind", "plain"}, {"learning_rate", 1.0}}},
            {"schedule", {{"kind", "halving"}, {"every", 1000}}},
            {"train", {{"epochs", 200}, {"batch_size", 8}}},
            {"callbacks", {{{"kind", "metrics"}}, {{"kind", "plugin_probe"}}}}};
}

}  // namespace

TEST_CASE_METHOD(Loading, "a plug-in brings its kinds into every table, once", "[plugin]") {
    const LoadedPlugin loaded = load_plugin(plugin("good"));
    CHECK(loaded.name == "good");
    CHECK(loaded.brings == std::vector<std::string>{"callback plugin_probe", "callback positive_share", "model line", "data ramp", "loss huber", "optimizer plain", "schedule halving"});
    CHECK(find_callback("plugin_probe").summary == "Counts updates.");
    CHECK(describe_callback("plugin_probe").at(0).name == "throws_in");
    const auto kinds = all_kinds();
    CHECK(load_plugin(plugin("good")).brings == loaded.brings);
    CHECK(all_kinds() == kinds);
    CHECK(std::ranges::count(loaded_plugins(), "good", &LoadedPlugin::name) == 1);
}

TEST_CASE_METHOD(Loading, "a run file trains with what a plug-in brings", "[plugin][composition]") {
    Composition made = compose(run_with_plugin(), "run.json");
    CHECK(made.data == "ramp: 16 training and 16 evaluation samples");
    made.trainer.handle_signals = false;
    Model model = made.trainer.model;
    Trainer trainer(std::move(made.trainer));
    CHECK(trainer.train(made.train_dataset, made.eval_dataset, made.train).outcome == Outcome::Finished);
    CHECK(trainer.blackboard().number("probe_steps").value() == 400);  // 200 epochs of two batches
    const at::Tensor weight = model->named_parameters().front().second;
    CHECK(weight[0].item<double>() == Approx(2).margin(0.05));  // the ramp is 2 x + 1
    CHECK(weight[1].item<double>() == Approx(1).margin(0.05));
}

TEST_CASE_METHOD(Loading, "the schema and the messages know what a plug-in brings", "[plugin][schema]") {
    load_plugin(plugin("good"));
    const std::string schema = run_file_schema().dump();
    for (const char* kind : {"plugin_probe", "line", "ramp", "huber", "plain", "halving"}) CHECK(schema.find("\"const\":\"" + std::string(kind) + "\"") != std::string::npos);
    json run = run_with_plugin();
    run["model"]["kind"] = "lin";
    CHECK_THROWS_WITH(compose(run, "run.json"), "run.json: model.kind: 'lin' is not known; did you mean 'line'? (expected one of mlp, lenet, resnet18, line)");
}

TEST_CASE_METHOD(Loading, "a run file names plug-ins relative to itself", "[plugin][composition]") {
    const fs::path folder = fs::temp_directory_path() / ("torchbus-plugin-" + std::to_string(::getpid()));
    fs::create_directories(folder);
    fs::create_symlink(plugin("good"), folder / "mine.so");
    json run = run_with_plugin();
    run["plugins"] = "mine.so";
    std::ofstream(folder / "run.json") << run.dump();
    CHECK(compose(load_run_file(folder / "run.json")).data == "ramp: 16 training and 16 evaluation samples");
    run["plugins"] = {"mine.so", "nowhere.so"};
    std::ofstream(folder / "run.json") << run.dump();
    const std::string file = (folder / "run.json").string();
    CHECK_THROWS_WITH(compose(load_run_file(file)), file + ": plugins[1]: " + (folder / "nowhere.so").string() +
                                                        ": there is no such file; expected a plug-in (a path in a run file is relative to that file)");
    fs::remove_all(folder);
}

TEST_CASE_METHOD(Loading, "what is no plug-in is refused", "[plugin][errors]") {
    const auto kinds = all_kinds();
    CHECK(error_loading("nowhere.so") == "nowhere.so: there is no such file; expected a plug-in (a path in a run file is relative to that file)");
    CHECK(error_loading(source_root() + "/README.md").starts_with(source_root() + "/README.md: cannot be loaded: "));
    CHECK(error_loading(plugin("no_entry")) == plugin("no_entry") + ": is no plug-in: it has no function torchbus_plugin; add TORCHBUS_PLUGIN(\"name\", "
                                                                   "register_all) of <torchbus/plugin.hpp>");
    CHECK(error_loading(plugin("no_description")) == plugin("no_description") + ": is no plug-in: torchbus_plugin() returned nothing");
    const std::string undefined = error_loading(plugin("undefined_symbol"));
    CHECK_THAT(undefined, Catch::Matchers::StartsWith(plugin("undefined_symbol") + ": cannot be loaded: ") && containing("undefined symbol") && containing("of_a_library_that_is_not_there"));
    CHECK(error_loading(plugin("no_register")) == plugin("no_register") + ": is no plug-in: it has no function that registers");
    CHECK(all_kinds() == kinds);
}

TEST_CASE_METHOD(Loading, "a plug-in of another build is refused before any of it is called", "[plugin][errors]") {
    const auto kinds = all_kinds();
    const std::string here(kVersion);
    CHECK(error_loading(plugin("wrong_interface")) == plugin("wrong_interface") + ": was built for plug-in interface 99, this torchbus has 1; build it anew with torchbus " + here);
    CHECK(error_loading(plugin("wrong_torchbus")) == plugin("wrong_torchbus") + ": was built with torchbus 0.0.1, this torchbus with " + here + "; build it anew with that");
    CHECK(error_loading(plugin("wrong_compiler")) ==
          plugin("wrong_compiler") + ": was built with the compiler 1.0 of another, this torchbus with " __VERSION__ "; build it anew with that");
    CHECK(error_loading(plugin("wrong_libtorch")) == plugin("wrong_libtorch") + ": was built with LibTorch 2.0.0, this torchbus with " TORCH_VERSION "; build it anew with that");
    CHECK(all_kinds() == kinds);
}

TEST_CASE_METHOD(Loading, "a plug-in that cannot register leaves no trace", "[plugin][errors]") {
    load_plugin(plugin("good"));
    CHECK(error_when_refused("nothing") == "it registers nothing");
    CHECK(error_when_refused("throws") == "the licence server is asleep");
    CHECK(error_when_refused("throws_odd") == "something that is no std::exception");
    CHECK(error_when_refused("taken_by_torchbus") == "the schedule 'cosine' is one of torchbus's own; give yours another name");
    CHECK(error_when_refused("taken_by_plugin") == "the model 'line' is taken by the plug-in 'good' (" + plugin("good") + "); give yours another name");
    CHECK(error_when_refused("twice") == "the callback 'fresh' is registered twice");
    CHECK(error_when_refused("bad_name") == "'Fresh-Callback' is no name for a callback; give one in snake_case");
    CHECK(error_when_refused("no_summary") == "the schedule 'fresh_schedule' has no summary; say in one sentence what it does");
    CHECK(error_when_refused("no_function") == "the schedule 'fresh_schedule' has no function that reads its options");
    CHECK(error_when_refused("no_default") == "the callback 'fresh' cannot be made without options: fresh: path is missing; give each a default");
    CHECK(error_when_refused("odd_default") == "the callback 'fresh' cannot be made without options: something that is no std::exception; give each a default");
    CHECK(error_when_refused("other_name") == "the callback 'fresh' calls itself 'another'; kind() must return the name it is registered by");
    CHECK(error_when_refused("no_callback") == "the callback 'fresh' calls itself ''; kind() must return the name it is registered by");
    CHECK_THROWS_WITH(find_callback("fresh"), "unknown callback 'fresh' (torchbus callbacks lists them)");
    CHECK(std::ranges::count(loaded_plugins(), "refused", &LoadedPlugin::name) == 0);
}

TEST_CASE_METHOD(Loading, "a throw in declare, attach or check of a plug-in's callback refuses the composition", "[plugin][faults]") {
    for (const char* hook : {"declare", "attach"}) {
        INFO(hook);
        CHECK_THROWS_WITH(Toy({ComposedCallback("probe", probe(hook))}), std::string("plugin_probe throws in ") + hook);
        Toy toy;
        std::string said;
        try {
            toy.trainer.attach(ComposedCallback("probe", probe(hook)), "test").get();
        } catch (const std::exception& error) {
            said = error.what();
        }
        CHECK(said == std::string("plugin_probe throws in ") + hook);
        CHECK(trains_as_ever(toy));
        toy.trainer.attach(ComposedCallback("probe", probe("nowhere")), "test").get();  // the id is free
        CHECK(toy.train().outcome == Outcome::Finished);
    }
    Toy toy({ComposedCallback("probe", probe("check"))});
    const auto before = copies_of(toy.model->parameters());
    CHECK_THROWS_WITH(toy.train(), "plugin_probe throws in check");
    CHECK(equal_bits(toy.model->parameters(), before));
    toy.trainer.detach("probe", "test").get();
    CHECK(trains_as_ever(toy));
}

TEST_CASE_METHOD(Loading, "a throw in a slot of a plug-in's callback fails the run by its name", "[plugin][faults]") {
    Toy toy({ComposedCallback("probe", probe("slot"))});
    const auto before = copies_of(toy.model->parameters());
    CHECK_THROWS_WITH(toy.train(), containing("probe") && containing("train_step_end") && containing("plugin_probe throws in slot"));
    CHECK(toy.trainer.result().requester == "probe");
    CHECK(toy.trainer.position().step == 1);  // it came after the first update
    toy.trainer.detach("probe", "test").get();
    {
        const torch::NoGradGuard no_grad;
        for (std::size_t i = 0; i < before.size(); ++i) toy.model->parameters()[i].copy_(before[i]);
    }
    CHECK(trains_as_ever(toy));
}

TEST_CASE_METHOD(Loading, "a throw in an interceptor or around a span fails the run by its name, at its event", "[plugin][faults]") {
    for (const auto& [hook, event] : std::vector<std::pair<std::string, std::string>>{{"interceptor", "at batch_ready (epoch 0, step 0)"}, {"enter", "at forward (epoch 0, step 0)"}, {"leave", "leaving forward"}}) {
        INFO(hook);
        Toy toy({ComposedCallback("probe", probe(hook.c_str()))});
        CHECK_THROWS_WITH(toy.train(), "subscriber 'probe' failed " + event + ": plugin_probe throws in " + hook);
        toy.trainer.detach("probe", "test").get();
        CHECK(trains_as_ever(toy));
    }
}

TEST_CASE_METHOD(Loading, "a throw where a callback is made names its place in the run file", "[plugin][faults]") {
    json run = run_with_plugin();
    run["callbacks"][1]["throws_in"] = "make";
    CHECK_THROWS_WITH(compose(run, "run.json"), "run.json: callbacks[1]: 'plugin_probe' cannot be made: plugin_probe throws in make");
}

TEST_CASE_METHOD(Loading, "a throw in change_option reaches who asked, and the run goes on", "[plugin][faults]") {
    Toy toy({ComposedCallback("probe", probe("change_option"))});
    CHECK_THROWS_WITH(toy.trainer.change_option("probe", "steps", 1, "test").get(), "plugin_probe throws in change_option");
    CHECK(trains_as_ever(toy));
}

TEST_CASE_METHOD(Loading, "a metric of a plug-in is published like the library's", "[plugin]") {
    load_plugin(plugin("good"));
    OptionReader reader(json::object(), "metric");
    Toy toy({ComposedCallback(std::shared_ptr<Callback>(find_callback("positive_share").from_json(reader)))});
    toy.train();
    const at::Tensor outputs = toy.trainer.predict(toy_data(8));
    CHECK(toy.trainer.history().latest("eval.positive_share") == Approx(outputs.gt(0).to(at::kDouble).mean().item<double>()));
}

TEST_CASE_METHOD(Loading, "a throw in detach of a plug-in's callback is told, and its slots are cut off", "[plugin][faults]") {
    Toy toy({ComposedCallback("probe", probe("detach"))});
    toy.trainer.detach("probe", "test").get();
    CHECK(trains_as_ever(toy));
    CHECK_FALSE(toy.trainer.blackboard().number("probe_steps").has_value());
    { Toy whole({ComposedCallback("probe", probe("detach"))}); }  // nor does it end the program
}

TEST_CASE_METHOD(Loading, "a throw in state or load_state of a plug-in's callback reaches who saves, and no further", "[plugin][faults]") {
    for (const char* hook : {"state", "load_state"}) {
        INFO(hook);
        std::string said;
        Toy toy({ComposedCallback("probe", probe(hook)), callback_of("saver", [&](Attachment& run, Connections& connections) {
                     connections += run.bus.observe<TrainingRunEpochEnd>(Stage::Persist, [&](const TrainingRunEpochEnd&) {
                         try {
                             const SavedState state = run.run_state.save("callback.probe");
                             run.run_state.load("callback.probe", state);
                         } catch (const std::exception& error) {
                             said = error.what();
                         }
                     });
                 })});
        CHECK(trains_as_ever(toy));
        CHECK(said == std::string("plugin_probe throws in ") + hook);
    }
}

TEST_CASE_METHOD(Loading, "plug-ins can be taken out of the tables, and put back", "[plugin]") {
    const auto without = all_kinds();
    load_plugin(plugin("good"));
    const auto with = all_kinds();
    const std::shared_ptr<Callback> made = probe("nowhere");
    unregister_plugins();
    CHECK(all_kinds() == without);
    CHECK(loaded_plugins().empty());
    CHECK(made->kind() == "plugin_probe");  // its code is still there
    CHECK(load_plugin(plugin("good")).brings.size() == 7);
    CHECK(all_kinds() == with);
}

TEST_CASE_METHOD(Loading, "the version of the headers is that of the build", "[plugin]") {
    std::ifstream stream(source_root() + "/meson.build");
    const std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    CHECK(text.find("version: '" + std::string(kVersion) + "'") != std::string::npos);
}
