#pragma once
/// In which order samples are taken. An order depends on seed and epoch, on nothing else.

#include <cstdint>
#include <memory>
#include <vector>

namespace torchbus {

class Sampler {
public:
    virtual ~Sampler() = default;
    /// Indices of one epoch over a dataset of `size` samples.
    virtual std::vector<std::int64_t> order(std::int64_t size, std::uint64_t seed, std::int64_t epoch) const = 0;
    /// How many indices an epoch has.
    virtual std::int64_t count(std::int64_t size) const { return size; }
};

/// 0, 1, 2, …
std::shared_ptr<Sampler> make_sequential_sampler();

/// A permutation. Source: Fisher–Yates over mt19937_64, with unbiased bounded integers (Lemire 2019).
std::shared_ptr<Sampler> make_random_sampler();

/// `count` draws with replacement, sample i with probability weights[i] / sum. Source: Walker's alias method 1977.
/// Throws: ConfigError for a negative weight, a sum of zero, or (on order) a size that differs.
std::shared_ptr<Sampler> make_weighted_sampler(std::vector<double> weights, std::int64_t count);

/// A permutation in which batches hold samples of similar length, so that padding is short: samples are shuffled,
/// sorted by length within buckets of `batches_per_bucket` batches, and the batches are shuffled.
std::shared_ptr<Sampler> make_length_bucket_sampler(std::vector<std::int64_t> lengths, std::int64_t batch_size,
                                                    std::int64_t batches_per_bucket = 50);

}  // namespace torchbus
