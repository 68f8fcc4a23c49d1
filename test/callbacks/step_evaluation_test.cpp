#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/step_evaluation.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

/// The steps after which a run evaluates. Ten steps an epoch.
std::vector<std::int64_t> evaluated_at(StepEvaluationOptions options, TrainOptions run, std::vector<std::int64_t> skipped_attempts = {}) {
    auto model = toy_model();
    std::vector<std::int64_t> steps;
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                     .callbacks = {make_metrics(), make_step_evaluation(options), callback_of("tap", [&](Attachment& attached, Connections& connections) {
                         connections += attached.bus.observe<EvalEpochEnd>(Stage::Report, [&](const EvalEpochEnd& event) { steps.push_back(event.position.step); });
                         connections += attached.bus.intercept(Phase::Decide, [&](GradientsReady& event) {
                             if (std::ranges::count(skipped_attempts, event.position.attempts)) event.skip("tap", "a test");
                         });
                     })}, .handle_signals = false});
    run.batch_size = 2;
    trainer.train(toy_data(20), toy_data(4), run);
    return steps;
}

using Steps = std::vector<std::int64_t>;

}  // namespace

TEST_CASE("evaluations follow every n-th step, and the epoch's own is not made twice", "[callbacks][step_evaluation]") {
    CHECK(evaluated_at({"3step"}, {}) == Steps{3, 6, 9, 10});
    CHECK(evaluated_at({"5step"}, {.epochs = 2}) == Steps{5, 10, 15, 20});  // 10 and 20 are the epochs' ends
    CHECK(evaluated_at({"0.5epoch"}, {}) == Steps{5, 10});
    CHECK(evaluated_at({"4step"}, {.max_steps = 4}) == Steps{4});
    CHECK(evaluated_at({"12sample"}, {}) == Steps{6, 10});
}

TEST_CASE("a skipped update does not count for an interval in steps", "[callbacks][step_evaluation]") {
    CHECK(evaluated_at({"3step"}, {}, {1, 2}) == Steps{3, 6, 8});      // ten attempts, eight steps; 3 steps are made after 5 attempts
    CHECK(evaluated_at({"3attempt"}, {}, {1, 2}) == Steps{1, 4, 7, 8});  // after attempts 3, 6 and 9
}

TEST_CASE("step evaluation needs evaluation data and a positive interval", "[callbacks][step_evaluation]") {
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}), .callbacks = {make_step_evaluation()}, .handle_signals = false});
    CHECK_THROWS_WITH(trainer.train(toy_data(8)), "'step_evaluation' asks for evaluations, and the run has no evaluation data; give some, or leave 'step_evaluation' out");
    CHECK_THROWS_WITH(make_step_evaluation({0}), "step_evaluation: every: 0 is not positive; give an interval, e.g. \"1000step\"");
}
