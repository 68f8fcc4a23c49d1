// What a client asks for, and what it is given of a stream.
#include <chrono>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/stream/message.hpp>

#include "../../src/stream/history.hpp"
#include "../../src/stream/run_picture.hpp"

#include "support/catch.hpp"

using namespace torchbus;
using nlohmann::json;

namespace {

/// A stream of steps, each with an end and numbers, and an evaluation after every tenth.
class Stream {
public:
    std::string steps(int count) {
        std::string lines;
        for (int i = 0; i < count; ++i) {
            ++step_;
            put(lines, "train_step_end", R"("loss":0.5,"skipped":false)");
            put(lines, "numbers", R"("numbers":{"loss":0.25},"older":{"eval.loss":"NaN"},"after":"train_step_end")");
            if (step_ % 10 == 0) put(lines, "eval_epoch_end", R"("steps":3)");
            if (step_ % 10 == 0) put(lines, "numbers", R"("numbers":{"eval.loss":1},"older":{"loss":0.25},"after":"eval_epoch_end")");
        }
        return lines;
    }
    std::string one(const std::string& name, const std::string& data) {
        std::string line;
        writer_.append(line, name, data, {});
        return line;
    }
    std::int64_t sequence() const { return writer_.sequence(); }
    /// So much passes between two steps.
    void takes_time(std::chrono::milliseconds a_step) { a_step_ = a_step; }

private:
    void put(std::string& lines, const char* name, const std::string& rest) {
        const std::string count = std::to_string(step_);
        const std::string counts = R"("step":)" + count + R"(,"attempts":)" + count + R"(,"micro_batch":)" + count + R"(,"samples":)" + std::to_string(8 * step_) + R"(,"tokens":0)";
        writer_.append(lines, name, R"({"position":{"epoch":0,)" + counts + R"(,"in_epoch":{)" + counts + "}}," + rest + "}", std::chrono::system_clock::time_point(step_ * a_step_));
    }
    MessageWriter writer_{StreamSource{"run-1", 0}};
    int step_ = 0;
    std::chrono::milliseconds a_step_ = {};
};

void add_to(RunPicture& picture, const std::string& lines) {
    for_each_line(lines, [&](std::string_view line) { picture.take(*view_of(line)); });
}

std::vector<json> taken(const std::string& lines, const Subscription& wanted) {
    LineFilter filter(wanted);
    std::vector<json> messages;
    for_each_line(lines, [&](std::string_view line) {
        if (const auto text = filter.take(*view_of(line))) messages.push_back(json::parse(*text));
    });
    return messages;
}

std::string complaint(std::string_view query) {
    try {
        subscription_from_query(query);
    } catch (const ConfigError& error) {
        return error.what();
    }
    return {};
}

std::vector<std::int64_t> sequences_in(const std::string& lines) {
    std::vector<std::int64_t> sequences;
    for_each_line(lines, [&](std::string_view line) { sequences.push_back(view_of(line)->sequence); });
    return sequences;
}

}  // namespace

TEST_CASE("a line is read for its name, number and place without being parsed", "[stream][subscription]") {
    Stream stream;
    const std::string lines = stream.steps(3);
    const auto view = view_of(std::string_view(lines).substr(0, lines.find('\n') + 1));
    REQUIRE(view);
    CHECK(view->name == "train_step_end");
    CHECK(view->sequence == 1);
    CHECK(view->position("step") == 1);
    CHECK(view->position("samples") == 8);
    CHECK_FALSE(view->position("nothing"));
    CHECK(json::parse(view->data)["loss"] == 0.5);
    CHECK(json::parse(view->position_text())["in_epoch"]["step"] == 1);
    for (const char* foreign : {"", "\n", "{}\n", "{\"type\":\"torchbus.x\"}\n", "nonsense"}) CHECK_FALSE(view_of(foreign));
}

TEST_CASE("a subscription chooses events by pattern, fields by name, and how often", "[stream][subscription]") {
    Stream stream;
    const std::string lines = stream.steps(30);
    CHECK(taken(lines, {}).size() == 66);

    const auto evaluations = taken(lines, subscription_from_query("events=eval_*"));
    REQUIRE(evaluations.size() == 3);
    CHECK(evaluations[1]["data"]["position"]["step"] == 20);

    const auto fields = taken(lines, subscription_from_query("events=numbers&fields=position.step,older.eval.loss,nothing.there"));
    REQUIRE(fields.size() == 33);
    CHECK(fields[0]["data"] == json::parse(R"({"position":{"step":1},"older":{"eval.loss":"NaN"}})"));
    CHECK(fields[0]["sequence"] == "0000000000000002");

    // Steps 1, 10, 20, 30 begin an interval; what comes with an evaluation comes always.
    std::vector<int> steps;
    const auto sparse = taken(lines, subscription_from_query("every=10step"));
    for (const json& message : sparse)
        if (message["type"] == "torchbus.train_step_end") steps.push_back(message["data"]["position"]["step"]);
    CHECK(steps == std::vector{1, 10, 20, 30});
    CHECK(sparse.size() == 4 + 4 + 3 + 3);
    CHECK(taken(lines, subscription_from_query("events=train_step_end&every=80sample")).size() == 4);
    CHECK(taken(lines, subscription_from_json(json::parse(R"({"events":["train_step_end"],"every":15})"), "x")).size() == 3);
    CHECK(taken(lines, subscription_from_query("events=train_step_end&every=1h")).size() == 1);
}

TEST_CASE("an interval of time is measured by when messages were emitted, however late they are asked for", "[stream][subscription]") {
    Stream stream;
    stream.takes_time(std::chrono::milliseconds(100));
    Histories histories(1U << 20);
    histories.add("run-1", stream.steps(200));
    const auto history = histories.of(subscription_from_query("events=train_step_end&every=5s"));
    std::vector<std::int64_t> steps;
    for (ChunkPointer chunk = history->at(0); chunk; chunk = history->at(chunk->number + 1))
        for_each_line(chunk->lines, [&](std::string_view line) { steps.push_back(*view_of(line)->position("step")); });
    CHECK(steps == std::vector<std::int64_t>{1, 50, 100, 150, 200});
}

TEST_CASE("a subscription that is not understood is refused with what would be", "[stream][subscription]") {
    CHECK(complaint("event=x") == "query: 'event' is not known; give events, fields, every and from");
    CHECK(complaint("every=soon").find("'soon'") != std::string::npos);
    CHECK(complaint("every=0.5run") == "query: every: '0.5run' is no interval of a stream; give e.g. 100step, 1epoch or 5s");
    CHECK(complaint("every=-1step").find("-1step") != std::string::npos);
    CHECK(complaint("from=then") == "query: from: 'then' is not known; give start (with what is kept of the past) or now");
    CHECK(complaint("events=a&events=b") == "query: 'events' comes twice; give it once");
    CHECK(complaint("events=%zz") == "query: '%zz' is no encoded character; write a percent sign as %25");
    CHECK(complaint("events=%e").find("no encoded character") != std::string::npos);
    std::string many = "events=a";
    for (int i = 0; i < 70; ++i) many += ",a";
    CHECK(complaint(many).find("more than 64") != std::string::npos);
    CHECK(complaint("events=%65val_*&every=10%73tep&from=now").empty());
    const auto refused = [](const char* text) {
        try {
            subscription_from_json(json::parse(text), "subscription");
        } catch (const ConfigError& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    CHECK(refused("[]").find("an object") != std::string::npos);
    CHECK(refused(R"({"events":"eval_*"})").find("no list of texts") != std::string::npos);
    CHECK(refused(R"({"events":[1]})").find("no list of texts") != std::string::npos);
    CHECK(refused(R"({"every":true})").find("'every'") != std::string::npos);
    CHECK(refused(R"({"evry":"1step"})").find("'evry'") != std::string::npos);
    CHECK(refused(R"({"from":1})").find("'from'") != std::string::npos);
}

TEST_CASE("a history keeps the newest messages within its limit, and hands out chunks of them in order", "[stream][history]") {
    Stream stream;
    History history({}, 200'000);
    for (int i = 0; i < 100; ++i) history.add("run-1", stream.steps(10));
    CHECK(history.size_bytes() <= 200'000);
    CHECK(history.size_bytes() > 150'000);
    CHECK(history.oldest_number() > 0);

    std::vector<std::int64_t> sequences;
    for (ChunkPointer chunk = history.at(0); chunk; chunk = history.at(chunk->number + 1)) {
        CHECK(chunk->lines.size() <= History::kChunkBytes);
        const auto own = sequences_in(chunk->lines);
        CHECK(own.front() == chunk->first);
        CHECK(own.back() == chunk->last);
        sequences.insert(sequences.end(), own.begin(), own.end());
    }
    CHECK(sequences.back() == stream.sequence());
    for (std::size_t i = 1; i < sequences.size(); ++i) REQUIRE(sequences[i] == sequences[i - 1] + 1);
    CHECK(history.at(history.next_number()) == nullptr);

    const std::int64_t some = sequences[sequences.size() / 2];
    const ChunkPointer next = history.at(history.number_behind("run-1", some));
    CHECK(next->first <= some + 1);
    CHECK(next->last > some);
    CHECK(history.number_behind("run-1", stream.sequence()) == history.next_number());
    CHECK(history.number_behind("run-0", 7) == history.oldest_number());
}

TEST_CASE("however many different subscriptions there are, what they have chosen stays within one limit", "[stream][history]") {
    constexpr std::size_t kLimit = 4U << 20;
    Stream stream;
    Histories histories(kLimit);
    const auto nth = [](int i) { return subscription_from_query("every=1.0" + std::to_string(10000 + i) + "step&events=eval_*,numbers,train_*"); };
    for (int i = 0; i < 300; ++i) histories.add("run-1", stream.steps(100));
    std::vector<std::shared_ptr<History>> held;
    for (int i = 0; i < 1000; ++i)
        if (auto history = histories.of(nth(i))) held.push_back(std::move(history));
    CHECK(held.size() == histories.most_chosen());
    CHECK(held.size() == kLimit / Histories::kLeastShare);
    CHECK(histories.chosen_bytes() <= kLimit);
    CHECK(histories.of(nth(0)) == held.front());
    CHECK(histories.of({})->size_bytes() > kLimit / 2);

    for (int i = 0; i < 20; ++i) histories.add("run-1", stream.steps(100));
    CHECK(histories.chosen_bytes() <= kLimit);
    for (const auto& history : held) CHECK(history->at(history->next_number() - 1)->last == stream.sequence());

    held.resize(1);  // who is left has all of it
    for (int i = 0; i < 300; ++i) histories.add("run-1", stream.steps(100));
    CHECK(held.front()->size_bytes() > kLimit / 2);
    CHECK(histories.chosen_bytes() == held.front()->size_bytes());
    CHECK(histories.of(nth(999)) != nullptr);
}

TEST_CASE("a subscription that is new begins with a part of the past that takes no long time to read", "[stream][history]") {
    Stream stream;
    Histories histories(4 * Histories::kReadOfPast);
    for (int i = 0; i < 300; ++i) histories.add("run-1", stream.steps(100));
    REQUIRE(histories.of({})->size_bytes() > 2 * Histories::kReadOfPast);
    const auto chosen = histories.of(subscription_from_query("events=*,nothing"));
    CHECK(chosen->size_bytes() <= Histories::kReadOfPast);
    CHECK(chosen->size_bytes() > Histories::kReadOfPast / 2);
    CHECK(chosen->at(chosen->next_number() - 1)->last == stream.sequence());
}

TEST_CASE("a history knows the last message that it lost, and one of rare messages loses none", "[stream][history]") {
    Stream stream;
    Histories histories(1U << 20);
    const auto from_the_beginning = histories.of(subscription_from_query("events=eval_*"));
    for (int i = 0; i < 30; ++i) histories.add("run-1", stream.steps(100));  // 2 MiB and more
    const auto all = histories.of({});
    CHECK(all->last_gone().run == "run-1");
    CHECK(all->last_gone().sequence == all->at(0)->first - 1);
    CHECK(from_the_beginning->last_gone().sequence == 0);
    CHECK(from_the_beginning->at(0)->first == 21);  // after ten steps of two messages each

    const auto late = histories.of(subscription_from_query("events=eval_epoch_end"));
    CHECK(late->last_gone().sequence >= all->last_gone().sequence);  // of the past it has read what its share has place for
    CHECK(late->last_gone().sequence < all->at(all->next_number() - 1)->first);
    CHECK(late->at(0)->first > late->last_gone().sequence);
}

TEST_CASE("the text of a chunk for Server-Sent Events goes with who is sent it", "[stream][history]") {
    Stream stream;
    History history({}, 1 << 20);
    history.add("run-1", stream.steps(20));
    std::weak_ptr<const std::string> gone;
    {
        const auto one = history.at(0)->server_sent(), other = history.at(0)->server_sent();
        CHECK(one == other);
        gone = one;
    }
    CHECK(gone.expired());
}

TEST_CASE("a chunk as server-sent events has an id to go on from with every message", "[stream][history]") {
    Stream stream;
    History history({}, 1 << 20);
    history.add("run-1", stream.steps(2));
    const std::string text = *history.at(0)->server_sent();
    CHECK(text.starts_with("id: run-1:1\ndata: {\"specversion\""));
    CHECK(text.ends_with("}\n\n"));
    CHECK(text.find("\n\nid: run-1:2\ndata: ") != std::string::npos);
}

TEST_CASE("a picture is drawn of whatever a recording holds", "[stream][picture]") {
    Stream stream;
    for (const auto& [name, data] : std::vector<std::pair<const char*, const char*>>{
             {"run_closed", "{}"}, {"run_closed", R"({"result":5})"}, {"run_closed", "{x}"}, {"gap", R"({"count":"x"})"}, {"gap", R"({"count":-1e308})"}, {"decision_taken", R"({"decision":5})"},
             {"decision_taken", "{\"decision\":\"\xff\"}"}, {"numbers", R"({"numbers":5,"older":6})"}, {"numbers", R"({"numbers":{"a":[]},"older":null})"}, {"accounting", "{x}"},
             {"training_run_start", R"({"plan":3})"}, {"told", R"({"position":{"x":1.5,"y":2}})"}, {"told", R"({"position":{"step":"}}","in_epoch":3}})"}}) {
        INFO(name << ' ' << data);
        RunPicture picture;
        picture.begin("run", 0);
        add_to(picture, stream.one(name, data));
        std::string metrics;
        picture.append_metrics(metrics);
        CHECK(metrics.find("torchbus_messages_total") != std::string::npos);
        if (std::string(data).find("{x}") == std::string::npos && std::string(data).find('\xff') == std::string::npos) CHECK(json::parse(picture.snapshot()).contains("state"));
    }
}

TEST_CASE("the picture of a run is what its messages have told so far", "[stream][picture]") {
    Stream stream;
    RunPicture picture;
    CHECK(picture.state() == "idle");
    picture.begin("run \"1\"\n", 2);
    add_to(picture, stream.one("training_run_start", R"({"plan":{"epochs":3}})"));
    add_to(picture, stream.one("warmup_run_start", R"({"plan":"none: it is a user's own"})"));
    add_to(picture, stream.steps(10));
    add_to(picture, stream.one("decision_taken", R"({"decision":"save_now","requester":"me","reason":"so"})"));
    add_to(picture, stream.one("gap", R"({"first":5,"last":9,"count":5})"));
    const json snapshot = json::parse(picture.snapshot());
    CHECK(snapshot["state"] == "running");
    CHECK(snapshot["position"]["step"] == 10);
    CHECK(snapshot["start"]["plan"]["epochs"] == 3);
    CHECK(snapshot["numbers"]["numbers"]["eval.loss"] == 1);
    CHECK(snapshot["end"].is_null());
    CHECK(snapshot["decisions"][0]["requester"] == "me");
    CHECK(snapshot["last_sequence"] == stream.sequence());

    std::string metrics;
    picture.append_metrics(metrics);
    const auto has = [&](const char* line) { return ("\n" + metrics).find("\n" + std::string(line) + "\n") != std::string::npos; };
    CHECK(has(R"(torchbus_run_state{rank="2",run="run \"1\"\n",state="running"} 1)"));
    CHECK(has(R"(torchbus_steps_total{rank="2",run="run \"1\"\n"} 10)"));
    CHECK(has(R"(torchbus_number{name="eval.loss",rank="2",run="run \"1\"\n"} 1)"));
    CHECK(has(R"(torchbus_decisions_total{decision="save_now",rank="2",run="run \"1\"\n"} 1)"));
    CHECK(has(R"(torchbus_messages_left_out_total{rank="2",run="run \"1\"\n"} 5)"));

    add_to(picture, stream.one("decision_taken", R"({"decision":"pause"})"));
    CHECK(picture.state() == "paused");
    add_to(picture, stream.one("eval_epoch_start", "{}"));
    CHECK(picture.state() == "evaluating");
    add_to(picture, stream.one("eval_epoch_end", "{}"));
    CHECK(picture.state() == "paused");
    add_to(picture, stream.one("run_closed", R"({"result":{"outcome":"stopped"}})"));
    CHECK(picture.state() == "stopped");
}
