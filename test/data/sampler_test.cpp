#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include <torchbus/data/sampler.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"

using namespace torchbus;

namespace {

using Indices = std::vector<std::int64_t>;

Indices counting(std::int64_t size) {
    Indices indices(static_cast<std::size_t>(size));
    std::iota(indices.begin(), indices.end(), 0);
    return indices;
}

Indices sorted(Indices indices) {
    std::ranges::sort(indices);
    return indices;
}

std::vector<double> counts_of(const Indices& draws, std::size_t size) {
    std::vector<double> counts(size);
    for (const std::int64_t draw : draws) ++counts[static_cast<std::size_t>(draw)];
    return counts;
}

/// Whether a count of `draws` with this probability lies within five standard deviations: wrong once in two million.
bool is_likely(double count, double draws, double probability) {
    return std::abs(count - draws * probability) <= 5 * std::sqrt(draws * probability * (1 - probability));
}

/// Lengths of 1 … 100, each as often, in no order.
Indices mixed_lengths(std::int64_t size) {
    Indices lengths;
    for (std::int64_t i = 0; i < size; ++i) lengths.push_back(i * 37 % 100 + 1);
    return lengths;
}

/// Elements that padding adds when batches of `batch_size` are cut from this order.
std::int64_t padding_of(const Indices& order, const Indices& lengths, std::size_t batch_size) {
    std::int64_t padding = 0;
    for (std::size_t begin = 0; begin < order.size(); begin += batch_size) {
        const std::size_t end = std::min(begin + batch_size, order.size());
        std::int64_t longest = 0, sum = 0;
        for (std::size_t i = begin; i < end; ++i) {
            const std::int64_t length = lengths[static_cast<std::size_t>(order[i])];
            longest = std::max(longest, length);
            sum += length;
        }
        padding += longest * static_cast<std::int64_t>(end - begin) - sum;
    }
    return padding;
}

}  // namespace

TEST_CASE("the sequential sampler counts, whatever seed and epoch", "[data][sampler]") {
    const auto sampler = make_sequential_sampler();
    CHECK(sampler->order(4, 1, 0) == Indices{0, 1, 2, 3});
    CHECK(sampler->order(4, 9, 7) == Indices{0, 1, 2, 3});
    CHECK(sampler->order(0, 1, 0).empty());
    CHECK(sampler->count(4) == 4);
}

TEST_CASE("the random sampler's order depends on seed and epoch alone", "[data][sampler]") {
    const auto sampler = make_random_sampler();
    const Indices order = sampler->order(1000, 1, 0);
    CHECK(sorted(order) == counting(1000));
    CHECK(make_random_sampler()->order(1000, 1, 0) == order);
    CHECK(sampler->order(1000, 1, 1) != order);
    CHECK(sampler->order(1000, 2, 0) != order);
    CHECK(sampler->order(1000, 1, 0) == order);
    CHECK(sampler->order(1, 1, 0) == Indices{0});
    CHECK(sampler->count(1000) == 1000);
}

TEST_CASE("the random sampler gives the same order on every platform", "[data][sampler]") {
    // By the documented algorithms, written once more in Python: SplitMix64, mt19937_64, Lemire, Fisher-Yates.
    const auto sampler = make_random_sampler();
    CHECK(sampler->order(8, 1, 0) == Indices{4, 6, 2, 3, 0, 5, 1, 7});
    CHECK(sampler->order(8, 1, 1) == Indices{0, 2, 7, 4, 1, 5, 3, 6});
    CHECK(sampler->order(8, 2, 0) == Indices{1, 5, 7, 2, 3, 0, 6, 4});
}

TEST_CASE("the random sampler puts each sample everywhere equally often", "[data][sampler]") {
    const auto sampler = make_random_sampler();
    constexpr std::int64_t kEpochs = 6000;
    std::vector<std::vector<double>> counts(6, std::vector<double>(6));
    for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch) {
        const Indices order = sampler->order(6, 3, epoch);
        for (std::size_t place = 0; place < 6; ++place) ++counts[place][static_cast<std::size_t>(order[place])];
    }
    for (const auto& place : counts)
        for (const double count : place) CHECK(is_likely(count, kEpochs, 1.0 / 6));
}

TEST_CASE("the weighted sampler draws in proportion to the weights", "[data][sampler]") {
    const std::vector<double> weights = {1, 0, 3, 0.5, 5.5};
    constexpr std::int64_t kDraws = 200'000;
    const auto sampler = make_weighted_sampler(weights, kDraws);
    CHECK(sampler->count(5) == kDraws);
    const Indices draws = sampler->order(5, 1, 0);
    CHECK(draws.size() == kDraws);
    const auto counts = counts_of(draws, weights.size());
    CHECK(counts[1] == 0);
    for (std::size_t i = 0; i < weights.size(); ++i) CHECK(is_likely(counts[i], kDraws, weights[i] / 10));
}

TEST_CASE("the weighted sampler's draws are independent of each other", "[data][sampler]") {
    constexpr std::int64_t kDraws = 100'000;
    const Indices draws = make_weighted_sampler({1, 1}, kDraws)->order(2, 1, 0);
    double equal_pairs = 0;
    for (std::size_t i = 0; i + 1 < draws.size(); i += 2) equal_pairs += draws[i] == draws[i + 1] ? 1 : 0;
    CHECK(is_likely(equal_pairs, kDraws / 2, 0.5));
}

TEST_CASE("the weighted sampler's order depends on seed and epoch alone", "[data][sampler]") {
    const auto sampler = make_weighted_sampler({1, 2, 3}, 100);
    CHECK(sampler->order(3, 1, 0) == make_weighted_sampler({1, 2, 3}, 100)->order(3, 1, 0));
    CHECK(sampler->order(3, 1, 0) != sampler->order(3, 1, 1));
    CHECK(sampler->order(3, 1, 0) != sampler->order(3, 2, 0));
}

TEST_CASE("weights that are none say which", "[data][sampler]") {
    CHECK_THROWS_WITH(make_weighted_sampler({1, -0.5}, 3), "weights[1]: -0.5 is not a weight; give finite numbers of at least 0");
    CHECK_THROWS_WITH(make_weighted_sampler({std::nan(""), 1}, 3), "weights[0]: nan is not a weight; give finite numbers of at least 0");
    CHECK_THROWS_WITH(make_weighted_sampler({1, INFINITY}, 3), "weights[1]: inf is not a weight; give finite numbers of at least 0");
    CHECK_THROWS_WITH(make_weighted_sampler({0, 0}, 3), "the weights of a weighted sampler sum to zero; at least one must be positive");
    CHECK_THROWS_WITH(make_weighted_sampler({}, 3), "the weights of a weighted sampler sum to zero; at least one must be positive");
    CHECK_THROWS_WITH(make_weighted_sampler({1, 1}, 3)->order(5, 1, 0), "2 weights for 5 samples; a weighted sampler needs one for each");
    CHECK_THROWS_AS(make_weighted_sampler({1, -0.5}, 3), ConfigError);
    CHECK_THROWS_AS(make_weighted_sampler({1, 1}, 3)->order(5, 1, 0), ConfigError);
}

TEST_CASE("length buckets hold every sample once", "[data][sampler]") {
    for (const std::int64_t size : {1, 7, 8, 64, 1003}) {
        const auto sampler = make_length_bucket_sampler(mixed_lengths(size), 8, 5);
        CHECK(sampler->count(size) == size);
        CHECK(sorted(sampler->order(size, 1, 0)) == counting(size));
    }
}

TEST_CASE("length buckets keep the padding of batches short", "[data][sampler]") {
    const Indices lengths = mixed_lengths(4000);
    const auto padding = [&](const std::shared_ptr<Sampler>& sampler) { return padding_of(sampler->order(4000, 1, 0), lengths, 8); };
    // Buckets of 400 samples hold each of the 100 lengths about four times, so that 8 neighbours differ by about 2.
    // Eight random samples reach 89 on average, where their mean is 50.5: 4000 * 38 elements of padding.
    CHECK(padding(make_length_bucket_sampler(lengths, 8)) < 4000 * 2);
    CHECK(padding(make_random_sampler()) > 4000 * 30);
}

TEST_CASE("batches of length buckets come in random order, another one each epoch", "[data][sampler]") {
    const Indices lengths = mixed_lengths(800);
    const auto sampler = make_length_bucket_sampler(lengths, 8);
    const auto longest_of_batches = [&](std::int64_t epoch) {
        const Indices order = sampler->order(800, 1, epoch);
        Indices longest;
        for (std::size_t begin = 0; begin < order.size(); begin += 8) {
            longest.push_back(0);
            for (std::size_t i = begin; i < begin + 8; ++i) longest.back() = std::max(longest.back(), lengths[static_cast<std::size_t>(order[i])]);
        }
        return longest;
    };
    CHECK_FALSE(std::ranges::is_sorted(longest_of_batches(0)));
    CHECK(longest_of_batches(0) != longest_of_batches(1));
    CHECK(sampler->order(800, 1, 0) == sampler->order(800, 1, 0));
    CHECK(sampler->order(800, 1, 0) != sampler->order(800, 2, 0));
}

TEST_CASE("length buckets mix samples anew, so that a batch is not always the same", "[data][sampler]") {
    const auto sampler = make_length_bucket_sampler(mixed_lengths(4000), 8);
    const auto companions_of_sample_0 = [&](std::int64_t epoch) {
        const Indices order = sampler->order(4000, 1, epoch);
        const auto place = static_cast<std::size_t>(std::ranges::find(order, 0) - order.begin()) / 8 * 8;
        return std::set<std::int64_t>(order.begin() + static_cast<std::ptrdiff_t>(place), order.begin() + static_cast<std::ptrdiff_t>(place + 8));
    };
    CHECK(companions_of_sample_0(0) != companions_of_sample_0(1));
}

TEST_CASE("length buckets refuse what they cannot cut", "[data][sampler]") {
    CHECK_THROWS_WITH(make_length_bucket_sampler({1, 2}, 0), "a length bucket needs a batch size and batches_per_bucket of at least 1");
    CHECK_THROWS_WITH(make_length_bucket_sampler({1, 2}, 2, 0), "a length bucket needs a batch size and batches_per_bucket of at least 1");
    CHECK_THROWS_WITH(make_length_bucket_sampler({1, 2}, 2)->order(3, 1, 0), "2 lengths for 3 samples; a length bucket sampler needs one for each");
}

TEST_CASE("length buckets let every sample be seen, also with drop_last", "[data][sampler]") {
    std::vector<std::int64_t> lengths;
    for (std::int64_t i = 0; i < 20; ++i) lengths.push_back(i);
    const auto sampler = make_length_bucket_sampler(lengths, 8);
    std::set<std::int64_t> seen;
    for (std::int64_t epoch = 0; epoch < 50; ++epoch) {
        const auto order = sampler->order(20, 1, epoch);
        seen.insert(order.begin(), order.begin() + 16);  // what drop_last leaves
    }
    CHECK(seen.size() == 20);
}

TEST_CASE("a weighted sampler needs draws and a finite sum", "[data][sampler]") {
    CHECK_THROWS_WITH(make_weighted_sampler({1, 1}, 0), "a weighted sampler of 0 draws has nothing to do; give a count of at least 1");
    CHECK_THROWS_WITH(make_weighted_sampler({1e308, 1e308}, 2), "the sum of a weighted sampler's weights is too large for a double; give smaller ones");
}
