#include <sys/resource.h>

#include <condition_variable>
#include <csignal>
#include <fstream>
#include <functional>
#include <mutex>
#include <sstream>
#include <thread>

#include <nlohmann/json.hpp>

#include "../../src/stream/recording.hpp"

#include <torchbus/callbacks/event_file.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/stream/event_feed.hpp>
#include <torchbus/stream/message.hpp>

#include "support/callback_of.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/json_schema.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

/// Events as users may have them.
namespace of_a_user {

struct Loose { json value; };
void to_json(json& out, const Loose& loose) { out = loose.value; }
struct Broken { std::string word; };
void to_json(json& out, const Broken& broken) {
    if (broken.word.empty()) throw std::runtime_error("there is \"no\" word");
    out = {{"word", broken.word}};
}
struct Gap { int width = 3; };
struct Numbers { int width = 3; };
struct Snapshot { int width = 3; };
struct Answer { int width = 3; };
struct StreamStart { int width = 3; };
struct Accounting { int width = 3; };
struct RunClosed { int width = 3; };
template <class Event>
    requires requires(const Event& event) { event.width; }
void to_json(json& out, const Event& event) { out = {{"width", event.width}}; }

}  // namespace of_a_user

json nested(std::size_t levels, const json& innermost) {
    json value = innermost;
    for (std::size_t level = 0; level < levels; ++level) value = level % 2 == 0 ? json{{"inner", std::move(value)}} : json::array({std::move(value)});
    return value;
}

std::vector<json> messages_of(const std::string& text) {
    std::vector<json> messages;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) messages.push_back(json::parse(line));
    return messages;
}

std::vector<std::string> types_of(const std::vector<json>& messages) {
    std::vector<std::string> types;
    for (const json& message : messages) types.push_back(message.at("type").get<std::string>().substr(std::string("torchbus.").size()));
    return types;
}

RunResult train(std::vector<ComposedCallback> callbacks, TrainOptions options = {}) {
    auto model = toy_model();
    callbacks.emplace_back(make_metrics({.accuracy = true}));
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}), .callbacks = std::move(callbacks), .seed = 5, .handle_signals = false});
    options.batch_size = 2;
    return trainer.train(toy_data(16), toy_data(6, 3), options);  // eight steps an epoch
}

/// What the recording has of a run in which a subscriber emits some events of its own: name and data of each that begins with `wanted`.
std::vector<std::pair<std::string, json>> recorded_of(std::string_view wanted, const std::function<void(Subscriber&)>& emit) {
    const TemporaryFolder folder("event_file");
    train({make_event_file({.path = folder / "events.jsonl"}), callback_of("emitter", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) {
            if (event.position.step == 1) emit(run.bus);
        });
    })});
    const JsonSchema schema(stream_schema());
    for (const json& message : messages_of(bytes_of(folder / "events.jsonl"))) CHECK(schema.complaint(message) == "");
    std::vector<std::pair<std::string, json>> found;
    Recording recording(folder / "events.jsonl");
    std::string last;
    while (const RecordedMessage* message = recording.next()) {
        last = message->name();
        if (last.starts_with(wanted)) found.emplace_back(last, message->data());
    }
    CHECK(last == "run_closed");
    return found;
}

}  // namespace

TEST_CASE("an event file has every event, a line each, in order and without a gap", "[callbacks][event_file]") {
    const TemporaryFolder folder("event_file");
    train({make_event_file({.path = folder / "deep/events.jsonl"})});
    const auto messages = messages_of(bytes_of(folder / "deep/events.jsonl"));
    const JsonSchema schema(stream_schema());
    std::int64_t number = 0;
    for (const json& message : messages) {
        CHECK(schema.complaint(message) == "");
        CHECK(message.at("id") == std::to_string(++number));
        CHECK(message.at("run") == messages.front().at("run"));
    }
    const auto types = types_of(messages);
    CHECK(std::ranges::count(types, "train_step_end") == 8);
    CHECK(std::ranges::count(types, "eval_step_end") == 3);
    CHECK(types.back() == "run_closed");
    // The numbers of a step come after its end, those of the evaluation after that.
    const auto last = std::ranges::find_if(messages.rbegin(), messages.rend(), [](const json& message) { return message.at("type") == "torchbus.numbers"; });
    REQUIRE(last != messages.rend());
    CHECK(last->at("data").at("older").contains("eval.accuracy"));
    CHECK(last->at("data").at("after") == "training_run_epoch_end");
    CHECK(last->at("data").at("position").at("epoch") == 1);
}

TEST_CASE("an event file takes chosen events, at an interval", "[callbacks][event_file]") {
    const TemporaryFolder folder("event_file");
    train({make_event_file({.path = folder / "events.jsonl", .events = {"train_step_*", "training_run_*"}, .every = "4step"})});
    const auto messages = messages_of(bytes_of(folder / "events.jsonl"));
    CHECK(types_of(messages) == std::vector<std::string>{"stream_start", "training_run_start", "train_step_start", "train_step_end", "train_step_end", "train_step_start", "train_step_end", "training_run_epoch_end", "training_run_end"});
}

TEST_CASE("a run that begins anew moves the file of the run before aside, and no more than it keeps", "[callbacks][event_file]") {
    const TemporaryFolder folder("event_file");
    std::vector<std::string> contents;
    for (int run = 0; run < 4; ++run) {
        train({make_event_file({.path = folder / "events.jsonl", .keep = 2})});
        contents.push_back(bytes_of(folder / "events.jsonl"));
    }
    CHECK(bytes_of(folder / "events.1.jsonl") == contents[2]);
    CHECK(bytes_of(folder / "events.2.jsonl") == contents[1]);
    CHECK_FALSE(std::filesystem::exists(folder / "events.3.jsonl"));
    CHECK(messages_of(contents[0]).front().at("run") != messages_of(contents[1]).front().at("run"));
}

TEST_CASE("a file that has grown is moved aside between two lines", "[callbacks][event_file]") {
    const TemporaryFolder folder("event_file");
    train({make_event_file({.path = folder / "events.jsonl", .max_mib = 0.01, .keep = 100})}, {.epochs = 3});
    std::string all;
    for (std::int64_t number = 100; number > 0; --number)
        if (const auto path = folder / fmt::format("events.{}.jsonl", number); std::filesystem::exists(path)) all += bytes_of(path);
    all += bytes_of(folder / "events.jsonl");
    const auto messages = messages_of(all);
    std::int64_t expected = 0;
    for (const json& message : messages) CHECK(message.at("id") == std::to_string(++expected));
    CHECK(types_of(messages).back() == "run_closed");
}

TEST_CASE("a run that goes on adds to its file, behind the last whole line", "[callbacks][event_file]") {
    const TemporaryFolder folder("event_file");
    const auto callbacks = [&]() -> std::vector<ComposedCallback> { return {make_event_file({.path = folder / "events.jsonl"}), make_save_training_state({.folder = folder / "states"})}; };
    train(callbacks());
    const std::string before = bytes_of(folder / "events.jsonl");
    std::ofstream(folder / "events.jsonl", std::ios::app) << R"({"specversion":"1.0","torn)";
    train(callbacks(), {.epochs = 2, .resume = ResumeOptions{(folder / "states").string()}});
    const std::string after = bytes_of(folder / "events.jsonl");
    REQUIRE(after.starts_with(before));
    const auto added = messages_of(after.substr(before.size()));
    CHECK(std::ranges::count(types_of(added), "train_step_end") == 8);
    CHECK(added.back().at("data").at("position").at("step") == 16);
    CHECK_FALSE(std::filesystem::exists(folder / "events.1.jsonl"));
}

TEST_CASE("whatever a user's event gives as JSON is recorded and read again", "[callbacks][event_file]") {
    const std::vector<json> given = {3, "text", nullptr, true, {1, 2}, json::object(), {{"a", 1}}, std::nan("")};
    const auto found = recorded_of("loose", [&](Subscriber& bus) {
        for (const json& value : given) bus.emit(of_a_user::Loose{value});
    });
    std::vector<json> data;
    for (const auto& [name, its] : found) data.push_back(its);
    CHECK(data == std::vector<json>{{{"value", 3}}, {{"value", "text"}}, {{"value", nullptr}}, {{"value", true}}, {{"value", {1, 2}}}, json::object(), {{"a", 1}}, {{"value", "NaN"}}});
}

TEST_CASE("events that come before any run are recorded as well", "[callbacks][event_file]") {
    const TemporaryFolder folder("event_file");
    const ComposedCallback file = make_event_file({.path = folder / "events.jsonl"});
    for (int time = 0; time < 2; ++time) {  // the same callback for another trainer
        auto model = toy_model();
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}), .callbacks = {file}, .handle_signals = false});
        Subscriber me = trainer.subscribe("me");
        me.emit(of_a_user::Broken{"early"});
        trainer.train(toy_data(16), {.batch_size = 2});
    }
    const auto types = types_of(messages_of(bytes_of(folder / "events.jsonl")));
    CHECK(std::ranges::count(types, "train_step_end") == 8);
    const auto before = types_of(messages_of(bytes_of(folder / "events.1.jsonl")));
    CHECK(std::ranges::count(before, "broken") == 1);
}

TEST_CASE("a user's event whose to_json throws says why, and the sink goes on", "[callbacks][event_file]") {
    const auto found = recorded_of("broken", [](Subscriber& bus) { bus.emit(of_a_user::Broken{"a"}), bus.emit(of_a_user::Broken{}), bus.emit(of_a_user::Broken{"b"}); });
    REQUIRE(found.size() == 3);
    CHECK(found[0].second == json{{"word", "a"}});
    CHECK(found[1].second == json{{"error", "there is \"no\" word"}});
    CHECK(found[2].second == json{{"word", "b"}});
}

TEST_CASE("a user's event that is nested too deeply is recorded as a text", "[callbacks][event_file]") {
    const json most = nested(kDeepestMessage - 1, "{[\""), more = nested(kDeepestMessage + 1, 1), list = nested(kDeepestMessage, 1), very = nested(500, 1);
    REQUIRE(list.is_array());
    const auto found = recorded_of("loose", [&](Subscriber& bus) {
        for (const json& value : {most, more, list, very}) bus.emit(of_a_user::Loose{value});
    });
    REQUIRE(found.size() == 4);
    CHECK(found[0].second == most);
    CHECK(json::parse(found[1].second.at("text").get<std::string>()) == more);
    CHECK(json::parse(found[2].second.at("text").get<std::string>()) == json{{"value", list}});
    CHECK(json::parse(found[3].second.at("text").get<std::string>()) == json{{"value", very}});
}

TEST_CASE("a user's event whose name is taken has another one in streams", "[callbacks][event_file]") {
    using namespace of_a_user;
    const auto found = recorded_of("user_", [](Subscriber& bus) {
        bus.emit(Gap{}), bus.emit(of_a_user::Numbers{}), bus.emit(Snapshot{}), bus.emit(Answer{}), bus.emit(StreamStart{}), bus.emit(Accounting{}), bus.emit(of_a_user::RunClosed{});
    });
    std::vector<std::string> names;
    for (const auto& [name, data] : found) {
        names.push_back(name);
        CHECK(data == json{{"width", 3}});
    }
    CHECK(names == std::vector<std::string>{"user_gap", "user_numbers", "user_snapshot", "user_answer", "user_stream_start", "user_accounting", "user_run_closed"});
}

TEST_CASE("a sink that is slow keeps nobody waiting, and is told what was left out", "[stream]") {
    std::mutex mutex;
    std::condition_variable opened;
    bool is_open = false;
    std::string all;
    EventFeed feed({.limit_bytes = 4000, .pace = std::chrono::milliseconds(1)}, [](const std::string&, int, bool) {}, [&](const std::string& lines) {
        std::unique_lock lock(mutex);
        opened.wait(lock, [&] { return is_open; });
        all += lines;
    }, [] {});
    train({callback_of("feed", [&](Attachment& run, Connections& connections) {
        feed.attach(run);
        connections += run.bus.observe<TrainingRunEnd>(Stage::Observe, [&](const TrainingRunEnd&) {
            const std::lock_guard lock(mutex);
            is_open = true;
            opened.notify_all();
        });
    })});
    std::int64_t expected = 1, left_out = 0;
    for (const json& message : messages_of(all)) {
        if (message.at("type") == "torchbus.gap") {
            CHECK(message.at("data").at("first") == expected);
            left_out += message.at("data").at("count").get<std::int64_t>();
            expected = message.at("data").at("last").get<std::int64_t>() + 1;
        } else {
            CHECK(message.at("id") == std::to_string(expected++));
        }
    }
    CHECK(left_out > 0);
}

TEST_CASE("a sink that fails is given again what it has left, and is told of once", "[stream]") {
    const CapturedStderr captured;
    int calls = 0;
    std::string all;
    EventFeed feed({.owner = "feed", .pace = std::chrono::milliseconds(1)}, [](const std::string&, int, bool) {}, [&](const std::string& lines) {
        if (++calls <= 3) throw DataError("the cat sat on the disk");
        all += lines;
    }, [] {});
    int failures = 0;
    train({callback_of("feed", [&](Attachment& run, Connections& connections) {
        feed.attach(run);
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [](const TrainStepEnd&) { std::this_thread::sleep_for(std::chrono::milliseconds(10)); });
    }, {.subscriber = {.fault = Fault::Optional}}), callback_of("tap", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<SubscriberFailed>(Stage::Observe, [&](const SubscriberFailed&) { ++failures; });
    })});
    std::int64_t expected = 0;
    for (const json& message : messages_of(all)) CHECK(message.at("id") == std::to_string(++expected));
    CHECK(expected > 50);
    CHECK(failures == 1);
}

TEST_CASE("what a full disk has not taken is written when it does again", "[callbacks][event_file]") {
    const TemporaryFolder folder("event_file");
    const CapturedStderr captured;
    struct rlimit limit = {};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &limit) == 0);
    const auto former = std::signal(SIGXFSZ, SIG_IGN);
    train({make_event_file({.path = folder / "events.jsonl"}), callback_of("disk", [&](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Observe, [&](const TrainStepEnd& event) {
            struct rlimit now = limit;
            if (event.position.step < 6) now.rlim_cur = 4000;
            ::setrlimit(RLIMIT_FSIZE, &now);
            std::this_thread::sleep_for(std::chrono::milliseconds(60));
        });
    })});
    std::signal(SIGXFSZ, former);
    std::int64_t expected = 0;
    for (const json& message : messages_of(bytes_of(folder / "events.jsonl"))) CHECK(message.at("id") == std::to_string(++expected));
    CHECK(expected > 50);
    CHECK_THAT(captured.text(), containing("cannot write it: File too large"));
}

TEST_CASE("a file that cannot be written is told, and the run goes on", "[callbacks][event_file]") {
    const CapturedStderr captured;
    const auto result = train({make_event_file({.path = "/dev/full"})});
    CHECK(result.outcome == Outcome::Finished);
    CHECK_THAT(captured.text(), containing("/dev/full: cannot write it: No space left on device"));
}

TEST_CASE("options of an event file that make no sense are refused", "[callbacks][event_file]") {
    CHECK_THROWS_WITH(make_event_file({.path = ""}), "event_file: path is empty; give a file, e.g. events.jsonl");
    CHECK_THROWS_WITH(make_event_file({.max_mib = 0}), "event_file: max_mib: 0 is out of range; give MiB, e.g. 256");
    CHECK_THROWS_WITH(make_event_file({.sync = "5step"}), "event_file: sync: 5step is out of range; give a time, e.g. 5s");
}
