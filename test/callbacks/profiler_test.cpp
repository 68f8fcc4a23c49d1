#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/profiler.hpp>
#include <torchbus/error.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/fake_world.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

/// A folder that is gone after the test.
struct Folder {
    std::filesystem::path path = std::filesystem::temp_directory_path() / ("torchbus_profiler_" + std::to_string(::getpid()));
    ~Folder() { std::filesystem::remove_all(path); }
    std::string file(const char* name) const { return (path / name).string(); }
};

struct Span {
    int track;
    std::string name;
    std::int64_t from, to;  // ns
    json args;
    bool holds(const Span& other) const { return track == other.track && from <= other.from && other.to <= to; }
};

std::int64_t nanoseconds(const json& value) { return std::llround(value.get<double>() * 1000); }

/// The spans of a trace, after a look at its form: metadata first, complete events with what they must have, sorted by their
/// beginning on each track, each two of a track apart or one within the other.
std::vector<Span> spans_of(const std::string& file) {
    std::ifstream stream(file);
    REQUIRE(stream.good());
    const json trace = json::parse(stream);
    REQUIRE(trace.is_array());
    std::vector<Span> spans;
    std::set<std::string> tracks;
    for (const json& event : trace) {
        CHECK(event.at("pid").is_number_integer());
        CHECK(event.at("tid").is_number_integer());
        if (event.at("ph") == "M") {
            CHECK(spans.empty());
            if (event.at("name") == "thread_name") tracks.insert(event.at("args").at("name"));
            continue;
        }
        REQUIRE(event.at("ph") == "X");
        CHECK(event.at("ts").get<double>() >= 0);
        CHECK(event.at("dur").get<double>() >= 0);
        const std::int64_t from = nanoseconds(event.at("ts"));
        spans.push_back({event.at("tid"), event.at("name"), from, from + nanoseconds(event.at("dur")), event.at("args")});
    }
    CHECK(tracks == std::set<std::string>{"run", "subscribers"});
    std::map<int, std::vector<Span>> open;
    std::map<int, std::int64_t> last;
    for (const Span& span : spans) {
        INFO(span.name << " " << span.from << " " << span.to);
        CHECK(span.from >= last[span.track]);
        last[span.track] = span.from;
        auto& around = open[span.track];
        while (!around.empty() && around.back().to <= span.from && !around.back().holds(span)) around.pop_back();
        if (!around.empty()) CHECK(around.back().holds(span));
        around.push_back(span);
    }
    return spans;
}

std::vector<Span> named(const std::vector<Span>& spans, std::string_view name) {
    std::vector<Span> found;
    for (const Span& span : spans)
        if (span.name == name && span.track == 1) found.push_back(span);
    return found;
}

void pass_time(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

TrainerOptions composed(std::vector<ComposedCallback> callbacks, Loss loss = cross_entropy) {
    auto model = toy_model();
    return {.model = model, .loss = std::move(loss), .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
            .callbacks = std::move(callbacks), .handle_signals = false};
}

}  // namespace

TEST_CASE("the trace of a whole run holds its phases, each within the one it belongs to", "[callbacks][profiler]") {
    const Folder folder;
    const std::string file = folder.file("sub/profile.json");
    Trainer trainer(composed({make_profiler({.path = file, .start = 0, .steps = 1000}), callback_of("saver", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<EpochCheckpoint>(Stage::Persist, [](const EpochCheckpoint&) { pass_time(5); });
        connections += run.bus.observe<StepCheckpoint>(Stage::Persist, [](const StepCheckpoint&) { pass_time(3); });
        connections += run.bus.observe<TrainStepEnd>(Stage::Report, [&run](const TrainStepEnd& event) {
            if (event.position.step == 1) run.asker.ask(Decision::SaveNow, "a \"reason\" with\nall sorts of bytes \xff");
        });
    })}));
    trainer.train(toy_data(12), toy_data(8, 3), {.epochs = 2, .batch_size = 4});
    const auto spans = spans_of(file);
    const auto epochs = named(spans, "epoch"), steps = named(spans, "step"), waits = named(spans, "data wait"), saves = named(spans, "save"),
               evaluations = named(spans, "evaluation");
    REQUIRE(epochs.size() == 2);
    REQUIRE(steps.size() == 6);
    CHECK(evaluations.size() == 2);
    CHECK(named(spans, "evaluation step").size() == 4);
    CHECK(named(spans, "forward").size() == 6 + 4);
    CHECK(named(spans, "backward").size() == 6);
    CHECK(named(spans, "optimizer step").size() == 6);
    CHECK(waits.size() == 5);  // one before each step, but not before the one that came after a save
    REQUIRE(saves.size() == 3);
    CHECK(saves[0].to - saves[0].from >= 2'900'000);
    CHECK(saves[1].to - saves[1].from >= 4'900'000);
    CHECK(saves[0].args.at("reason").get<std::string>().starts_with("a \"reason\" with\nall sorts of bytes "));
    for (std::size_t i = 0; i < 6; ++i) {
        CHECK(epochs[i / 3].holds(steps[i]));
        CHECK(steps[i].holds(named(spans, "backward")[i]));
        CHECK(steps[i].holds(named(spans, "optimizer step")[i]));
        CHECK(steps[i].args.at("step") == i);
    }
    CHECK(epochs[0].holds(saves[0]));
    CHECK_FALSE(epochs[0].holds(evaluations[0]));  // it comes after the epoch's end
    for (const Span& wait : waits)
        for (const Span& step : steps) CHECK((wait.to <= step.from || wait.from >= step.to));
    CHECK_FALSE(std::filesystem::exists(file + ".part"));
}

TEST_CASE("the subscribers of every step are told with their time and calls", "[callbacks][profiler]") {
    const Folder folder;
    const std::string file = folder.file("profile.json");
    Trainer trainer(composed({callback_of("sleeper", [](Attachment& run, Connections& connections) {
                                  connections += run.bus.observe<ForwardEnd>(Stage::Observe, [](const ForwardEnd&) { pass_time(4); });
                                  connections += run.bus.observe<BackwardEnd>(Stage::Observe, [](const BackwardEnd&) { pass_time(2); });
                              }),
                              make_profiler({.path = file, .start = 1, .steps = 2})}));
    trainer.train(toy_data(40), {.batch_size = 4});
    const auto spans = spans_of(file);
    std::vector<Span> sleeper, forward_end;
    for (const Span& span : spans)
        if (span.track == 2) {
            if (span.name == "sleeper") sleeper.push_back(span);
            if (span.name == "forward_end" && !sleeper.empty() && sleeper.back().holds(span)) forward_end.push_back(span);
        }
    REQUIRE(sleeper.size() == 2);
    REQUIRE(forward_end.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) {
        CHECK(sleeper[i].to - sleeper[i].from >= 5'900'000);
        CHECK(sleeper[i].args.at("calls") == 2);
        CHECK(forward_end[i].to - forward_end[i].from >= 3'900'000);
        CHECK(forward_end[i].args.at("calls") == 1);
    }
}

TEST_CASE("what is short holds no observers, what is long does, and a wait is what lies between", "[callbacks][profiler]") {
    const Folder folder;
    const std::string file = folder.file("profile.json");
    double now = 100;  // goes on in observers only: 4 s after each forward, 2 s after each backward, 1 s after each step
    Trainer trainer(composed({make_profiler({.path = file, .start = 0, .clock = [&now] { return now; }}), callback_of("hands", [&now](Attachment& run, Connections& connections) {
        connections += run.bus.observe<ForwardEnd>(Stage::Observe, [&now](const ForwardEnd&) { now += 4; });
        connections += run.bus.observe<BackwardEnd>(Stage::Observe, [&now](const BackwardEnd&) { now += 2; });
        connections += run.bus.observe<TrainStepEnd>(Stage::Persist, [&now](const TrainStepEnd&) { now += 1; });
    })}));
    trainer.train(toy_data(8), {.batch_size = 4});
    const auto spans = spans_of(file);
    const auto whole = [](const Span& span) { return std::pair(span.from / 1'000'000'000, span.to / 1'000'000'000); };
    using Seconds = std::pair<std::int64_t, std::int64_t>;
    CHECK(whole(named(spans, "step")[0]) == Seconds{0, 6});
    CHECK(whole(named(spans, "forward")[0]) == Seconds{0, 0});
    CHECK(whole(named(spans, "backward")[0]) == Seconds{4, 4});
    CHECK(whole(named(spans, "optimizer step")[0]) == Seconds{6, 6});
    CHECK(whole(named(spans, "data wait")[1]) == Seconds{6, 7});
    CHECK(whole(named(spans, "step")[1]) == Seconds{7, 13});
    CHECK(whole(named(spans, "epoch")[0]) == Seconds{0, 14});
}

TEST_CASE("only the chosen steps are recorded, counted from where the run began", "[callbacks][profiler]") {
    const Folder folder;
    const std::string file = folder.file("profile.json");
    Trainer trainer(composed({make_profiler({.path = file, .start = 2, .steps = 3, .subscribers = false}), callback_of("skipper", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept(torchbus::Phase::Decide, [](GradientsReady& event) { if (event.position.attempts == 3) event.skip("skipper", "test"); });
    })}));
    for (int run = 0; run < 2; ++run) {  // the second run replaces the file
        std::filesystem::remove_all(folder.path);
        trainer.train(toy_data(40), {.batch_size = 4});
        const auto spans = spans_of(file);
        const auto steps = named(spans, "step");
        REQUIRE(steps.size() == 3);
        CHECK(steps[0].args.at("step") == 2);
        CHECK(steps[1].args.contains("skipped"));
        CHECK(steps[2].args.at("step") == 3);  // the skipped one does not count
        CHECK(named(spans, "optimizer step").size() == 2);
        CHECK(named(spans, "data wait").size() == 3);
        REQUIRE(named(spans, "epoch").size() == 1);
        CHECK(named(spans, "epoch")[0].from == 0);
        CHECK(std::ranges::all_of(spans, [](const Span& span) { return span.track == 1; }));
    }
}

TEST_CASE("a run that fails is written as far as it went, with its open spans closed", "[callbacks][profiler]") {
    const Folder folder;
    const std::string file = folder.file("profile.json");
    int calls = 0;
    Trainer trainer(composed({make_profiler({.path = file, .start = 0})}, [&](const at::Tensor& output, const at::Tensor& targets) {
        if (++calls == 2) throw std::runtime_error("no loss today");
        return cross_entropy(output, targets);
    }));
    CHECK_THROWS_WITH(trainer.train(toy_data(40), {.batch_size = 4}), "no loss today");
    const auto spans = spans_of(file);
    CHECK(named(spans, "step").size() == 2);
    CHECK(named(spans, "forward").size() == 2);  // the second one ends with the run
    CHECK(named(spans, "backward").size() == 1);
    CHECK(named(spans, "epoch").size() == 1);
}

TEST_CASE("a run that ends before `start` writes nothing, and a file that cannot be written fails no run", "[callbacks][profiler]") {
    const Folder folder;
    const std::string file = folder.file("profile.json");
    Trainer short_run(composed({make_profiler({.path = file, .start = 10})}));
    CHECK(short_run.train(toy_data(8), {.batch_size = 4}).outcome == Outcome::Finished);
    CHECK_FALSE(std::filesystem::exists(file));
    Trainer no_place(composed({make_profiler({.path = "/proc/no/such/profile.json", .start = 0, .steps = 1})}));
    CHECK(no_place.train(toy_data(8), {.batch_size = 4}).outcome == Outcome::Finished);
}

TEST_CASE("attached while a run is under way, the profiler records from there on", "[callbacks][profiler]") {
    const Folder folder;
    const std::string file = folder.file("profile.json");
    Trainer trainer(composed({}));
    trainer.start_training(toy_data(40), {.batch_size = 4});
    while (trainer.position().step < 3) trainer.advance();
    const auto attached = trainer.attach(make_profiler({.path = file, .start = 1, .steps = 2}), "test");
    while (trainer.advance()) {}
    const auto steps = named(spans_of(file), "step");
    REQUIRE(steps.size() == 2);
    CHECK(steps[0].args.at("step") == 4);
    // An evaluation is no run that it waits for.
    CHECK_NOTHROW(trainer.evaluate(toy_data(4)));
}

TEST_CASE("every rank writes a file of its own", "[callbacks][profiler]") {
    const Folder folder;
    FakeWorld world(2);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 2; ++rank)
        ranks.emplace_back([&, rank] {
            auto model = torch::nn::Sequential(torch::nn::Linear(6, 3));
            Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                             .callbacks = {world.reducer(rank), make_profiler({.path = folder.file("profile.json"), .start = 0})},
                             .consensus = world.consensus(rank), .handle_signals = false});
            trainer.train(toy_data(8), {.batch_size = 4});
        });
    for (std::thread& rank : ranks) rank.join();
    CHECK(named(spans_of(folder.file("profile.rank0.json")), "step").size() == 2);
    CHECK(named(spans_of(folder.file("profile.rank1.json")), "step").size() == 2);
}

TEST_CASE("a profiler that would record nothing is refused", "[callbacks][profiler]") {
    CHECK_THROWS_WITH(make_profiler({.path = ""}), "profiler: path is empty; give a file, e.g. profile.json");
    CHECK_THROWS_WITH(make_profiler({.steps = 0}), "profiler: steps: 0 is out of range; give 1 to 100000 steps, e.g. 10");
    CHECK_THROWS_AS(make_profiler({.start = -1}), ConfigError);
}
