// Wrong compositions: each is caught before anything runs, with both sides and the fix named.
#include <torchbus/arrangement.hpp>

#include "support/catch.hpp"

using namespace torchbus;

namespace {

using Texts = std::vector<std::string>;

Texts errors(const std::vector<Finding>& findings) {
    Texts texts;
    for (const Finding& finding : findings)
        if (finding.weight == Finding::Weight::Error) texts.push_back(finding.text);
    return texts;
}

Texts order(const std::vector<Member>& members) {
    Texts ids;
    const Arrangement arrangement = arrange(members);
    CHECK(errors(arrangement.findings).empty());
    for (const std::size_t index : arrangement.order) ids.push_back(members[index].id);
    return ids;
}

Member member(std::string id, Declaration declared = {}, Texts before = {}, Texts after = {}) {
    return {id, id, std::move(declared), std::move(before), std::move(after)};
}

RunPlan plan(bool evaluates = true) {
    RunPlan plan;
    plan.epochs = 3;
    plan.splits.push_back({"train", Mode::Train, 10, {}});
    if (evaluates) plan.splits.push_back({"eval", Mode::Eval, 2, {}});
    return plan;
}

const Declaration kMetrics{.publishes = {{"train.loss", "train_epoch_end"}, {"eval.loss", "eval_epoch_end"}}};

}  // namespace

TEST_CASE("the order of the list holds where nothing speaks against it", "[arrangement]") {
    CHECK(order({member("c"), member("a"), member("b")}) == Texts{"c", "a", "b"});
}

TEST_CASE("declared before and after move members, and only as far as they must", "[arrangement]") {
    CHECK(order({member("a", {.after = {"c"}}), member("b"), member("c")}) == Texts{"b", "c", "a"});
    CHECK(order({member("a"), member("b"), member("c", {.before = {"a"}})}) == Texts{"b", "c", "a"});
    CHECK(order({member("a", {.after = {"not there"}}), member("b")}) == Texts{"a", "b"});
}

TEST_CASE("who publishes a number goes before who needs it at the same event and stage", "[arrangement]") {
    const Declaration provider{.publishes = {{"x", "train_step_end", Stage::Report}}}, reader{.needs = {{"x", "train_step_end", Stage::Report}}};
    CHECK(order({member("reader", reader), member("provider", provider)}) == Texts{"provider", "reader"});
    const Arrangement arrangement = arrange({member("reader", reader), member("provider", provider)});
    REQUIRE(arrangement.precedences.size() == 1);
    CHECK(arrangement.precedences[0].why == "provider publishes x, reader needs it");
}

TEST_CASE("who moves batches goes before all who change them", "[arrangement]") {
    CHECK(order({member("mixup", {.writes = {"batch"}}), member("device_placement", {.writes = {"model", "batch.device"}})}) == Texts{"device_placement", "mixup"});
}

TEST_CASE("who writes a resource goes before who reads it at the same event", "[arrangement]") {
    const Member smoothing = member("label_smoothing", {.listens = {"output_ready"}, .reads = {"output"}, .writes = {"loss"}});
    const Member rescaling = member("rescaling", {.listens = {"output_ready"}, .writes = {"output"}});
    CHECK(order({smoothing, rescaling}) == Texts{"rescaling", "label_smoothing"});
    CHECK(arrange({smoothing, rescaling}).precedences[0].why == "rescaling writes output, label_smoothing reads it");
    CHECK(order({member("late", {.listens = {"forward_end"}, .reads = {"output"}}), rescaling}) == Texts{"late", "rescaling"});  // they never meet
    CHECK(order({member("rate", {.listens = {"train_step_start"}, .reads = {"learning_rate"}}), member("schedule", {.listens = {"train_step_start"}, .writes = {"learning_rate:critic"}})}) ==
          Texts{"schedule", "rate"});
}

TEST_CASE("an order of the user's that makes a number stale is refused", "[arrangement]") {
    const Declaration gives{.publishes = {{"x", "eval_epoch_end"}}}, takes{.needs = {{"x", "eval_epoch_end"}}};
    CHECK(errors(check_values({member("a", gives), member("b", takes)}, plan())).empty());
    CHECK(errors(check_values({member("b", takes), member("a", gives)}, plan())) ==
          Texts{"'b' runs before 'a', which publishes x that 'b' needs at eval_epoch_end; take that order out of the composition, or turn it around"});
}

TEST_CASE("the user's order overrides the library's", "[arrangement]") {
    const Declaration first{.before = {"b"}};
    CHECK(order({member("a", first), member("b")}) == Texts{"a", "b"});
    CHECK(order({member("a", first, {}, {"b"}), member("b")}) == Texts{"b", "a"});
    CHECK(order({member("a", first), member("b", {}, {"a"})}) == Texts{"b", "a"});
}

TEST_CASE("two clippers without an order are a conflict; ordered they are not", "[arrangement]") {
    const Declaration clips{.writes = {"gradients.change"}};
    CHECK(errors(arrange({member("norm", clips), member("value", clips)}).findings) ==
          Texts{"'norm' and 'value' both write gradients.change (GradientsReady, phase change: clips), and neither says who goes first; leave one out, "
                "or give 'value' \"after\": [\"norm\"] in the composition"});
    CHECK(order({member("norm", clips), member("value", clips, {}, {"norm"})}) == Texts{"norm", "value"});
    CHECK(order({member("norm", clips), member("value", clips, {"norm"})}) == Texts{"value", "norm"});
}

TEST_CASE("two schedules of one update are a conflict; of two updates they are not", "[arrangement]") {
    const auto schedule = [](const std::string& scope) { return Declaration{.writes = {"learning_rate" + scope}}; };
    CHECK(errors(arrange({member("a", schedule("")), member("b", schedule(":generator"))}).findings).size() == 1);
    CHECK(errors(arrange({member("a", schedule(":critic")), member("b", schedule(":generator"))}).findings).empty());
}

TEST_CASE("limits of batches go together, two sizes of a window do not", "[arrangement]") {
    CHECK(errors(arrange({member("a", {.writes = {"plan.limits"}}), member("b", {.writes = {"plan.limits"}})}).findings).empty());
    CHECK(errors(arrange({member("a", {.writes = {"plan.window"}}), member("b", {.writes = {"plan.window"}})}).findings).size() == 1);
}

TEST_CASE("clipping what somebody scales and nobody unscales is refused", "[arrangement]") {
    const Member clip = member("clip", {.reads = {"gradients"}, .writes = {"gradients.change"}});
    CHECK(errors(arrange({member("scaler", {.writes = {"root"}}), clip}).findings) ==
          Texts{"'clip' works on gradients that 'scaler' has scaled (it writes root), and nobody unscales them (writes gradients.finalize); unscale them there"});
    CHECK(errors(arrange({member("scaler", {.writes = {"root", "gradients.finalize"}}), clip}).findings).empty());
}

TEST_CASE("two leases of one weights view are refused, and so is one of the trained weights", "[arrangement]") {
    CHECK(errors(arrange({member("slow", {.views = {"ema"}}), member("fast", {.views = {"ema"}})}).findings) ==
          Texts{"'slow' and 'fast' both hold the weights view 'ema'; give one of them a view of another name"});
    CHECK(errors(arrange({member("ema", {.views = {"training"}})}).findings) ==
          Texts{"'ema' wants the view 'training', which is the trained weights' own; give it another name"});
}

TEST_CASE("two that save into one folder are refused", "[arrangement]") {
    CHECK(errors(arrange({member("one", {.folders = {"/runs/a"}}), member("other", {.folders = {"/runs/b", "/runs/a"}})}).findings) ==
          Texts{"'one' and 'other' both save into '/runs/a', and would delete each other's; give one of them another folder"});
}

TEST_CASE("a circle is told with all its members and reasons", "[arrangement]") {
    CHECK(errors(arrange({member("a", {.before = {"b"}}), member("b", {.before = {"c"}}), member("c", {.before = {"a"}})}).findings) ==
          Texts{"the order goes in a circle: 'c' before 'a' (c before a), 'a' before 'b' (a before b), 'b' before 'c' (b before c); take one of these out, "
                "or say \"before\" or \"after\" in the composition"});
    CHECK(errors(arrange({member("a", {}, {"b"}), member("b", {}, {"a"})}).findings).size() == 1);
    const Declaration gives_x{.publishes = {{"x", "train_step_end"}}, .needs = {{"y", "train_step_end"}}}, gives_y{.publishes = {{"y", "train_step_end"}}, .needs = {{"x", "train_step_end"}}};
    CHECK(errors(arrange({member("a", gives_x), member("b", gives_y)}).findings).size() == 1);
}

TEST_CASE("a user's order that names nobody is refused, with a suggestion", "[arrangement]") {
    CHECK(errors(arrange({member("metrics"), member("saver", {}, {}, {"metric"})}).findings) ==
          Texts{"'saver' is to run after 'metric', which is not in the composition; did you mean 'metrics'?"});
}

TEST_CASE("two of one id, and two publishers of one number, are refused", "[arrangement]") {
    CHECK(errors(arrange({member("a"), member("a")}).findings) == Texts{"two subscribers have the id 'a'; give one of them an id of its own"});
    CHECK(errors(arrange({member("a", {.publishes = {"x"}}), member("b", {.publishes = {"x"}})}).findings) ==
          Texts{"'a' and 'b' both publish x; give one of them another name, or leave one out"});
}

TEST_CASE("who makes no sense in the same run is refused, both named", "[arrangement]") {
    CHECK(errors(arrange({member("finder", {.excludes = {{"saver", "what one does, the other would save"}}}), member("saver")}).findings) ==
          Texts{"'finder' and 'saver' cannot be in one run: what one does, the other would save; leave 'saver' out of the run with 'finder'"});
}

TEST_CASE("an unknown resource is refused, with a suggestion", "[arrangement]") {
    CHECK(errors(arrange({member("a", {.writes = {"gradient.change"}})}).findings) ==
          Texts{"'a' declares 'gradient.change', which is no resource; did you mean 'gradients.change'?"});
}

TEST_CASE("work on a thread that needs tensors, or ranks, is refused", "[arrangement]") {
    CHECK(errors(arrange({member("a", {.reads = {"gradients"}, .on_thread = true})}).findings) ==
          Texts{"'a' works on a thread of its own and uses gradients, which changes meanwhile; let it work inline, or take a copy and leave gradients out of its declaration"});
    CHECK(errors(arrange({member("a", {.reads = {"blackboard"}, .on_thread = true})}).findings).empty());
    CHECK(errors(arrange({member("a", {.collectives = true, .on_thread = true})}).findings) ==
          Texts{"'a' performs collectives on a thread of its own; ranks would meet in different orders: let it work inline"});
    CHECK(errors(arrange({member("a", {.subscriber = {.fault = Fault::Optional}, .collectives = true})}).findings) ==
          Texts{"'a' performs collectives and is optional; detached on one rank it would leave the others waiting: make it critical"});
}

TEST_CASE("a number that nobody publishes is refused, with a suggestion", "[arrangement]") {
    const Member saver = member("save_best", {.needs = {{"eval.los", "epoch_checkpoint", Stage::Persist}}});
    CHECK(errors(check_values({member("metrics", kMetrics), saver}, plan())) ==
          Texts{"'save_best' needs eval.los, which nobody publishes; did you mean 'eval.loss'? (there are train.loss, eval.loss); add who does, or name another"});
    CHECK(errors(check_values({saver}, plan())) == Texts{"'save_best' needs eval.los, which nobody publishes (nobody publishes anything); add who does, or name another"});
}

TEST_CASE("a number is in time where it is published before it is read", "[arrangement]") {
    CHECK(errors(check_values({member("metrics", kMetrics), member("save_best", {.needs = {{"eval.loss", "epoch_checkpoint"}}})}, plan())).empty());
    CHECK(errors(check_values({member("metrics", kMetrics), member("early", {.needs = {{"eval.loss", "train_epoch_end"}}})}, plan())) ==
          Texts{"'early' needs eval.loss at train_epoch_end, and 'metrics' publishes it only later, at eval_epoch_end; read it later"});
    CHECK(errors(check_values({member("metrics", kMetrics), member("early", {.needs = {{"eval.loss", "eval_epoch_end", Stage::Observe}}})}, plan())).empty());
}

TEST_CASE("a number of the same event but a later stage comes too late", "[arrangement]") {
    const Member late = member("late", {.publishes = {{"x", "train_epoch_end", Stage::Report}}});
    CHECK(errors(check_values({late, member("saver", {.needs = {{"x", "train_epoch_end", Stage::Observe}}})}, plan())) ==
          Texts{"'saver' needs x at train_epoch_end in stage observe, and 'late' publishes it only later, at train_epoch_end in stage report; read it later"});
}

TEST_CASE("a saver of steps cannot watch a number of epochs", "[arrangement]") {
    const Member saver = member("saver", {.needs = {{"eval.loss", "step_checkpoint"}}});
    CHECK(errors(check_values({member("metrics", kMetrics), saver}, plan())) ==
          Texts{"'saver' needs eval.loss at step_checkpoint, every step, and 'metrics' publishes it at eval_epoch_end, once an epoch; read it less often, "
                "or let it watch a number of every step"});
    // With an evaluation between steps it can.
    CHECK(errors(check_values({member("metrics", kMetrics), member("step_evaluation", {.asks = {Decision::EvaluateNow}}), saver}, plan())).empty());
}

TEST_CASE("evaluations and their numbers need evaluation data", "[arrangement]") {
    CHECK(errors(check_values({member("step_evaluation", {.asks = {Decision::EvaluateNow}})}, plan(false))) ==
          Texts{"'step_evaluation' asks for evaluations, and the run has no evaluation data; give some, or leave 'step_evaluation' out"});
    CHECK(errors(check_values({member("metrics", kMetrics), member("stop", {.needs = {"eval.loss"}})}, plan(false))) ==
          Texts{"'stop' needs eval.loss, and the run has no evaluation data; give some, or let it watch a training metric"});
}

TEST_CASE("names of splits and views are known, others are not", "[arrangement]") {
    RunPlan two = plan();
    two.splits.push_back({"noisy", Mode::Eval, 2, {}});
    const std::vector<Member> members = {member("metrics", kMetrics), member("ema", {.views = {"ema"}}), member("saver", {.needs = {"eval.noisy.ema.loss"}})};
    CHECK(errors(check_values(members, two)).empty());
    CHECK(errors(check_values(members, plan())).size() == 1);  // no split called noisy
}

TEST_CASE("a view that is evaluated must be held by somebody", "[arrangement]") {
    RunPlan shown = plan();
    shown.views = {"training", "ema"};
    CHECK(errors(check_values({}, shown)) == Texts{"the plan evaluates the weights view 'ema', which nobody holds; add who does, e.g. model_ema, or take the view out"});
    CHECK(errors(check_values({member("averager", {.views = {"ema"}})}, shown)).empty());
}

TEST_CASE("several errors are told together", "[arrangement]") {
    CHECK(errors_of({{Finding::Weight::Error, "one"}, {Finding::Weight::Warning, "two"}}) == "one");
    CHECK(errors_of({{Finding::Weight::Error, "one"}, {Finding::Weight::Error, "two"}}) == "2 things stand against this composition:\n  - one\n  - two");
}
