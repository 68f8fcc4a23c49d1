#include <torchbus/error.hpp>
#include <torchbus/filter.hpp>

#include "support/catch.hpp"

using namespace torchbus;

namespace {

/// The steps, out of 1 … last, at which a filter passes when it is asked at every step.
std::vector<int> fires(Filter filter, int last, int first = 1, RunLength length = {}) {
    Moment moment;
    moment.length = length;
    moment.position.step = moment.position.attempts = first - 1;
    filter.resolve(Interval::Unit::Step);
    filter.rebase(moment, 0, true);
    std::vector<int> steps;
    for (int step = first; step <= last; ++step) {
        moment.position.step = moment.position.attempts = step;
        if (filter.passes(moment, 0)) steps.push_back(step);
    }
    return steps;
}

}  // namespace

TEST_CASE("every(n) fires at multiples of n after the start", "[filter]") {
    CHECK(fires(every(5), 20) == std::vector<int>{5, 10, 15, 20});
    CHECK(fires(every("5step").after("8step"), 20) == std::vector<int>{13, 18});
}

TEST_CASE("once, after and before bound by position", "[filter]") {
    CHECK(fires(once(3), 10) == std::vector<int>{3});
    CHECK(fires(after(7), 10) == std::vector<int>{8, 9, 10});
    CHECK(fires(before(3), 10) == std::vector<int>{1, 2});
    CHECK(fires(after(3).before(6), 10) == std::vector<int>{4, 5});
}

TEST_CASE("a union fires when one of its filters does", "[filter]") {
    CHECK(fires(every(4) | once(1), 9) == std::vector<int>{1, 4, 8});
}

TEST_CASE("resuming changes nothing: what fired before does not fire again", "[filter]") {
    CHECK(fires(every(5), 20, 12) == std::vector<int>{15, 20});
    CHECK(fires(every(5), 20, 11) == std::vector<int>{15, 20});
    CHECK(fires(once(3), 10, 5).empty());
}

TEST_CASE("a jump over several multiples fires once", "[filter]") {
    Moment moment;
    Filter filter = every(5);
    filter.resolve(Interval::Unit::Step);
    filter.rebase(moment, 0);
    moment.position.step = 17;
    CHECK(filter.passes(moment, 0));
    moment.position.step = 19;
    CHECK_FALSE(filter.passes(moment, 0));
    moment.position.step = 20;
    CHECK(filter.passes(moment, 0));
}

TEST_CASE("a share of the run fires at that share, and needs a known length", "[filter]") {
    RunLength length;
    length.steps = 30;
    CHECK(fires(every("0.1run"), 30, 1, length) == std::vector<int>{3, 6, 9, 12, 15, 18, 21, 24, 27, 30});
    CHECK_THROWS_WITH(fires(every("0.1run"), 3),
                      "an interval in 'run' needs a run of known length; give epochs, or use 'step' or 'epoch'");
}

TEST_CASE("in(mode) and when(predicate) look at the moment", "[filter]") {
    Moment moment;
    Filter filter = in(Mode::Eval).when([](const Moment& at) { return at.position.epoch > 1; });
    moment.position.epoch = 2;
    CHECK_FALSE(filter.passes(moment, 0));
    moment.mode = Mode::Eval;
    CHECK(filter.passes(moment, 0));
    moment.position.epoch = 1;
    CHECK_FALSE(filter.passes(moment, 0));
}

TEST_CASE("an event of another mode takes no tick", "[filter]") {
    Moment moment;
    Filter filter = every(1).in(Mode::Train);
    filter.resolve(Interval::Unit::Step);
    filter.rebase(moment, 0);
    moment.position.step = 1;
    moment.mode = Mode::Eval;
    CHECK_FALSE(filter.passes(moment, 0));
    moment.mode = Mode::Train;
    CHECK(filter.passes(moment, 0));
}

TEST_CASE("a share of an evaluation run is never due", "[filter]") {
    Moment moment;
    moment.mode = Mode::Eval;
    Filter filter = every("0.5run");
    CHECK_NOTHROW(filter.rebase(moment, 0, true));
    CHECK_FALSE(filter.passes(moment, 0));
}

TEST_CASE("an interval reads the same from text, and says what it does not understand", "[interval]") {
    CHECK(parse_interval("100step") == Interval(100, Interval::Unit::Step));
    CHECK(parse_interval("1e6sample") == Interval(1e6, Interval::Unit::Sample));
    CHECK(parse_interval("2min") == Interval(120, Interval::Unit::Second));
    CHECK(parse_interval("7") == Interval(7));
    CHECK(to_string(parse_interval("0.5epoch")) == "0.5epoch");
    CHECK_THROWS_WITH(parse_interval("100 parsecs"),
                      "'100 parsecs' is not an interval; give a number and a unit out of step, attempt, micro_batch, epoch, "
                      "sample, token, run, s, min, h, e.g. \"100step\" or \"0.5epoch\"");
    CHECK_THROWS_AS(parse_interval("-1step"), ConfigError);
    CHECK_THROWS_WITH(parse_interval(std::string_view("5\0step", 6)), Catch::Matchers::StartsWith("'5?step' is not an interval; give") && Catch::Matchers::EndsWith("\"0.5epoch\""));
    CHECK_THROWS_AS(parse_interval("nanstep"), ConfigError);
    CHECK_THROWS_WITH(every(0), "every(0): the interval must be positive, e.g. every(\"100step\")");
    CHECK_THROWS_AS(fires(every("5step").after("1epoch"), 3), ConfigError);
}
