#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/callbacks/registry.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/composition_schema.hpp>
#include <torchbus/data/registry.hpp>
#include <torchbus/error.hpp>
#include <torchbus/interval.hpp>
#include <torchbus/models/registry.hpp>
#include <torchbus/optim/registry.hpp>

#include "support/catch.hpp"
#include "support/json_schema.hpp"
#include "support/source_root.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

json small_run() {
    return json::parse(R"({"model": {"kind": "mlp", "inputs": 16}, "data": {"kind": "synthetic", "samples": 8}, "optimizer": {"kind": "sgd"}})");
}

/// What the schema says of `small_run()` with one value replaced.
std::string complaint_with(const char* pointer, json value) {
    static const JsonSchema kSchema(run_file_schema());
    json run = small_run();
    run[json::json_pointer(pointer)] = std::move(value);
    return kSchema.complaint(run);
}

/// Whether compose() takes the same.
bool composes_with(const char* pointer, json value) {
    json run = small_run();
    run[json::json_pointer(pointer)] = std::move(value);
    try {
        compose(run, "run.json");
        return true;
    } catch (const ConfigError&) {
        return false;
    }
}

/// Every default that the schema names, as the whole of an object.
json defaults_of(const json& schema) {
    json made = json::object();
    for (const auto& [name, property] : schema["properties"].items()) {
        if (property.contains("const")) made[name] = property["const"];
        else if (property.contains("default") && !(property["default"] == "" && name == "id")) made[name] = property["default"];
    }
    return made;
}

}  // namespace

TEST_CASE("every run file of the examples conforms to the schema", "[composition][schema]") {
    const JsonSchema schema(run_file_schema());
    int files = 0;
    for (const auto& file : fs::directory_iterator(fs::path(source_root()) / "examples")) {
        if (file.path().extension() != ".json") continue;
        INFO(file.path());
        ++files;
        std::ifstream stream(file.path());
        CHECK(schema.complaint(json::parse(stream)) == "");
    }
    CHECK(files >= 1);
}

TEST_CASE("the schema has every kind of every table, with its options", "[composition][schema]") {
    const json defs = run_file_schema()["$defs"];
    const auto expect = [&](const char* part, std::size_t kinds) {
        INFO(part);
        CHECK(defs[part]["oneOf"].size() == kinds);
    };
    expect("callback", callback_registry().size());
    expect("model", model_registry().size());
    expect("data", data_table().entries().size());
    expect("optimizer", optimizer_table().entries().size());
    expect("schedule", schedule_table().entries().size());
    expect("loss", loss_table().entries().size() + 1);  // and the names alone
    for (const json& callback : defs["callback"]["oneOf"]) {
        const std::string kind = callback["properties"]["kind"]["const"];
        INFO(kind);
        CHECK(callback["required"] == json::array({"kind"}));
        CHECK(callback["additionalProperties"] == false);
        CHECK(callback["description"] == std::string(find_callback(kind).summary));
        CHECK(callback["properties"].size() == describe_callback(kind).size() + 4);  // kind, id, before, after
        for (const OptionDescription& option : describe_callback(kind)) CHECK(callback["properties"].contains(option.name));
    }
}

TEST_CASE("an option carries its type, range, choices, default and meaning into the schema", "[composition][schema]") {
    const json defs = run_file_schema()["$defs"];
    const auto options_of = [&](const char* part, const char* kind) {
        for (const json& one : defs[part]["oneOf"])
            if (one["properties"]["kind"]["const"] == kind) return one["properties"];
        return json();
    };
    const json clipping = options_of("callback", "gradient_clipping");
    CHECK(clipping["max_norm"]["type"] == "number");
    CHECK(clipping["max_norm"]["exclusiveMinimum"] == 0);
    CHECK(clipping["max_norm"]["default"] == 1.0);
    CHECK(clipping["max_norm"]["description"] == "largest total norm, after unscaling; > 0; may be changed while a run is under way");
    CHECK(clipping["norm_type"]["description"] == "p of the p-norm; > 0");
    CHECK(clipping["by"]["enum"] == json::array({"norm", "value", "adaptive"}));
    const json mlp = options_of("model", "mlp");
    CHECK(mlp["hidden"] == json::parse(R"({"type": "array", "items": {"type": "integer", "minimum": 1}, "default": [128], "description": "widths of the hidden layers"})"));
    CHECK(mlp["dropout"]["exclusiveMaximum"] == 1);
    CHECK(options_of("callback", "learning_rate_schedule")["schedule"]["$ref"] == "#/$defs/schedule");
    CHECK(options_of("optimizer", "adamw")["weight_decay"]["default"] == 0.01);
    CHECK(options_of("optimizer", "adam")["weight_decay"]["default"] == 0.0);
    CHECK(defs["train"]["properties"]["epochs"]["minimum"] == 1);
}

TEST_CASE("the defaults that the schema names conform to it", "[composition][schema]") {
    const json schema = run_file_schema();
    for (const char* part : {"callback", "model", "data", "optimizer", "schedule", "loss"})
        for (const json& one : schema["$defs"][part]["oneOf"]) {
            if (!one.contains("properties")) continue;
            const json made = defaults_of(one);
            INFO(made.dump());
            json whole = one;
            whole["$defs"] = schema["$defs"];
            CHECK(JsonSchema(whole).complaint(made) == "");
        }
}

TEST_CASE("what the schema refuses a run file refuses, and the other way round", "[composition][schema]") {
    const auto both = [](const char* pointer, const json& value, bool taken) {
        INFO(pointer << " = " << value.dump());
        CHECK(complaint_with(pointer, value).empty() == taken);
        CHECK(composes_with(pointer, value) == taken);
    };
    both("/seed", 3, true);
    both("/seed", -1, false);
    both("/seed", "3", false);
    both("/$schema", "run.schema.json", true);
    both("/optimiser", json::object(), false);
    both("/model/hidden", {8, 4}, true);
    both("/model/hidden", {8, 0}, false);
    both("/model/kind", "mlpp", false);
    both("/model/dropout", 1, false);
    both("/model/hiden", json::array(), false);
    both("/data/samples", 3, false);
    both("/loss", "mse", true);
    both("/loss", "msee", false);
    both("/loss", {{"kind", "mse"}}, true);
    both("/loss", {{"kind", "mse"}, {"delta", 1}}, false);
    both("/loss", json::object(), true);  // the default kind need not be said
    both("/loss", 3, false);
    both("/optimizer", json::object(), true);
    both("/optimizer", {{"kind", "adam"}, {"momentum", 0.9}}, false);
    both("/optimizer", {{"kind", "adam"}, {"beta2", 1}}, false);
    both("/optimizer", {{"kind", "adam"}, {"beta2", 0.99}}, true);
    both("/optimizer/momentum", 0.9, true);
    both("/schedule", {{"kind", "cosine"}, {"warmup", 2}}, true);
    both("/schedule", {{"kind", "step"}, {"warmup", 2}}, false);
    both("/train", {{"epochs", 0}}, false);
    both("/train", {{"epochs", 2}, {"shuffle", false}}, true);
    both("/callbacks", "none", false);
    both("/callbacks", {{{"kind", "metrics"}}, {{"kind", "metrics"}, {"id", "second"}, {"after", {"metrics"}}}}, true);
    both("/callbacks", json::array({json::object()}), false);
    both("/callbacks", json::array({{{"kind", "gradient_cliping"}}}), false);
    both("/callbacks", json::array({{{"kind", "gradient_clipping"}, {"max_norm", 0}}}), false);
    both("/callbacks", json::array({{{"kind", "gradient_clipping"}, {"by", "size"}}}), false);
    both("/callbacks", json::array({{{"kind", "learning_rate_schedule"}, {"schedule", {{"kind", "cosine"}}}}}), true);
    both("/callbacks", json::array({{{"kind", "learning_rate_schedule"}, {"schedule", {{"kind", "cosin"}}}}}), false);
    const auto schedule_with = [](const json& groups) { return json::array({{{"kind", "learning_rate_schedule"}, {"groups", groups}}}); };
    both("/callbacks", schedule_with({0.5, {{"kind", "step"}, {"every", 2}}}), true);
    both("/callbacks", schedule_with({"half"}), false);
    both("/callbacks", schedule_with({-1}), false);
    both("/callbacks", schedule_with({{{"kind", "steps"}}}), false);
    const auto freeze_with = [](const json& group) { return json::array({{{"kind", "freeze"}, {"groups", {group}}}}); };
    both("/callbacks", freeze_with({{"names", {"0.*"}}, {"unfreeze_at", "1epoch"}, {"learning_rate_factor", 0.1}}), true);
    both("/callbacks", freeze_with({{"names", {"0.*"}}, {"unfreeze", "1epoch"}}), false);
    both("/callbacks", freeze_with({{"names", "0.*"}}), false);
    both("/callbacks", freeze_with(3), false);
    both("/optimizer/groups", json::array({{{"parameters", {"*.bias"}}, {"weight_decay", 0}}}), true);
    both("/optimizer/groups", json::array({{{"parameters", {"*.bias"}}, {"decay", 0}}}), false);
    const auto sequence_of = [](const json& part) { return json{{"kind", "sequence"}, {"parts", {part, json::object()}}}; };
    both("/schedule", sequence_of({{"length", "2step"}, {"schedule", {{"kind", "linear"}}}}), true);
    both("/schedule", sequence_of({{"length", "2step"}, {"schedule", {{"kind", "linea"}}}}), false);
    both("/schedule", sequence_of({{"length", "2 steps"}}), false);
    both("/callbacks", json::array({{{"kind", "progress_lines"}, {"every", "0.5epoch"}}}), true);
    both("/callbacks", json::array({{{"kind", "progress_lines"}, {"every", 100}}}), true);
    both("/callbacks", json::array({{{"kind", "progress_lines"}, {"every", "5 steps"}}}), false);
}

TEST_CASE("the schema reads an interval as the library does", "[composition][schema]") {
    for (const char* text : {"100step", "0.5epoch", ".5run", "1e6sample", "2.token", "1E+3attempt", "30s", "2min", "1h", "7", "7emission", "3micro_batch",
                             "", "step", "-1step", "1 step", "1steps", "1e", "1..2step", "+1step", "infstep", "0x10step"}) {
        INFO(text);
        bool taken = true;
        try {
            parse_interval(text);
        } catch (const ConfigError&) {
            taken = false;
        }
        CHECK(complaint_with("/callbacks", json::array({{{"kind", "progress_lines"}, {"every", text}}})).empty() == taken);
    }
}

TEST_CASE("a file that includes others may leave parts out, another may not", "[composition][schema]") {
    const JsonSchema schema(run_file_schema());
    CHECK(schema.complaint({{"include", "base.json"}, {"seed", 1}}) == "");
    CHECK(schema.complaint({{"include", {"base.json", "data.json"}}}) == "");
    CHECK(schema.complaint({{"seed", 1}}) == ": matches none of anyOf");
}

TEST_CASE("making the schema draws no random number", "[composition][schema]") {
    torch::manual_seed(5);
    const at::Tensor expected = torch::rand({4});
    torch::manual_seed(5);
    run_file_schema();
    CHECK(torch::rand({4}).equal(expected));
}
