// Several averages side by side, and savers that keep each of them.
#include <fstream>
#include <iterator>

#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/model_ema.hpp>
#include <torchbus/callbacks/save_best.hpp>
#include <torchbus/callbacks/stochastic_weight_averaging.hpp>
#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/checkpoint/weights.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

constexpr double kDecay = 0.8;

/// The averages by hand, after every update.
struct Averages {
    std::vector<std::vector<at::Tensor>> weights;
    std::vector<at::Tensor> ema() const {
        std::vector<at::Tensor> average = copies_of(weights.front());
        for (std::size_t step = 1; step < weights.size(); ++step)
            for (std::size_t i = 0; i < average.size(); ++i) average[i].lerp_(weights[step][i], 1 - kDecay);
        return average;
    }
    std::vector<at::Tensor> swa() const {
        std::vector<at::Tensor> average = copies_of(weights.front());
        for (std::size_t step = 1; step < weights.size(); ++step)
            for (std::size_t i = 0; i < average.size(); ++i) average[i] += (weights[step][i] - average[i]) / static_cast<double>(step + 1);
        return average;
    }
};

ComposedCallback saver_of(const std::string& monitor, const std::filesystem::path& folder) {
    return ComposedCallback("save " + monitor, make_save_best({.monitor = monitor, .keep = 100, .folder = folder}));
}

/// What a saver has written of the last update, with its view.
std::pair<std::vector<at::Tensor>, std::string> saved_last(const std::filesystem::path& folder, const std::string& monitor, std::int64_t step) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string();
        if (!name.starts_with(monitor + "_") || !name.ends_with("_step_" + std::to_string(step) + ".safetensors")) continue;
        Model model(toy_model(99));
        load_weights(entry.path(), model);
        std::vector<at::Tensor> weights;
        for (const auto& [parameter, tensor] : model->named_parameters()) weights.push_back(tensor.detach());
        std::ifstream file(entry.path(), std::ios::binary);
        const std::string bytes{std::istreambuf_iterator<char>(file), {}};
        const auto view = bytes.find("\"view\":\"");
        return {weights, view == std::string::npos ? "no view" : bytes.substr(view + 8, bytes.find('"', view + 8) - view - 8)};
    }
    return {{}, "no file"};
}

}  // namespace

TEST_CASE("EMA and SWA side by side: each saver keeps its own view, and the trained weights are the same bits as without them", "[callbacks][views]") {
    const TemporaryFolder folder("views");
    Averages averages;
    const auto train = [&](std::vector<ComposedCallback> callbacks) {
        auto model = toy_model();
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.5}),
                         .callbacks = std::move(callbacks), .handle_signals = false});
        trainer.train(toy_data(12), toy_data(8, 3), {.epochs = 3, .batch_size = 4, .shuffle = false});
        return copies_of(model->parameters());
    };
    const auto alone = train({make_metrics()});
    const auto beside = train({make_metrics(), make_model_ema({.decay = kDecay}),
                               make_stochastic_weight_averaging({.start = Interval(0, Interval::Unit::Step), .every = Interval(1, Interval::Unit::Step)}),
                               saver_of("eval.loss", folder.path()), saver_of("eval.ema.loss", folder.path()), saver_of("eval.swa.loss", folder.path()),
                               callback_of("tap", [&](Attachment& run, Connections& connections) {
                                   connections += run.bus.observe<OptimizerStepEnd>(Stage::Persist, [&](const OptimizerStepEnd& event) { averages.weights.push_back(copies_of(event.update.parameters())); });
                               })});
    CHECK(equal_bits(alone, beside));
    REQUIRE(averages.weights.size() == 9);
    const auto [trained, trained_view] = saved_last(folder.path(), "eval.loss", 9);
    CHECK(trained_view == "training");
    CHECK(equal_bits(trained, beside));
    const auto [ema, ema_view] = saved_last(folder.path(), "eval.ema.loss", 9);
    CHECK(ema_view == "ema");
    CHECK(relative_difference(ema, averages.ema()) < 1e-6);
    const auto [swa, swa_view] = saved_last(folder.path(), "eval.swa.loss", 9);
    CHECK(swa_view == "swa");
    CHECK(relative_difference(swa, averages.swa()) < 1e-6);
}
