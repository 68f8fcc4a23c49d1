// Numbers of a run as curves, and the runs that a dashboard shows.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/stream/message.hpp>
#include <torchbus/stream/numbers.hpp>

#include "../../src/stream/curves.hpp"
#include "../../src/stream/shown_runs.hpp"

#include "support/catch.hpp"

using namespace torchbus;
using Catch::Contains;
using nlohmann::json;

namespace {

StreamNumbers numbers_at(std::int64_t step, double value) {
    StreamNumbers numbers;
    numbers.seconds = 1000 + 0.5 * static_cast<double>(step);
    numbers.step = numbers.attempts = step;
    numbers.samples = 8 * step;
    numbers.epoch = step / 10;
    numbers.step_in_epoch = step % 10;
    numbers.fresh = {{"loss", value}};
    return numbers;
}

double height(std::int64_t step) { return std::sin(static_cast<double>(step) / 1000) + (step == 123'457 ? 50 : step == 765'432 ? -50 : 0); }

std::string numbers_line(const std::string& run, int rank, std::int64_t step, const std::string& fresh) {
    MessageWriter writer({run, rank});
    std::string line;
    const std::string count = std::to_string(step);
    const std::string counts = R"("step":)" + count + R"(,"attempts":)" + count + R"(,"micro_batch":0,"samples":)" + std::to_string(8 * step) + R"(,"tokens":0)";
    writer.append(line, "numbers", R"({"position":{"epoch":2,)" + counts + R"(,"in_epoch":{)" + counts + R"(}},"numbers":)" + fresh + R"(,"older":{},"after":"train_step_end"})", {});
    return line;
}

}  // namespace

TEST_CASE("a message of numbers is read as it was written", "[stream][numbers]") {
    const std::string line = numbers_line("run-1", 0, 7, R"({"a \"quoted\" name":"NaN","loss":-2.5e-3,"most":"Infinity","least":"-Infinity"})");
    const auto numbers = numbers_of(line);
    REQUIRE(numbers);
    CHECK(numbers->step == 7);
    CHECK(numbers->samples == 56);
    CHECK(numbers->epoch == 2);
    CHECK(numbers->step_in_epoch == 7);
    CHECK(numbers->after == "train_step_end");
    CHECK(numbers->seconds == 0);
    REQUIRE(numbers->fresh.size() == 4);
    CHECK(numbers->fresh[0].first == "a \"quoted\" name");
    CHECK(std::isnan(numbers->fresh[0].second));
    CHECK(numbers->fresh[1].second == -2.5e-3);
    CHECK(numbers->fresh[2].second == INFINITY);
    CHECK(numbers->fresh[3].second == -INFINITY);
    CHECK(numbers->older.empty());
    const auto named = numbers_of(numbers_line("run-1", 0, 7, R"({"older":1.5,"x\"older":2,"numbers":3})"));
    REQUIRE(named);
    CHECK(named->fresh.size() == 3);
    CHECK(named->older.empty());
    for (const char* damaged : {R"({"loss":})", R"({"loss":1)", R"({"loss":"Nan"})", R"({loss:1})", R"({"loss" 1})", R"({"lo\)"}) CHECK(!numbers_of(numbers_line("run-1", 0, 7, damaged)));
    CHECK(seconds_of_time("2026-11-27T23:41:07.250113Z") == Approx(1795822867.250113).epsilon(1e-15));  // date -u -d 2026-11-27T23:41:07 +%s
    CHECK(seconds_of_time("2024-02-29T00:00:00Z") == 1709164800.0);
    for (const char* none : {"", "2026-11-27", "2026-13-27T23:41:07Z", "2025-02-29T00:00:00Z", "2026-11-27T23:41:07+01:00"}) CHECK(!seconds_of_time(none));
}

TEST_CASE("of a million points as many are given as were asked for, and no peak is lost", "[stream][curves]") {
    Curves curves(2U << 20);
    for (std::int64_t step = 1; step <= 1'000'000; ++step) curves.add(numbers_at(step, height(step)));
    const auto part = curves.part("loss", {.points = 800});
    REQUIRE(part);
    CHECK(part->count == 1'000'000);
    CHECK(part->points.size() <= 804);
    CHECK(part->points.size() >= 700);
    const auto least = std::ranges::min_element(part->points, {}, &CurvePoint::y), most = std::ranges::max_element(part->points, {}, &CurvePoint::y);
    CHECK(most->step == 123'457);
    CHECK(least->step == 765'432);
    CHECK(std::ranges::is_sorted(part->points, {}, &CurvePoint::step));
    CHECK(part->points.front().step <= 1250);

    const auto zoomed = curves.part("loss", {.from = 123'400, .to = 123'500, .points = 800});
    CHECK(zoomed->count == 101);
    REQUIRE(zoomed->points.size() == 101);
    for (const CurvePoint& point : zoomed->points) REQUIRE(point.y == height(static_cast<std::int64_t>(point.step)));
    CHECK(curves.part("loss", {.axis = CurveAxis::Samples, .from = 8.0 * 123'400, .to = 8.0 * 123'500, .points = 800})->points.size() == 101);
    CHECK(curves.part("loss", {.from = 2e6, .points = 800})->points.empty());
    CHECK(!curves.part("accuracy", {}));
}

TEST_CASE("curves keep within their limit, and the peaks with them", "[stream][curves]") {
    Curves curves(10'000);
    for (std::int64_t step = 1; step <= 1'000'000; ++step) curves.add(numbers_at(step, height(step)));
    CHECK(curves.point_count() <= 10'000);
    CHECK(curves.point_count() > 4'000);
    const auto part = curves.part("loss", {.points = 4000});
    CHECK(std::ranges::max(part->points, {}, &CurvePoint::y).step == 123'457);
    CHECK(std::ranges::min(part->points, {}, &CurvePoint::y).step == 765'432);
    CHECK(static_cast<double>(part->count) == Approx(1'000'000).epsilon(0.01));
    CHECK(part->points.back().step == 1'000'000);
}

TEST_CASE("what a run goes back from is in no curve, and what is no number is seen", "[stream][curves]") {
    Curves curves(1000);
    curves.set_epoch_length(10);
    for (std::int64_t step = 1; step <= 100; ++step) curves.add(numbers_at(step, step == 50 ? NAN : 1));
    curves.go_back_to(60);
    for (std::int64_t step = 61; step <= 70; ++step) curves.add(numbers_at(step, 2));
    const auto part = curves.part("loss", {.points = 800});
    REQUIRE(part->points.size() == 70);
    CHECK(part->points[59].y == 1);
    CHECK(part->points.back().step == 70);
    CHECK(part->points.back().y == 2);
    CHECK(part->points[14].epochs == Approx(1.5));
    curves.add(numbers_at(70, 3));  // as the end of an epoch tells the mean of it at its last step
    CHECK(curves.part("loss", {.points = 800})->points.size() == 71);
    const auto few = curves.part("loss", {.points = 10});
    CHECK(std::ranges::count_if(few->points, [](const CurvePoint& point) { return std::isnan(point.y); }) == 1);
}

TEST_CASE("there is a place for so many names, and the others are counted", "[stream][curves]") {
    Curves curves(1'000'000);
    StreamNumbers numbers = numbers_at(1, 1);
    for (int i = 0; i < 6000; ++i) {
        numbers.fresh = {{"loss." + std::to_string(i), 1}};
        curves.add(numbers);
    }
    CHECK(curves.names().size() == 4096);
    CHECK(curves.names_left_out() == 1904);
}

TEST_CASE("all runs together keep within the limit of points", "[stream][shown-runs]") {
    ShownRuns runs(2000);
    runs.begin("live", 0);
    for (int run = 0; run < 10; ++run) {
        std::string lines;
        for (std::int64_t step = 1; step <= 1000; ++step) lines += numbers_line("run" + std::to_string(run), 0, step, R"({"a":1,"b":2})");
        runs.add_recorded("old", "run" + std::to_string(run), 0, lines);
    }
    std::size_t points = 0;
    const json curves = json::parse(runs.curves(curves_query("names=a,b,a,b&points=4000")));
    CHECK(curves["curves"].size() == 20);
    CHECK(curves["left_out"] == 0);
    for (const json& curve : curves["curves"]) points += curve["x"].size();
    CHECK(points <= 2000);
    for (int run = 10; run < 80; ++run) runs.add_recorded("old", "run" + std::to_string(run), 0, numbers_line("x", 0, 1, R"({"a":1})"));
    CHECK(json::parse(runs.list("\"x\":1"))["runs"].size() == 64);
}

TEST_CASE("runs and ranks are shown side by side, the live one first", "[stream][shown-runs]") {
    ShownRuns runs(100'000);
    runs.begin("first", 0);
    for (std::int64_t step = 1; step <= 20; ++step) runs.add(numbers_line("first", 0, step, R"({"train.loss":1})"));
    runs.begin("second", 0);
    for (std::int64_t step = 1; step <= 10; ++step) runs.add(numbers_line("second", 0, step, R"({"train.loss":"NaN","eval.loss":3})"));
    runs.add_recorded("old/events.jsonl", "third", 1, numbers_line("third", 1, 5, R"({"train.loss":4})"));

    const json listed = json::parse(runs.list("\"allows_control\":false"));
    REQUIRE(listed["runs"].size() == 3);
    CHECK(listed["runs"][0]["run"] == "second");
    CHECK(listed["runs"][0]["is_live"] == true);
    CHECK(listed["runs"][0]["names"] == json::parse(R"(["eval.loss","train.loss"])"));
    CHECK(listed["runs"][0]["position"]["step"] == 10);
    CHECK(listed["runs"][1]["run"] == "first");
    CHECK(listed["runs"][1]["is_live"] == false);
    CHECK(listed["runs"][2]["label"] == "old/events.jsonl");
    CHECK(listed["runs"][2]["rank"] == 1);
    CHECK(listed["allows_control"] == false);

    const json curves = json::parse(runs.curves(curves_query("names=train.loss&x=step&points=100")));
    REQUIRE(curves["curves"].size() == 3);
    CHECK(curves["curves"][0]["y"][0].is_null());
    CHECK(curves["curves"][1]["x"].size() == 20);
    CHECK(curves["curves"][2]["y"] == json::parse("[4.0]"));
    CHECK(json::parse(runs.curves(curves_query("names=train.loss,eval.loss&runs=second:0")))["curves"].size() == 2);
    CHECK(runs.find("third", 1) != nullptr);
    CHECK(runs.find("third", 0) == nullptr);
}

TEST_CASE("a query for curves that makes no sense is refused", "[stream][shown-runs]") {
    for (const auto& [query, message] : {std::pair("x=step", "names: 0 were found"), std::pair("names=a&x=parsec", "x: 'parsec' is no axis"), std::pair("names=a&points=many", "points: 'many' is no number"),
                                         std::pair("names=a&from=nan", "from: 'nan' is no number"), std::pair("names=a&colour=red", "'colour' is not known"), std::pair("names=a&names=b", "comes twice")})
        CHECK_THROWS_WITH(curves_query(query), Contains(message));
    CHECK(curves_query("names=a&points=1e9").range.points == 4000);
}
