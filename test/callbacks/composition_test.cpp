// What the library's callbacks say when a composition is checked, and which of their numbers change in a run.
#include <torchbus/arrangement.hpp>
#include <torchbus/callbacks/classification_metrics.hpp>
#include <torchbus/callbacks/cutmix.hpp>
#include <torchbus/callbacks/fingerprint.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/label_smoothing.hpp>
#include <torchbus/callbacks/learning_rate_finder.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixup.hpp>
#include <torchbus/callbacks/model_ema.hpp>
#include <torchbus/callbacks/nan_policy.hpp>
#include <torchbus/callbacks/save_best.hpp>
#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/callbacks/sharpness_aware.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/catch.hpp"
#include "support/composed.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;

TEST_CASE("check() tries the first batch, and tells where model, loss or metrics do not take it", "[trainer][composition]") {
    const auto errors = [](std::vector<ComposedCallback> callbacks, const AnyDataset& data, Loss loss = cross_entropy) {
        auto model = toy_model();
        model->push_back(torch::nn::Dropout(0.5));
        Trainer trainer({.model = model, .loss = std::move(loss), .optimizer = make_sgd(model->parameters(), {}), .callbacks = std::move(callbacks), .handle_signals = false});
        torch::manual_seed(7);
        const std::string found = errors_of(trainer.check(data, {}, {.batch_size = 4}).findings);
        const at::Tensor next = torch::rand({3});
        torch::manual_seed(7);
        CHECK(next.equal(torch::rand({3})));  // nothing was drawn
        return found;
    };
    CHECK(errors({make_metrics({.accuracy = true}), make_classification_metrics()}, toy_data(8)) == "");
    const auto wide = std::make_shared<TensorDataset>(torch::rand({8, 7}), torch::zeros({8}, torch::kLong));
    CHECK_THAT(errors({make_metrics()}, wide), Catch::Matchers::StartsWith("model and loss do not take the data's first batch: ") && containing("4x7 and 6x8"));
    const auto labels = std::make_shared<TensorDataset>(torch::rand({8, 6}), torch::full({8}, 3, torch::kLong));
    CHECK_THAT(errors({}, labels), containing("model and loss do not take the data's first batch: ") && containing("label"));
    CHECK_THAT(errors({}, toy_data(8), [](const at::Tensor& output, const at::Tensor&) { return output; }), containing("the loss has shape [4, 3], expected a scalar"));
    CHECK_THAT(errors({make_classification_metrics({.metrics = {"top_k_accuracy"}, .top_k = 5})}, toy_data(8)), containing("'classification_metrics' cannot measure what the model makes of the data's first batch: "));
    // Where somebody changes it on its way, it is not known what reaches the model.
    CHECK(errors({declaring("cuts", {.writes = {"batch"}}, [](Attachment& run, Connections& connections) {
              connections += run.bus.intercept<BatchReady>([](BatchReady& event) { event.batch.inputs = event.batch.inputs.narrow(1, 0, 6); });
          })}, wide) == "");
}

TEST_CASE("check() finds what a callback could not write", "[trainer][composition]") {
    const auto errors = [](ComposedCallback callback) {
        Toy toy({make_metrics(), std::move(callback)});
        return errors_of(toy.trainer->check(toy_data(16), toy_data(8), {.batch_size = 4}).findings);
    };
    const TemporaryFolder folder("unwritable");
    CHECK_THAT(errors(make_save_training_state({.folder = "/proc/states"})), Catch::Matchers::StartsWith("'save_training_state' cannot write to '/proc/states': ") && Catch::Matchers::EndsWith("; give another `folder`"));
    CHECK_THAT(errors(make_save_best({.monitor = "eval.loss", .folder = "/proc/best"})), Catch::Matchers::StartsWith("'save_best' cannot write to '/proc/best': "));
    CHECK_THAT(errors(make_fingerprint({.path = folder / "missing" / "prints.jsonl"})), containing("'fingerprint' cannot write to '") && containing("No such file or directory; give another `path`"));
    CHECK_THAT(errors(make_nan_policy({.record = "/proc/faults.jsonl"})), Catch::Matchers::StartsWith("'nan_policy' cannot write to '/proc/faults.jsonl': "));
    CHECK_THAT(errors(make_learning_rate_finder({.steps = 4, .plot = "/proc/plot.svg"})), Catch::Matchers::StartsWith("'learning_rate_finder' cannot write to '/proc/plot.svg': "));
    CHECK(errors(make_save_training_state({.folder = folder / "deep" / "states"})) == "");
    CHECK_FALSE(std::filesystem::exists(folder / "deep"));  // nothing is left behind
}

TEST_CASE("numbers of callbacks change while a run is under way, within their range", "[trainer][composition]") {
    struct Case {
        ComposedCallback callback;
        const char* option;
        double good, bad;
    };
    std::vector<Case> cases = {{make_label_smoothing({.smoothing = 0.1}), "smoothing", 0.2, 1}, {make_mixup({}), "alpha", 0.5, 0}, {make_cutmix({}), "probability", 0.25, 2},
                               {make_model_ema({.decay = 0.5}), "decay", 0.75, 1}, {make_sharpness_aware(), "rho", 0.25, 0}, {make_nan_policy(), "spike_factor", 4, 1},
                               {make_gradient_clipping({}), "ratio", 0.5, -1}};
    for (Case& one : cases) {
        const std::string id = one.callback.id;
        INFO(id);
        std::vector<std::string> told;
        Toy toy({one.callback, declaring("tap", {}, [&](Attachment& run, Connections& connections) {
            connections += run.bus.observe<OptionChanged>(Stage::Observe, [&](const OptionChanged& event) { told.push_back(event.to); });
        })});
        toy.start();
        toy.trainer->advance();
        auto changed = toy.trainer->change_option(id, one.option, one.good, "operator");
        auto refused = toy.trainer->change_option(id, one.option, one.bad, "operator");
        auto unknown = toy.trainer->change_option(id, "colour", 1, "operator");
        toy.finish();
        changed.get();
        CHECK_THROWS_WITH(refused.get(), containing(std::string(one.option) + ": "));
        CHECK_THROWS_WITH(unknown.get(), containing("colour"));
        CHECK(told.size() == 1);
    }
}
