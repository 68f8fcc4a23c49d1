#include <set>

#include <torch/torch.h>

#include <torchbus/data/dataset.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"

using namespace torchbus;

namespace {

using Indices = std::vector<std::int64_t>;

/// Sample i is a sequence of i + 1 times the number i, and tells its seed.
struct SequenceDataset final : ItemDataset {
    using ItemDataset::ItemDataset;
    std::int64_t size() const override { return 5; }
    Item get(std::int64_t index, std::uint64_t seed) const override {
        Item item{torch::full({index + 1}, static_cast<float>(index)), torch::tensor(index)};
        item.extras["seed"] = torch::tensor(static_cast<std::int64_t>(seed));
        return item;
    }
};

Item item_of(at::Tensor input, at::Tensor target = {}, std::int64_t tokens = 0) { return {std::move(input), std::move(target), {}, tokens}; }

}  // namespace

TEST_CASE("a tensor dataset gathers whole batches in the order asked for", "[data][dataset]") {
    TensorDataset dataset(torch::arange(12).reshape({4, 3}), torch::tensor({10, 11, 12, 13}));
    dataset.add("mask", torch::tensor({true, false, true, false}));
    CHECK(dataset.size() == 4);
    CHECK_FALSE(dataset.prefers_threads());
    const Indices indices = {3, 0, 3};
    const Batch batch = dataset.gather(indices, {});
    CHECK(batch.inputs.equal(torch::tensor({{9, 10, 11}, {0, 1, 2}, {9, 10, 11}})));
    CHECK(batch.targets.equal(torch::tensor({13, 10, 13})));
    CHECK(batch.extras.find("mask")->equal(torch::tensor({false, true, false})));
    CHECK(batch.indices == indices);
    CHECK(batch.samples == 3);
    CHECK(batch.valid == 3);
    CHECK(batch.tokens == 0);
    CHECK(batch.weight == 3.0);
}

TEST_CASE("a tensor dataset may go without targets", "[data][dataset]") {
    const TensorDataset dataset(torch::arange(3));
    const Batch batch = dataset.gather(Indices{2}, {});
    CHECK(batch.inputs.equal(torch::tensor({2})));
    CHECK_FALSE(batch.targets.defined());
    CHECK(batch.extras.empty());
}

TEST_CASE("changing a batch leaves the tensor dataset as it was", "[data][dataset]") {
    const TensorDataset dataset(torch::zeros({3, 2}));
    dataset.gather(Indices{0, 1}, {}).inputs.fill_(7);
    CHECK(dataset.inputs().equal(torch::zeros({3, 2})));
}

TEST_CASE("tensors that do not count the same samples are refused", "[data][dataset]") {
    CHECK_THROWS_WITH(TensorDataset(torch::zeros({3, 2}), torch::zeros(2)), "3 inputs, but 2 targets; a tensor dataset needs one target for each input");
    CHECK_THROWS_WITH(TensorDataset(torch::zeros({3, 2}), torch::tensor(1)), "3 inputs, but 0 targets; a tensor dataset needs one target for each input");
    CHECK_THROWS_WITH(TensorDataset(torch::tensor(1)), "a tensor dataset needs inputs of shape [N, …]; got a scalar or nothing");
    CHECK_THROWS_WITH(TensorDataset(at::Tensor()), "a tensor dataset needs inputs of shape [N, …]; got a scalar or nothing");
    CHECK_THROWS_WITH(TensorDataset(torch::zeros(3)).add("mask", torch::zeros(4)), "tensor 'mask' has 4 samples, expected 3");
    CHECK_THROWS_AS(TensorDataset(torch::zeros({3, 2}), torch::zeros(2)), DataError);
}

TEST_CASE("a sample's seed derives from run seed, epoch and index, the same on every platform", "[data][dataset]") {
    // By SplitMix64, written once more in Python.
    CHECK(SampleSeed{1, 0}.of(0) == 12793040940332582595U);
    CHECK(SampleSeed{1, 0}.of(1) == 7806873273932414515U);
    CHECK(SampleSeed{1, 1}.of(0) == 6301985355436268297U);
    CHECK(SampleSeed{0, 0}.of(0) == 2558736989570252433U);
    std::set<std::uint64_t> seeds;
    for (std::uint64_t seed = 0; seed < 10; ++seed)
        for (std::int64_t epoch = 0; epoch < 10; ++epoch)
            for (std::int64_t index = -10; index < 90; ++index) seeds.insert(SampleSeed{seed, epoch}.of(index));
    CHECK(seeds.size() == 10'000);
}

TEST_CASE("an item dataset hands each sample its own seed", "[data][dataset]") {
    const SequenceDataset dataset(collate_padded());
    CHECK(dataset.prefers_threads());
    const SampleSeed seed{7, 3};
    const Batch batch = dataset.gather(Indices{4, 1}, seed);
    CHECK(batch.indices == Indices{4, 1});
    CHECK(batch.extras.find("seed")->equal(torch::tensor({static_cast<std::int64_t>(seed.of(4)), static_cast<std::int64_t>(seed.of(1))})));
}

TEST_CASE("items of equal shape are stacked, with their extras", "[data][collate]") {
    std::vector<Item> items = {item_of(torch::tensor({1, 2}), torch::tensor(0)), item_of(torch::tensor({3, 4}), torch::tensor(1))};
    items[0].extras["weight"] = torch::tensor(0.5);
    items[1].extras["weight"] = torch::tensor(1.5);
    const Batch batch = collate_stack(std::move(items));
    CHECK(batch.inputs.equal(torch::tensor({{1, 2}, {3, 4}})));
    CHECK(batch.targets.equal(torch::tensor({0, 1})));
    CHECK(batch.extras.find("weight")->equal(torch::tensor({0.5, 1.5})));
    CHECK(batch.samples == 2);
    CHECK(batch.valid == 2);
    CHECK(batch.weight == 2.0);
}

TEST_CASE("stacked items weigh their tokens where they declare them", "[data][collate]") {
    const Batch batch = collate_stack({item_of(torch::zeros(2), {}, 5), item_of(torch::zeros(2), {}, 2)});
    CHECK_FALSE(batch.targets.defined());
    CHECK(batch.tokens == 7);
    CHECK(batch.weight == 7.0);
    CHECK(batch.samples == 2);
}

TEST_CASE("padding reaches to the longest of the batch, and lengths are told", "[data][collate]") {
    const Batch batch = collate_padded(-1.0)({item_of(torch::tensor({1.0, 2.0}), torch::tensor(4)), item_of(torch::tensor({3.0, 4.0, 5.0}), torch::tensor(6)),
                                              item_of(torch::tensor({7.0}), torch::tensor(8))});
    CHECK(batch.inputs.equal(torch::tensor({{1.0, 2.0, -1.0}, {3.0, 4.0, 5.0}, {7.0, -1.0, -1.0}})));
    CHECK(batch.extras.find("length")->equal(torch::tensor({2, 3, 1}, torch::kInt64)));
    CHECK(batch.targets.equal(torch::tensor({4, 6, 8})));
    CHECK(batch.samples == 3);
    CHECK(batch.tokens == 6);
    CHECK(batch.weight == 6.0);
}

TEST_CASE("targets that are sequences are padded with a value of their own", "[data][collate]") {
    const Batch batch = collate_padded()({item_of(torch::tensor({1, 2}), torch::tensor({2, 3})), item_of(torch::tensor({5}), torch::tensor({6}))});
    CHECK(batch.inputs.equal(torch::tensor({{1, 2}, {5, 0}})));
    CHECK(batch.inputs.scalar_type() == at::kLong);
    CHECK(batch.targets.equal(torch::tensor({{2, 3}, {6, -100}})));
    CHECK(batch.targets.scalar_type() == at::kLong);
}

TEST_CASE("sequences of vectors are padded along time alone", "[data][collate]") {
    const Batch batch = collate_padded(9.0)({item_of(torch::ones({1, 2})), item_of(torch::zeros({2, 2}))});
    CHECK(batch.inputs.equal(torch::tensor({{{1.0F, 1.0F}, {9.0F, 9.0F}}, {{0.0F, 0.0F}, {0.0F, 0.0F}}})));
    CHECK_FALSE(batch.targets.defined());
}

TEST_CASE("tokens that an item declares weigh, instead of its length", "[data][collate]") {
    const Batch batch = collate_padded()({item_of(torch::zeros(3), {}, 1), item_of(torch::zeros(2))});
    CHECK(batch.tokens == 3);
    CHECK(batch.weight == 3.0);
}
