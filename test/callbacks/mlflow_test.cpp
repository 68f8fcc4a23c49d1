// How MLflow is told of a run, with a stand-in of its REST API that keeps what it is told. test/scripts/sinks_test.py does it with a real server.
#include <chrono>
#include <fstream>
#include <set>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/event_file.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mlflow.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/stream/spool.hpp>

#include "../../callbacks/parts/mlflow_records.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/free_port.hpp"
#include "support/http_receiver.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

/// Experiments, runs and their points, of one process or several.
struct MlflowKept {
    struct Run {
        std::string experiment, name, status = "RUNNING";
        std::map<std::string, std::string> params, tags;
        std::vector<json> metrics;  ///< as they came
    };
    std::map<std::string, std::string> experiments;  ///< id by name
    std::vector<Run> runs;                           ///< the id is the index
    std::int64_t batches = 0;
    std::string padding = {};                        ///< of a run that was looked for: its metrics, parameters and tags come with it

    Run& run_of(const json& body) { return runs.at(std::stoul(body.at("run_id").get<std::string>())); }
    static HttpReply missing() { return {.status = 404, .body = R"({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "it is not there"})"}; }
    HttpReply answer(const HttpReceived& request) {
        const std::string call = request.target.substr(std::string("/api/2.0/mlflow/").size());
        const json body = request.body.empty() ? json() : json::parse(request.body);
        if (call == "experiments/get-by-name?experiment_name=a%20test") {
            if (!experiments.contains("a test")) return missing();
            return {.body = json{{"experiment", {{"experiment_id", experiments["a test"]}, {"lifecycle_stage", "active"}}}}.dump()};
        }
        if (call == "experiments/create") return experiments[body.at("name")] = "e1", HttpReply{.body = R"({"experiment_id": "e1"})"};
        if (call == "runs/search") return search(body);
        if (call == "runs/create") return create(body);
        if (call == "runs/log-batch") return log(body);
        if (call == "runs/update") return run_of(body).status = body.at("status"), HttpReply{};
        return {.status = 404, .body = "<html>"};
    }
    HttpReply search(const json& body) {
        for (std::size_t i = 0; i < runs.size(); ++i)
            if (body.at("filter") == fmt::format("tags.`torchbus.run` = '{}'", runs[i].tags["torchbus.run"])) return {.body = json{{"runs", {{{"info", {{"run_id", std::to_string(i)}}}, {"data", padding}}}}}.dump()};
        return {};
    }
    HttpReply create(const json& body) {
        Run& run = runs.emplace_back();
        run.experiment = body.at("experiment_id");
        run.name = body.at("run_name");
        for (const json& tag : body.at("tags")) run.tags[tag.at("key")] = tag.at("value");
        return {.body = json{{"run", {{"info", {{"run_id", std::to_string(runs.size() - 1)}}}}}}.dump()};
    }
    HttpReply log(const json& body) {
        ++batches;
        Run& run = run_of(body);
        for (const json& metric : body.value("metrics", json::array())) run.metrics.push_back(metric);
        for (const json& param : body.value("params", json::array())) run.params[param.at("key")] = param.at("value");
        for (const json& tag : body.value("tags", json::array())) run.tags[tag.at("key")] = tag.at("value");
        return {};
    }
};

using PointsTold = std::set<std::string>;  ///< "name step value"
std::string point_text(const std::string& name, const json& step, const json& value) { return fmt::format("{} {} {}", name, step.get<std::int64_t>(), value.is_string() ? value.get<std::string>() : fmt::format("{}", value.get<double>())); }

PointsTold points_of(const std::vector<json>& metrics) {
    PointsTold points;
    for (const json& metric : metrics) points.insert(point_text(metric.at("key"), metric.at("step"), metric.at("value")));
    return points;
}

/// The same of what an event file holds.
PointsTold points_in(const std::filesystem::path& file) {
    PointsTold points;
    std::ifstream stream(file);
    for (std::string line; std::getline(stream, line);) {
        const json message = json::parse(line);
        if (message.at("type") != "torchbus.numbers") continue;
        for (const auto& [name, value] : message.at("data").at("numbers").items()) points.insert(point_text(name, message.at("data").at("position").at("step"), value));
    }
    return points;
}

struct ToldRun {
    RunResult result;
    double seconds = 0;
    std::string warnings;
};

/// Epochs of four steps.
ToldRun train_and_tell(const TemporaryFolder& folder, const std::string& url, TrainOptions train = {.epochs = 2}, MlflowOptions options = {}) {
    const CapturedStderr captured;
    auto model = toy_model();
    options.url = url;
    options.experiment = "a test";
    options.every = "1step";
    options.spool = folder / "spool";
    std::vector<ComposedCallback> callbacks = {make_metrics({.accuracy = true}), make_event_file({.path = folder / "events.jsonl"}), make_save_training_state({.folder = folder / "states"}), make_mlflow(std::move(options))};
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}), .callbacks = std::move(callbacks), .seed = 5, .handle_signals = false});
    train.batch_size = 4;
    const auto begin = std::chrono::steady_clock::now();
    RunResult result = trainer.train(toy_data(16), toy_data(6, 3), train);
    return {std::move(result), std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), captured.text()};
}

}  // namespace

TEST_CASE("MLflow has a run's numbers, plan, decisions and outcome", "[callbacks][mlflow]") {
    const TemporaryFolder folder("mlflow");
    MlflowKept kept;
    const HttpReceiver server([&](const HttpReceived& request) { return kept.answer(request); });
    const ToldRun told = train_and_tell(folder, server.url(), {.epochs = 2}, {.run_name = "the first", .tags = {"team=vision", "why=a=b"}});
    CHECK(told.result.outcome == Outcome::Finished);
    CHECK(told.warnings == "");
    REQUIRE(kept.runs.size() == 1);
    const auto& run = kept.runs[0];
    CHECK(run.name == "the first");
    CHECK(run.status == "FINISHED");
    CHECK(points_of(run.metrics) == points_in(folder / "events.jsonl"));
    CHECK(std::ranges::any_of(run.metrics, [](const json& metric) { return metric.at("key") == "eval.accuracy"; }));
    CHECK(run.params.at("epochs") == "2");
    CHECK(run.params.at("batches.train") == "4");
    CHECK(run.tags.at("team") == "vision");
    CHECK(run.tags.at("why") == "a=b");
    CHECK(run.tags.at("torchbus.mode") == "training");
    CHECK(run.tags.at("torchbus.outcome") == "finished");
    CHECK(run.tags.at("torchbus.checkpoint").find("states") != std::string::npos);
    CHECK(server.connections() == 1);
    CHECK(names_in(folder / "spool") == std::vector<std::string>{"place.json"});
}

TEST_CASE("MLflow is told again what it has not confirmed, and has nothing twice", "[callbacks][mlflow][thread]") {
    const TemporaryFolder folder("mlflow");
    MlflowKept kept;
    int requests = 0;
    const HttpReceiver server([&](const HttpReceived& request) {
        HttpReply reply = kept.answer(request);
        if (++requests <= 6) return reply;
        if (requests % 2 == 0) reply.way = HttpReply::Way::CloseInstead;
        else if (requests % 5 == 0) reply = {.status = 503};
        return reply;
    });
    const ToldRun told = train_and_tell(folder, server.url(), {.epochs = 2}, {.wait_at_end = "60s"});
    CHECK(told.result.outcome == Outcome::Finished);
    REQUIRE(kept.runs.size() == 1);
    CHECK(kept.runs[0].status == "FINISHED");
    CHECK(points_of(kept.runs[0].metrics) == points_in(folder / "events.jsonl"));
    CHECK_THAT(told.warnings, containing("answers again"));
}

TEST_CASE("a dead MLflow holds nobody up, and the next run tells it first of the run before", "[callbacks][mlflow]") {
    const TemporaryFolder folder("mlflow");
    const ToldRun alone = train_and_tell(folder, fmt::format("http://127.0.0.1:{}", free_port()), {.epochs = 2}, {.wait_at_end = "60s"});
    CHECK(alone.result.outcome == Outcome::Finished);
    CHECK(alone.seconds < 5);
    CHECK_THAT(alone.warnings, containing("Connection refused; it is tried again, and what it was to be told waits in " + (folder / "spool").string()));
    CHECK_THAT(alone.warnings, containing("and are sent by the next run that has it as its spool"));
    const auto expected = points_in(folder / "events.jsonl");
    MlflowKept kept;
    const HttpReceiver server([&](const HttpReceived& request) { return kept.answer(request); });
    train_and_tell(folder, server.url());
    REQUIRE(kept.runs.size() == 2);
    CHECK(points_of(kept.runs[0].metrics) == expected);
    CHECK(points_of(kept.runs[1].metrics) == points_in(folder / "events.jsonl"));
    CHECK(kept.runs[0].status == "FINISHED");
    CHECK(kept.runs[0].tags["torchbus.run"] != kept.runs[1].tags["torchbus.run"]);
}

TEST_CASE("a run that goes on from a training state goes on in its run of MLflow", "[callbacks][mlflow]") {
    const TemporaryFolder folder("mlflow");
    MlflowKept kept;
    const HttpReceiver server([&](const HttpReceived& request) { return kept.answer(request); });
    train_and_tell(folder, server.url());
    if (GENERATE(false, true)) std::filesystem::remove_all(folder / "spool");
    train_and_tell(folder, server.url(), {.epochs = 3, .resume = ResumeOptions{(folder / "states").string()}});
    REQUIRE(kept.runs.size() == 1);
    CHECK(kept.runs[0].status == "FINISHED");
    CHECK(kept.runs[0].params.at("epochs") == "2");
    CHECK(kept.runs[0].tags.at("torchbus.resumed.epochs") == "3");
    CHECK(points_of(kept.runs[0].metrics) == points_in(folder / "events.jsonl"));
    train_and_tell(folder, server.url());
    CHECK(kept.runs.size() == 2);
}

TEST_CASE("MLflow has a run once, whatever it answers when it is looked for", "[callbacks][mlflow]") {
    const TemporaryFolder folder("mlflow");
    MlflowKept kept;
    int searches = 0;
    HttpReply first{.body = ""};  // as it would be
    const HttpReceiver server([&](const HttpReceived& request) {
        HttpReply reply = kept.answer(request);
        if (!request.target.ends_with("runs/search") || ++searches != 2) return reply;
        if (first.body.empty()) first.body = reply.body;
        return first;
    });
    std::string trouble;
    SECTION("much") { kept.padding = std::string(3U << 20, 'p'); }
    SECTION("half of it") { first = {.body = "", .way = HttpReply::Way::CloseWithin}, trouble = "its answer is cut off, too long or no JSON"; }
    SECTION("a page") { first = {.body = "<html>"}, trouble = "its answer is cut off, too long or no JSON"; }
    SECTION("a refusal") { first = {.status = 400, .body = R"({"error_code": "BAD_REQUEST", "message": "busy"})"}, trouble = "it does not search its runs: 400 busy"; }
    train_and_tell(folder, server.url());
    std::filesystem::remove_all(folder / "spool");
    const ToldRun told = train_and_tell(folder, server.url(), {.epochs = 3, .resume = ResumeOptions{(folder / "states").string()}}, {.wait_at_end = "60s"});
    CHECK_THAT(told.warnings, containing(trouble));
    CHECK(trouble.empty() == told.warnings.empty());
    const auto expected = points_in(folder / "events.jsonl");
    if (!trouble.empty()) train_and_tell(folder, server.url());  // it tells first what that one could not
    REQUIRE(kept.runs.size() == (trouble.empty() ? 1 : 2));
    CHECK(points_of(kept.runs[0].metrics) == expected);
}

TEST_CASE("what a proxy says that is no MLflow loses nothing", "[callbacks][mlflow]") {
    const TemporaryFolder folder("mlflow");
    MlflowKept kept;
    int refusals = 0;
    const HttpReceiver server([&](const HttpReceived& request) { return request.target.ends_with("log-batch") && refusals++ < 1 ? HttpReply{.status = 404, .body = "<html>"} : kept.answer(request); });
    const ToldRun told = train_and_tell(folder, server.url(), {.epochs = 2}, {.wait_at_end = "60s"});
    CHECK_THAT(told.warnings, containing("it answers 404, and not as MLflow does; is there a proxy in between?; it is tried again"));
    REQUIRE(kept.runs.size() == 1);
    CHECK(points_of(kept.runs[0].metrics) == points_in(folder / "events.jsonl"));
    CHECK(kept.runs[0].params.at("epochs") == "2");
}

TEST_CASE("MLflow is told all where the spool's place cannot be put down, and that is warned of once", "[callbacks][mlflow]") {
    const TemporaryFolder folder("mlflow");
    std::filesystem::create_directories(folder / "spool/place.json.part");
    MlflowKept kept;
    const HttpReceiver server([&](const HttpReceived& request) { return kept.answer(request); });
    const ToldRun told = train_and_tell(folder, server.url());
    CHECK_THAT(told.warnings, containing("place.json.part: cannot open it: Is a directory; it goes on, and what was sent may be sent once more"));
    CHECK(std::ranges::count(told.warnings, '\n') == 1);
    REQUIRE(kept.runs.size() == 1);
    CHECK(kept.runs[0].status == "FINISHED");
    CHECK(points_of(kept.runs[0].metrics) == points_in(folder / "events.jsonl"));
}

TEST_CASE("an MLflow that is silent at the end is told of as what waits, not as what is tried again", "[callbacks][mlflow]") {
    const TemporaryFolder folder("mlflow");
    const HttpReceiver server([](const HttpReceived&) { return HttpReply{.way = HttpReply::Way::NoAnswer}; });
    const ToldRun told = train_and_tell(folder, server.url(), {.epochs = 2}, {.wait_at_end = "0.1s"});
    CHECK(told.seconds < 5);
    CHECK_THAT(told.warnings, containing("was not told everything"));
    CHECK_THAT(told.warnings, !containing("it is tried again"));
}

TEST_CASE("a run of MLflow whose process died is told of to its last record, and marked as killed", "[callbacks][mlflow]") {
    const TemporaryFolder folder("mlflow");
    MlflowKept kept;
    const HttpReceiver server([&](const HttpReceived& request) { return kept.answer(request); });
    {
        Spool left({.folder = folder / "spool"});
        left.append(R"({"kind":"begin","experiment":"a test","run_name":"died","run":"r0","start_time":1,"tags":[{"key":"torchbus.run","value":"r0"}]})");
        left.append(R"({"kind":"log","metrics":[{"key":"a","value":"NaN","timestamp":1,"step":1}]})");
        left.append(R"({"kind":"log","metrics":[{"key":"a","value":2,"timestamp":2,"step":2}]})");
    }
    train_and_tell(folder, server.url());
    REQUIRE(kept.runs.size() == 2);
    CHECK(kept.runs[0].status == "KILLED");
    CHECK(kept.runs[0].metrics.size() == 2);
    CHECK(kept.runs[1].status == "FINISHED");
}

TEST_CASE("MLflow's refusals are told: a token that is wrong waits, a record that is wrong is left out", "[callbacks][mlflow]") {
    const TemporaryFolder folder("mlflow");
    MlflowKept kept;
    int status = 401;
    std::string many;
    for (int i = 0; i < 200; ++i) many += "ä";
    const json refusal = {{"error_code", "X"}, {"message", "no\x1b[31m\n\xc2\x9b" + many}};
    const HttpReceiver server([&](const HttpReceived& request) { return status != 400 || request.target.ends_with("log-batch") ? HttpReply{.status = status, .body = refusal.dump()} : kept.answer(request); });
    ToldRun told = train_and_tell(folder, server.url(), {.epochs = 2}, {.wait_at_end = "0.1s"});
    CHECK_THAT(told.warnings, containing("it answers 401; is the token right?"));
    CHECK(Spool({.folder = folder / "spool"}).waiting_bytes() > 0);
    status = 400;
    told = train_and_tell(folder, server.url());
    CHECK_THAT(told.warnings, containing("did not take a record of the kind 'log', and it is left out: 400 no [31m  ä"));
    CHECK(told.warnings.find("did not take a record") == told.warnings.rfind("did not take a record"));
    CHECK_THAT(told.warnings, containing("records in all, and they are left out"));
    CHECK_NOTHROW(json(told.warnings).dump());  // no character of it is cut in two
    CHECK(told.result.outcome == Outcome::Finished);
    CHECK(Spool({.folder = folder / "spool"}).waiting_bytes() == 0);
}

TEST_CASE("a spool of MLflow's that is full is told, and so is one of another run", "[callbacks][mlflow]") {
    const TemporaryFolder folder("mlflow");
    const std::string nobody = fmt::format("http://127.0.0.1:{}", free_port());
    ToldRun told = train_and_tell(folder, nobody, {.epochs = 20}, {.spool_mib = 0.004});
    CHECK_THAT(told.warnings, containing("what comes now is left out until there is place"));
    CHECK_THAT(told.warnings, containing("records were left out, as"));
    const Spool held({.folder = folder / "spool"});
    told = train_and_tell(folder, nobody);
    CHECK(told.result.outcome == Outcome::Finished);
    CHECK_THAT(told.warnings, containing("another run sends what is in this folder"));
}

TEST_CASE("a plan that is longer than MLflow takes at once comes in parts", "[callbacks][mlflow]") {
    json plan;
    for (int i = 0; i < 250; ++i) plan[fmt::format("option{}", i)] = i;
    std::vector<json> records;
    MlflowRecords maker(mlflow_names("a test", "", {}), [&](const json& record) { records.push_back(record); });
    maker.take(json{{"type", "torchbus.training_run_start"}, {"time", "2026-11-27T23:41:07.250113Z"}, {"data", {{"plan", plan}}}}.dump() + "\n", "r1");
    std::set<std::string> keys;
    REQUIRE(records.size() == 4);
    for (std::size_t i = 1; i < records.size(); ++i) {
        CHECK(records[i].at("params").size() <= 100);
        for (const json& param : records[i].at("params")) keys.insert(param.at("key"));
    }
    CHECK(keys.size() == 250);
}

TEST_CASE("names that MLflow does not take are changed to ones that it does", "[callbacks][mlflow]") {
    CHECK(mlflow_key("train.loss") == "train.loss");
    CHECK(mlflow_key("lr/0 a-b_c.d") == "lr/0 a-b_c.d");
    CHECK(mlflow_key("f1@0.5:ä") == "f1_0.5__");
    CHECK(mlflow_key("/a//../b/./") == "_/a/_/_/b/_/_");
    CHECK(mlflow_key("") == "_");
    CHECK(mlflow_key(std::string(300, 'x')) == std::string(250, 'x'));
}

TEST_CASE("options of mlflow that make no sense are refused", "[callbacks][mlflow]") {
    CHECK_THROWS_WITH(make_mlflow({.experiment = ""}), "mlflow: experiment is empty; give its name");
    CHECK_THROWS_WITH(make_mlflow({.url = "http://host/?a=b"}), "mlflow: url: 'http://host:80' has a query; give the address of the server, e.g. http://127.0.0.1:5000");
    CHECK_THROWS_WITH(make_mlflow({.tags = {"team"}}), "mlflow: tags: 'team' is no tag; give name=value, e.g. team=vision");
    CHECK_THROWS_WITH(make_mlflow({.spool_mib = 0}), "mlflow: spool_mib: 0 is out of range; give MiB, e.g. 256");
    CHECK_THROWS_WITH(make_mlflow({.wait_at_end = "5step"}), "mlflow: wait_at_end: 5step is out of range; give a time, e.g. 10s");
}
