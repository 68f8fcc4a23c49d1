// mixup and cutmix, which share all but how inputs are mixed.
#include <fstream>
#include <set>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/cutmix.hpp>
#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixup.hpp>
#include <torchbus/error.hpp>

#include "support/alone_on_bus.hpp"
#include "support/catch.hpp"
#include "support/source_root.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

const Scope kTrain{Mode::Train, "train", "training"};

/// What went forward, batch by batch.
struct Seen {
    at::Tensor inputs, targets, loss, output;
    std::optional<double> mixup, cutmix;
    at::Tensor permutation;
};

std::optional<double> share_of(const Batch& batch, const char* name) {
    const at::Tensor* share = batch.extras.find(name);
    return share && share->defined() ? std::optional(share->item<double>()) : std::nullopt;
}

std::vector<Seen> train(std::vector<ComposedCallback> callbacks, std::shared_ptr<TensorDataset> data, std::uint64_t seed = 7, Mode mode = Mode::Train) {
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                     .callbacks = std::move(callbacks), .seed = seed, .handle_signals = false});
    std::vector<Seen> seen;
    auto tap = trainer.subscribe("tap");
    const auto connection = tap.observe<ForwardEnd>(Stage::Report, [&](const ForwardEnd& event) {
        const at::Tensor* permutation = event.batch.extras.find("mixup.permutation");
        seen.push_back({event.batch.inputs.clone(), event.batch.targets.clone(), event.loss.detach(), event.output.tensor.detach(),
                        share_of(event.batch, "mixup.share"), share_of(event.batch, "cutmix.share"), permutation ? *permutation : at::Tensor()});
    }, in(mode));
    trainer.train(data, data, {.batch_size = 4, .shuffle = false});
    return seen;
}

}  // namespace

TEST_CASE("the loss of a mixed batch is that of timm's soft targets", "[callbacks][mixup]") {
    const json reference = json::parse(std::ifstream(source_root() + "/test/references/averaging.json"));
    std::vector<at::Tensor> rows;
    for (const json& row : reference["logits"]) rows.push_back(torch::tensor(row.get<std::vector<double>>(), torch::kFloat));
    for (const json& expected : reference["mixed"])
        for (const std::string kind : {"mixup", "cutmix"}) {
            AloneOnBus alone(kind == "mixup" ? make_mixup({.label_smoothing = expected.at("smoothing")}) : make_cutmix({.label_smoothing = expected.at("smoothing")}));
            Batch batch;
            batch.targets = torch::tensor(reference["targets"].get<std::vector<std::int64_t>>());
            batch.extras[kind + ".permutation"] = torch::tensor(reference["permutation"].get<std::vector<std::int64_t>>());
            batch.extras[kind + ".share"] = torch::tensor(expected.at("share").get<double>(), torch::kDouble);
            Output output(torch::stack(rows));
            at::Tensor loss;
            alone.bus().emit(OutputReady{{}, kTrain, {}, batch, output, loss});
            CHECK(loss.item<double>() == Approx(expected.at("loss").get<double>()).epsilon(1e-6));
        }
}

TEST_CASE("mixup mixes inputs, keeps targets and supplies the mixed loss; the dataset stays as it is", "[callbacks][mixup]") {
    const auto data = toy_data(12);
    const at::Tensor inputs = data->inputs().clone();
    const auto seen = train({make_mixup({.alpha = 1.0})}, data);
    REQUIRE(seen.size() == 3);
    for (std::size_t i = 0; i < seen.size(); ++i) {
        const auto at = static_cast<std::int64_t>(4 * i);
        const at::Tensor own = inputs.narrow(0, at, 4), targets = data->targets().narrow(0, at, 4);
        const double share = seen[i].mixup.value();
        CHECK(torch::allclose(seen[i].inputs, own * share + own.index_select(0, seen[i].permutation) * (1 - share)));
        CHECK(seen[i].targets.equal(targets));
        const at::Tensor loss = cross_entropy(seen[i].output, targets) * share + cross_entropy(seen[i].output, targets.index_select(0, seen[i].permutation)) * (1 - share);
        CHECK(seen[i].loss.item<double>() == Approx(loss.item<double>()).epsilon(1e-6));
    }
    CHECK(seen[0].mixup != seen[1].mixup);
    CHECK(data->inputs().equal(inputs));
}

TEST_CASE("the draw follows from seed and position", "[callbacks][mixup]") {
    const auto first = train({make_mixup()}, toy_data(12)), same = train({make_mixup()}, toy_data(12)), other = train({make_mixup()}, toy_data(12), 8);
    for (std::size_t i = 0; i < first.size(); ++i) {
        CHECK(first[i].mixup == same[i].mixup);
        CHECK(first[i].mixup != other[i].mixup);
    }
    // in a window of three the batches are drawn as they would be one by one
    const auto window = train({make_gradient_accumulation({3}), make_mixup()}, toy_data(12));
    for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].mixup == window[i].mixup);
}

TEST_CASE("an evaluation is not mixed", "[callbacks][mixup]") {
    const auto data = toy_data(8);
    for (const Seen& seen : train({make_mixup()}, data, 7, Mode::Eval)) {
        CHECK_FALSE(seen.mixup.has_value());
        CHECK(seen.loss.item<double>() == Approx(cross_entropy(seen.output, seen.targets).item<double>()));
    }
}

TEST_CASE("with a probability, batches that are not mixed keep the run's loss", "[callbacks][mixup]") {
    std::size_t mixed = 0;
    const auto seen = train({make_mixup({.probability = 0.5})}, toy_data(400));
    for (const Seen& batch : seen) {
        if (batch.mixup) ++mixed;
        else CHECK(batch.loss.item<double>() == Approx(cross_entropy(batch.output, batch.targets).item<double>()));
    }
    CHECK(mixed > 30);  // of 100: 50 ± 5
    CHECK(mixed < 70);
}

TEST_CASE("shares are spread as Beta(alpha, alpha)", "[callbacks][mixup]") {
    double sum = 0, squares = 0;
    const auto seen = train({make_mixup({.alpha = 0.4})}, toy_data(2000));
    for (const Seen& batch : seen) sum += *batch.mixup, squares += *batch.mixup * *batch.mixup;
    const double mean = sum / 500, variance = squares / 500 - mean * mean;
    CHECK(mean == Approx(0.5).margin(0.06));               // 3.5 standard errors
    CHECK(variance == Approx(1 / (4 * 1.8)).margin(0.02));  // 1 / (4 (2 alpha + 1))
}

TEST_CASE("cutmix pastes a box whose area the share tells", "[callbacks][cutmix]") {
    AloneOnBus alone(make_cutmix());
    std::set<double> shares;
    for (std::int64_t number = 0; number < 40; ++number) {
        Batch batch;
        // Each sample is of its own number throughout, so that what was pasted can be counted.
        batch.inputs = torch::arange(4, torch::kFloat).view({4, 1, 1, 1}).expand({4, 2, 10, 12});
        batch.targets = torch::arange(4);
        Position position;
        position.micro_batch = number;
        alone.bus().emit(BatchReady{position, kTrain, {}, batch});
        const double share = *share_of(batch, "cutmix.share");
        const at::Tensor& permutation = *batch.extras.find("cutmix.permutation");
        shares.insert(share);
        for (std::int64_t i = 0; i < 4; ++i) {
            const std::int64_t other = permutation[i].item<std::int64_t>();
            const at::Tensor own = batch.inputs[i].eq(i), pasted = batch.inputs[i].eq(other);
            CHECK((own | pasted).all().item<bool>());
            if (other != i) CHECK(pasted.to(torch::kDouble).mean().item<double>() == Approx(1 - share).margin(1e-6));
        }
    }
    CHECK(shares.size() > 20);
}

TEST_CASE("mixup and cutmix conflict unless ordered, and ordered they take turns", "[callbacks][mixup][cutmix]") {
    CHECK_THROWS_WITH(train({make_mixup(), make_cutmix()}, toy_data(8)), containing("'mixup' and 'cutmix' both write batch"));
    const auto seen = train({make_metrics({.accuracy = true}), make_mixup({.probability = 0.5}), ComposedCallback("cutmix", make_cutmix(), {}, {"mixup"})}, toy_data(200));
    std::size_t mixed = 0;
    for (const Seen& batch : seen) {
        CHECK(batch.mixup.has_value() != batch.cutmix.has_value());
        mixed += batch.mixup.has_value();
    }
    CHECK(mixed > 10);
    CHECK(mixed < 40);
}

TEST_CASE("mixup refuses what it cannot mix", "[callbacks][mixup]") {
    CHECK_THROWS_WITH(make_mixup({.alpha = 0}), "mixup: alpha: 0 is out of range; give a positive number, e.g. 0.8");
    CHECK_THROWS_WITH(make_cutmix({.probability = 2}), "cutmix: probability: 2 is out of range; give a number between 0 and 1");
    AloneOnBus alone(make_mixup());
    Batch batch;
    batch.inputs = torch::ones({4, 2}, torch::kLong);
    CHECK_THROWS_WITH(alone.bus().emit(BatchReady{{}, kTrain, {}, batch}), containing("mixup: inputs of type Long cannot be mixed"));
}
