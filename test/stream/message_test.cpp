// What leaves the process: every event of runs that end in every way, as text, as JSON, and by its schema.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <set>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/nan_policy.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/error.hpp>
#include <torchbus/events_json.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/stream/message.hpp>

#include "../../src/stream/captured_event.hpp"
#include "../../src/stream/run_picture.hpp"

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/json_schema.hpp"
#include "support/source_root.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

/// The first place where `newer` lacks or changes what readers of `older` know; descriptions may change. Empty: none.
std::string broken_at(const json& older, const json& newer, const std::string& at = "/") {
    if (older.type() != newer.type()) return at;
    if (older.is_object()) {
        for (const auto& [key, value] : older.items()) {
            if (key == "description" && value.is_string()) continue;
            const std::string place = at + (at == "/" ? "" : "/") + key;
            if (!newer.contains(key)) return place;
            if (std::string broken = broken_at(value, newer[key], place); !broken.empty()) return broken;
        }
        return "";
    }
    if (older.is_array() && (at.ends_with("/required") || at.ends_with("/allOf"))) {  // these may grow
        for (const json& one : older)
            if (std::ranges::find(newer, one) == newer.end()) return at + " " + one.dump();
        return "";
    }
    return older == newer ? "" : at;
}

struct Told {
    double value = 0;
    std::string text;
};
void to_json(json& out, const Told& told) { out = {{"value", told.value}, {"text", told.text}}; }
struct Untold {};

/// Calls `look` with every event of a run that accumulates, evaluates, saves, skips, decides, and fails where it is told to.
void look_at_run(const std::function<void(const AnyEvent&)>& look, bool fails = false) {
    const TemporaryFolder folder("messages");
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                     .callbacks = {make_gradient_accumulation({2}), make_metrics({.accuracy = true}), make_save_training_state({.folder = folder.path()}),
                                   callback_of("tap", [&](Attachment& run, Connections& connections) {
                                       connections += run.bus.observe_all(Stage::Persist, look);
                                       connections += run.bus.intercept(Phase::Decide, [](GradientsReady& event) {
                                           if (event.position.attempts == 1) event.skip("tap", "as it is told");
                                       });
                                       connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&run, fails](const TrainStepEnd& event) {
                                           if (event.position.step == 1) run.bus.emit(Told{std::nan(""), "a \"line\"\n\xff"});
                                           if (event.position.step == 1) run.bus.emit(Untold{});
                                           if (event.position.step == 2) run.asker.ask(Decision::SaveNow, "now");
                                           if (fails && event.position.step == 4) throw std::runtime_error("enough");
                                       });
                                   })}, .handle_signals = false});
    try {
        trainer.train(toy_data(26), toy_data(10, 3), {.epochs = 2, .batch_size = 4});
        trainer.evaluate(toy_data(8));
        trainer.predict(toy_data(8));
    } catch (const Error&) {
        CHECK(fails);
    }
}

/// Calls `look` with one of each that such runs do not have.
void look_at_rare_events(const std::function<void(const AnyEvent&)>& look) {
    const auto look_at = [&]<class Event>(const Event& event) { look(AnyEvent(torchbus::detail::event_type<Event>(), &event)); };
    const Position at = {{3, 4, 7, 28, 0}, 1, {1, 1, 2, 8, 0}};
    const LeftOut left_out = {{1, 2, 3}, "nan_policy", "a \"spike\""};
    Window window;
    window.batches.emplace_back().indices = {5, 0, 9};
    const Request request = {.requester = "me", .reason = "line\nbreak"};
    look_at(MicroBatchFailed{at, {}, window, "out of memory", true, true});
    look_at(RollingBack{at, request, {"states/step_3", "states/step_1"}});
    look_at(RolledBack{at, at, "states/step_3", left_out, 2});
    look_at(WindowLeftOut{at, window, left_out});
    look_at(OptionChanged{at, "clip", "max_norm", "1", "0.5", "me", ""});
    look_at(ParametersChanged{at, {at::Tensor(), at::Tensor()}});
    look_at(WeightsViewChanged{at, "training", "ema"});
    look_at(SubscriberFailed{at, "csv_file", "train_step_end", "a full disk", true});
    look_at(SubscriberDetached{"csv_file", "me"});
}

std::set<std::string> names_in(const json& object) {
    std::set<std::string> names;
    for (const auto& [name, unused] : object.items()) names.insert(name);
    return names;
}

constexpr std::chrono::system_clock::time_point kNow{std::chrono::microseconds(1'795'822'867'250'113)};

}  // namespace

TEST_CASE("the text of an event is its JSON", "[stream]") {
    std::set<std::string> seen;
    for (const bool fails : {false, true})
        look_at_run([&](const AnyEvent& event) {
            if (!event.has_json()) return;
            seen.insert(event.name());
            json value;
            event.write_json(value);
            std::string text = "before ";
            event.append_json(text);
            INFO(event.name() << ": " << text);
            if (event.name() != "told") CHECK(json::parse(text.substr(7)) == value);
        }, fails);
    CHECK(seen.size() >= 36);
    CHECK(seen.contains("told"));
    CHECK_FALSE(seen.contains("untold"));
}

TEST_CASE("what is captured of an event has the same text", "[stream]") {
    std::set<std::string> seen;
    const auto look = [&](const AnyEvent& event) {
        const CapturedForm* form = captured_form(event.name());
        CHECK((form != nullptr) == event.is_of_library());
        if (!form) return;
        std::string bytes = "behind what is there", text = bytes, expected = bytes;
        form->capture(bytes, event);
        form->append_json(text, std::string_view(bytes).substr(expected.size()));
        event.append_json(expected);
        CHECK(text == expected);
        seen.insert(event.name());
    };
    for (const bool fails : {false, true}) look_at_run(look, fails);
    look_at_rare_events(look);
    const auto all = [&]<class... Events>(std::tuple<Events...>*) { return std::set<std::string>{torchbus::detail::event_type<Events>().name...}; }(static_cast<TrainerEvents*>(nullptr));
    std::vector<std::string> unseen;
    std::ranges::set_difference(all, seen, std::back_inserter(unseen));
    CHECK(unseen == std::vector<std::string>{});
}

TEST_CASE("every message is a CloudEvent, as the schema has it", "[stream]") {
    const JsonSchema schema(stream_schema());
    MessageWriter writer({"20261127T234107-beef", 3});
    std::int64_t number = 0;
    std::set<std::string> types;
    for (const bool fails : {false, true})
        look_at_run([&](const AnyEvent& event) {
            if (!event.has_json()) return;
            std::string line;
            writer.append(line, event, kNow);
            REQUIRE(line.ends_with("}\n"));
            CHECK(std::ranges::count(line, '\n') == 1);
            const json message = json::parse(line);
            INFO(line);
            CHECK(schema.complaint(message) == "");
            CHECK(message.at("sequence") == fmt::format("{:016}", ++number));
            CHECK(message.at("id") == std::to_string(number));
            CHECK(message.at("time") == "2026-11-27T23:41:07.250113Z");
            CHECK(message.at("source") == "/torchbus/20261127T234107-beef/ranks/3");
            CHECK(message.at("rank") == 3);
            types.insert(message.at("type"));
            if (event.name() == "told") CHECK(message.at("data") == json{{"value", "NaN"}, {"text", "a \"line\"\n\xef\xbf\xbd"}});
        }, fails);
    CHECK(types.contains("torchbus.train_step_end"));
    CHECK(types.contains("torchbus.run_failed"));
    std::string line;
    writer.append_gap(line, 5, 9, kNow);
    CHECK(schema.complaint(json::parse(line)) == "");
    CHECK(json::parse(line).at("data") == json{{"first", 5}, {"last", 9}, {"count", 5}});
    // What does not conform is found.
    json wrong = json::parse(line);
    wrong["data"].erase("count");
    CHECK(schema.complaint(wrong) != "");
}

TEST_CASE("events that few runs have are as the schema has them, field by field", "[stream]") {
    const json root = stream_schema();
    const JsonSchema schema(root);
    MessageWriter writer({"20261127T234107-beef", 3});
    std::set<std::string> names;
    look_at_rare_events([&](const AnyEvent& event) {
        std::string line;
        writer.append(line, event, kNow);
        INFO(line);
        const json message = json::parse(line);
        CHECK(schema.complaint(message) == "");
        CHECK(names_in(message.at("data")) == names_in(root.at("$defs").at(event.name()).at("properties")));
        for (const std::string& field : names_in(message.at("data"))) {
            INFO(field);
            json wrong = message;
            wrong["data"][field] = json::array({json::array()});  // no field is a list of lists
            CHECK_THAT(schema.complaint(wrong), containing("/data/" + field));
            wrong["data"].erase(field);
            CHECK(schema.complaint(wrong) == "/data: needs \"" + field + "\"");
        }
        names.insert(event.name());
    });
    CHECK(names.size() == 9);
}

TEST_CASE("what stands beside the events is as the schema has it, the snapshot after every message", "[stream]") {
    const json root = stream_schema();
    const JsonSchema schema(root);
    const StreamSource source = {"20261127T234107-beef", 3};
    MessageWriter writer(source);
    const auto check = [&](const std::string& name, const std::string& line) {
        INFO(line);
        const json message = json::parse(line), known = root.at("$defs").at(name);
        CHECK(message.at("type") == "torchbus." + name);
        CHECK(schema.complaint(message) == "");
        for (const std::string& field : names_in(message.at("data"))) CHECK(known.at("properties").contains(field));
        for (const json& field : known.at("required")) {
            json wrong = message;
            wrong["data"].erase(field.get<std::string>());
            CHECK(schema.complaint(wrong) == "/data: needs " + field.dump());
        }
    };
    RunPicture picture;
    std::set<std::string> states;
    const auto look = [&] {
        std::string line;
        writer.append_beside(line, "snapshot", picture.sequence(), picture.snapshot(), kNow);
        check("snapshot", line);
        states.insert(picture.state());
    };
    const auto take = [&](const std::string& line) {
        picture.take(*view_of(line));
        look();
    };
    look();
    for (const bool fails : {false, true}) {
        picture.begin(source.run, source.rank);
        look_at_run([&](const AnyEvent& event) {
            if (!event.has_json()) return;
            std::string line;
            writer.append(line, event, kNow);
            take(line);
        }, fails);
    }
    CHECK(states == std::set<std::string>{"idle", "running", "evaluating", "finished", "failed"});

    std::string at;
    append_json(at, Position{{3, 4, 7, 28, 0}, 1, {1, 1, 2, 8, 0}});
    const std::vector<std::pair<std::string, std::string>> rows = {
        {"stream_start", R"({"torchbus":"0.1.0","events":["*"],"every":"1step","resumed":false})"},
        {"numbers", R"({"position":)" + at + R"(,"numbers":{"train.loss":"NaN","learning_rate":0.1,"grad_norm":"-Infinity"},"older":{"eval.loss":4},"after":"train_step_end"})"},
        {"accounting", R"({"position":)" + at + R"(,"seconds":1.5,"rows":[{"subscriber":"csv_file","event":"numbers","calls":3,"seconds":0.1,"thread_seconds":2e-07,"dropped":1}]})"},
        {"answer", R"({"accepted":true})"}, {"answer", R"({"accepted":false,"error":"command: 'fly' is not known"})"}};
    for (const auto& [name, data] : rows) {
        std::string line;
        writer.append(line, name, data, kNow);
        check(name, line);
        take(line);
    }
    std::string gap;
    writer.append_gap(gap, 5, 9, kNow);
    check("gap", gap);
    const json shown = json::parse(picture.snapshot());
    CHECK(shown.at("numbers").at("numbers").at("train.loss") == "NaN");
    CHECK(shown.at("accounting").at("rows").at(0).at("dropped") == 1);
}

TEST_CASE("what is no number is written as a text", "[stream]") {
    std::string text;
    for (const double number : {0.1, 1e300, -4.0, std::nan(""), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()}) {
        append_json_number(text, number);
        text += ' ';
    }
    CHECK(text == "0.1 1e+300 -4 \"NaN\" \"Infinity\" \"-Infinity\" ");
    text.clear();
    append_json(text, json{{"a", {1, 2.5, nullptr, true}}, {"b", json::object()}, {"c", json::array()}, {"d", std::nan("")}});
    CHECK(text == R"({"a":[1,2.5,null,true],"b":{},"c":[],"d":"NaN"})");
}

// A change here is a change for whoever reads streams. TORCHBUS_UPDATE_GOLDEN=1 writes the file anew where something was added; where a
// field went or changed kStreamVersion counts up, and the file of the version before stays as it was.
TEST_CASE("the schema is that of its version", "[stream][golden]") {
    const auto path = std::filesystem::path(source_root()) / fmt::format("test/golden/stream_schema_{}.json", kStreamVersion);
    const json schema = stream_schema();
    if (std::filesystem::exists(path)) {
        INFO("this went or changed since version " << kStreamVersion << "; count kStreamVersion up, or leave it as it was");
        REQUIRE(broken_at(json::parse(std::ifstream(path)), schema) == "");
    }
    if (std::getenv("TORCHBUS_UPDATE_GOLDEN")) std::ofstream(path) << schema.dump(1) << '\n';
    CHECK(json::parse(std::ifstream(path)) == schema);
}

TEST_CASE("what readers of a schema know may gain fields, and lose or change none", "[stream]") {
    const json schema = stream_schema();
    CHECK(broken_at(schema, schema) == "");
    const auto broken_by = [&](const std::function<void(json& position)>& change) {
        json changed = schema;
        bool has_changed = false;
        const std::function<void(json&)> walk = [&](json& value) {
            if (has_changed || !value.is_structured()) return;
            if (value.is_object() && value.contains("properties") && value["properties"].contains("attempts")) {
                change(value);
                has_changed = true;
                return;
            }
            for (auto& inner : value) walk(inner);
        };
        walk(changed);
        CHECK(has_changed);
        return broken_at(schema, changed);
    };
    CHECK_THAT(broken_by([](json& position) { position["properties"].erase("attempts"); }), containing("/attempts"));
    CHECK_THAT(broken_by([](json& position) { position["properties"]["attempts"]["type"] = "string"; }), containing("/attempts/type"));
    CHECK(broken_by([](json& position) { position["properties"]["attempts"]["description"] = "in other words"; }) == "");
    CHECK(broken_by([](json& position) { position["properties"]["tries"] = {{"type", "integer"}}; }) == "");
}
