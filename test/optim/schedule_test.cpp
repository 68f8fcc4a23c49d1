// Schedules against torch, pytorch-accelerated and timm, and what they say of a run that they do not fit.
#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/optim/registry.hpp>
#include <torchbus/callback.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/schedule.hpp>

#include "support/catch.hpp"
#include "support/source_root.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

json references() { return json::parse(std::ifstream(source_root() + "/test/references/schedules.json")); }

Moment moment_at(std::int64_t step, std::optional<std::int64_t> steps = {}) {
    Moment moment;
    moment.position.step = moment.position.attempts = step;
    moment.length.steps = steps;
    return moment;
}

std::vector<std::string> findings(const Schedule& schedule, const RunLength& length, RunPlan plan = {}) {
    const Model model;
    const std::vector<Update> updates;
    std::vector<std::string> texts;
    for (const Finding& finding : check_schedule(schedule, {plan, length, model, updates}, "lr"))
        texts.push_back((finding.weight == Finding::Weight::Error ? "error: " : "warning: ") + finding.text);
    return texts;
}

Schedule from(const json& options) { return schedule_from_json(options, "run.json: schedule"); }

}  // namespace

TEST_CASE("schedules equal those of torch, pytorch-accelerated and timm over whole runs", "[optim][schedule]") {
    const json all = references();
    for (const json& reference : all.at("cases")) {
        INFO(reference.at("name").get<std::string>());
        const Schedule schedule = from(reference.at("schedule"));
        const std::vector<double> expected = reference.at("values");
        SampledRun run;
        run.length = {reference.at("epochs"), {}, reference.at("steps").get<std::int64_t>()};
        const std::vector<double> factors = sample_schedule(schedule, run);
        const std::size_t first = factors.size() - expected.size();  // of a run that was continued, the values are of its end
        for (std::size_t i = 0; i < expected.size(); ++i) {
            INFO("update " << i);
            CHECK(factors[first + i] * reference.at("base").get<double>() == Approx(expected[i]).epsilon(1e-9).margin(1e-9));
        }
    }
}

TEST_CASE("a cosine with a warm-up goes on to its end, where pytorch-accelerated cuts it off", "[optim][schedule]") {
    const Schedule schedule = make_cosine_schedule({.warmup = 10, .minimum = 0.1});
    CHECK(schedule(moment_at(90, 100)) == Approx(0.1 + 0.9 * 0.5 * (1 + std::cos(M_PI * 80 / 90))));  // theirs is at 0.1 from here on
    CHECK(schedule(moment_at(100, 100)) == Approx(0.1));
    CHECK(schedule(moment_at(500, 100)) == 0.1);  // a run that goes on stays there
}

TEST_CASE("lengths are steps, epochs or shares of the run, and shares are whole updates", "[optim][schedule]") {
    Moment moment = moment_at(0, 105);
    moment.length.epochs = 10;
    const auto drops_at = [&](const char* where) {
        const Schedule schedule = make_multi_step_schedule({.milestones = {where}, .factor = 0.5});
        for (moment.position.step = 0; schedule(moment) == 1.0; ++moment.position.step) {}
        return moment.position.step;
    };
    CHECK(drops_at("7step") == 7);
    CHECK(drops_at("7") == 7);
    CHECK(drops_at("0.1run") == 10);    // 10.5
    CHECK(drops_at("0.57run") == 59);   // 59.85; 0.57 · 100 would be 56.99999 in binary
    const Schedule mixed = make_multi_step_schedule({.milestones = {"5step", "2epoch"}, .factor = 0.5});
    moment.length.steps = 100;
    CHECK(mixed(moment) == 0.25);  // at step 59
    moment.position.step = 19;
    CHECK(mixed(moment) == 0.5);
    moment.position.step = 20;     // two epochs of ten steps
    CHECK(mixed(moment) == 0.25);
}

TEST_CASE("epochs are counted with their fraction, samples as they went by", "[optim][schedule]") {
    Moment moment;
    moment.length = {4, 10, 40};
    moment.position.epoch = 1;
    moment.position.in_epoch.micro_batch = 5;
    CHECK(make_exponential_schedule({.factor = 0.5})(moment) == Approx(std::pow(0.5, 1.5)));
    CHECK(make_step_schedule({.factor = 0.5})(moment) == 0.5);
    CHECK(make_linear_schedule({.length = "2epoch"})(moment) == Approx(0.25));
    moment.position.samples = 750;
    CHECK(make_linear_schedule({.length = "1e3sample"})(moment) == Approx(0.25));
    moment.length = {4, {}, {}};  // data without a length: epochs are all that is known
    CHECK(make_linear_schedule({})(moment) == Approx(0.75));
}

TEST_CASE("a share of a run of unknown length is refused", "[optim][schedule]") {
    CHECK_THROWS_WITH(make_cosine_schedule({})(moment_at(3)), "a schedule's length of 1run needs a run of known length; give it in steps, e.g. \"1000step\"");
    CHECK(make_cosine_schedule({.length = 10})(moment_at(10)) == 0);  // no share, no need
    CHECK_THROWS_WITH(make_linear_schedule({.warmup = "10step", .length = "1e6sample"}),
                      "a schedule has lengths in sample and in step, which do not go together; give them in one unit");
    CHECK_THROWS_WITH(make_linear_schedule({.length = "30s"}), "a schedule cannot go by time: a resumed run would not find its place; give its lengths in "
                                                               "steps, epochs or samples");
    CHECK_THROWS_WITH(make_linear_schedule({.warmup = "0.1run", .length = "1e6sample"})(moment_at(0, 100)),
                      "a schedule's length of 0.1run cannot be told in samples; give all of its lengths in samples");
}

TEST_CASE("a warm-up, stable, decay schedule decays later when the run is prolonged", "[optim][schedule]") {
    const Schedule schedule = make_warmup_stable_decay_schedule({.warmup = 10, .decay = 20, .shape = WarmupStableDecayScheduleOptions::Decay::Linear});
    CHECK(schedule(moment_at(5, 100)) == 0.5);
    CHECK(schedule(moment_at(90, 100)) == 0.5);
    CHECK(schedule(moment_at(90, 200)) == 1.0);  // taken up before the decay: the longer run is as if planned so
    CHECK(schedule(moment_at(190, 200)) == 0.5);
    const Schedule continued = make_warmup_stable_decay_schedule(
        {.warmup = 10, .decay = "0.2run", .shape = WarmupStableDecayScheduleOptions::Decay::Cosine, .continued_from = 100});
    CHECK(continued(moment_at(5, 200)) == 0.5);    // what was before is as it was
    CHECK(continued(moment_at(100, 200)) == 1.0);  // no second warm-up
    CHECK(continued(moment_at(180, 200)) == 1.0);  // a fifth of the hundred updates since, not of all
    CHECK(continued(moment_at(190, 200)) == Approx(0.5));
}

TEST_CASE("phases that leave no room for each other still give a curve", "[optim][schedule]") {
    const Schedule all_warmup = make_cosine_schedule({.warmup = 200});
    CHECK(all_warmup(moment_at(1, 2)) == Approx(1.0 / 200));
    CHECK(make_cosine_schedule({.warmup = 2, .cooldown = 5})(moment_at(3, 4)) == 0);
    CHECK(make_warmup_stable_decay_schedule({.warmup = 0, .decay = 50})(moment_at(0, 10)) == 1.0);
    CHECK(make_one_cycle_schedule({})(moment_at(0, 1)) == Approx(4e-6));  // its only update is the last one
    CHECK(std::isfinite(make_one_cycle_schedule({.rise = 0})(moment_at(0, 10))));
    CHECK(make_sequence_schedule({{make_constant_schedule(2), 3}, {make_linear_schedule({})}})(moment_at(3, 3)) == 0);
}

TEST_CASE("functions of the user's own are schedules, in a sequence too", "[optim][schedule]") {
    const Schedule own = [](const Moment& moment) { return static_cast<double>(moment.position.step); };
    CHECK(own(moment_at(7)) == 7);
    const Schedule sequence = make_sequence_schedule({{make_constant_schedule(0.5), 5}, {own}});
    CHECK(sequence(moment_at(4)) == 0.5);
    CHECK(sequence(moment_at(5)) == 5);
    CHECK_FALSE(static_cast<bool>(Schedule()));
    CHECK_THROWS_WITH(make_sequence_schedule({{own}, {own}}), "sequence schedule: parts[0]: there is no length; only the last part may go without");
}

TEST_CASE("a schedule that does not fit its run is found before it", "[optim][schedule]") {
    const RunLength hundred{10, 10, 100};
    CHECK(findings(make_cosine_schedule({.warmup = 10}), hundred).empty());
    CHECK(findings(make_cosine_schedule({}), {{}, {}, {}}) ==
          std::vector<std::string>{"error: 'lr': a schedule's length of 1run needs a run of known length; give it in steps, e.g. \"1000step\""});
    CHECK(findings(make_warmup_stable_decay_schedule({.warmup = 80, .decay = 30}), hundred) ==
          std::vector<std::string>{"warning: 'lr': the schedule's warmup (80step), decay (30step) take 110 steps, and it is 100 steps long; shorten them, or train for longer"});
    CHECK(findings(make_linear_schedule({.length = 1000}), hundred) ==
          std::vector<std::string>{"warning: 'lr': the schedule goes over 1000 steps, and there are 100 steps; its end is not reached"});
    CHECK(findings(make_multi_step_schedule({.milestones = {"5epoch", "20epoch"}}), hundred) ==
          std::vector<std::string>{"warning: 'lr': the schedule goes over 20 epochs, and there are 10 epochs; its end is not reached"});
    CHECK(findings(make_step_schedule({.every = "300step"}), hundred) ==
          std::vector<std::string>{"warning: 'lr': the schedule's first step comes after 300 steps, and there are 100 steps; it is not reached"});
    CHECK(findings(make_step_schedule({.every = "5epoch"}), hundred).empty());
    CHECK(findings(make_sequence_schedule({{make_linear_schedule({.length = 50}), 30}, {make_cosine_schedule({})}}), hundred) ==
          std::vector<std::string>{"warning: 'lr': the schedule goes over 50 steps, and there are 30 steps; its end is not reached"});
    CHECK(findings(make_sequence_schedule({{make_linear_schedule({}), 30}, {make_linear_schedule({.length = 50})}}), {{}, {}, {}}).empty());
    RunPlan cut;
    cut.max_steps = 50;
    CHECK(findings(make_linear_schedule({.warmup = "1epoch"}), {10, 10, 50}, cut) ==
          std::vector<std::string>{"warning: 'lr': the schedule has lengths in epochs beside others, and max_steps ends the run within the 10 epochs by which "
                                   "they are reckoned; give all lengths in steps"});
    CHECK(findings([](const Moment&) { return 1.0; }, {{}, {}, {}}).empty());
}

TEST_CASE("schedules are read from JSON, with the path in every error", "[optim][schedule]") {
    for (const std::string& kind : schedule_table().kinds()) {
        INFO(kind);
        Moment moment = moment_at(1, 10);
        moment.length.epochs = 1;
        CHECK(std::isfinite(from({{"kind", kind}})(moment)));
    }
    CHECK_THROWS_WITH(from({{"kind", "cosin"}}), "run.json: schedule.kind: 'cosin' is not known; did you mean 'cosine'? (expected one of constant, cosine, deepspeed, "
                                                 "exponential, linear, multi_step, one_cycle, polynomial, sequence, step, warmup_stable_decay)");
    CHECK_THROWS_WITH(from({{"kind", "cosine"}, {"warmup", "1year"}}),
                      "run.json: schedule.warmup: '1year' is not an interval; give a number and a unit out of step, attempt, micro_batch, epoch, sample, token, "
                      "run, s, min, h, e.g. \"100step\" or \"0.5epoch\"");
    CHECK_THROWS_WITH(from({{"kind", "cosine"}, {"cycles", 0}}), "run.json: schedule.cycles: 0 is out of range; give a number of at least 1");
    CHECK_THROWS_WITH(from({{"kind", "multi_step"}, {"milestones", {3, true}}}),
                      "run.json: schedule.milestones[1]: true is a boolean; expected an interval, e.g. \"100step\"");
    CHECK_THROWS_WITH(from({{"kind", "one_cycle"}, {"three_phase", true}, {"rise", 0.6}}),
                      "run.json: schedule: one_cycle schedule: rise: 0.6 is out of range; give a share from 0 to 0.5: it comes down as long as it went up");
    CHECK_THROWS_WITH(from({{"kind", "warmup_stable_decay"}, {"shape", "inverse_proportional"}}),
                      "run.json: schedule: warmup_stable_decay schedule: minimum: 0 is out of range; give a positive factor, e.g. 0.01: the inverse-proportional "
                      "decay divides by it");
    CHECK_THROWS_WITH(from({{"kind", "sequence"}, {"parts", {{{"length", 3}, {"schedule", {{"kind", "step"}, {"evry", 1}}}}}}}),
                      "run.json: schedule.parts[0].schedule.evry: unknown key; did you mean 'every'? (known: kind, every, factor)");
}

TEST_CASE("the curve of a whole run is sampled without one", "[optim][schedule]") {
    SampledRun run;
    run.length = {2, 8, 4};
    CHECK(sample_schedule(make_linear_schedule({}), run) == std::vector<double>{1, 0.75, 0.5, 0.25});
    CHECK(sample_schedule(make_step_schedule({.factor = 0.5}), run) == std::vector<double>{1, 1, 0.5, 0.5});
    run.samples_per_step = 32;
    CHECK(sample_schedule(make_multi_step_schedule({.milestones = {"64sample"}, .factor = 0.5}), run) == std::vector<double>{1, 1, 0.5, 0.5});
    CHECK_THROWS_WITH(sample_schedule(make_constant_schedule(), {}),
                      "the curve of a schedule needs a run of known length; give epochs of data with a length, or max_steps");
}
